"""The Trainer for dual encoders: one batch over all processes, with state that is saved."""

from pathlib import Path

import pytest
import torch
import transformers
from torch.testing import assert_close

from drrho.contrastive.memory.temperature import Learned
from drrho.contrastive.objectives.clip import CLIP
from drrho.contrastive.objectives.global_risk import DRRhoCLIP, FastCLIP
from drrho.contrastive.pairs import PairEmbeddings
from drrho.integrations.hugging_face_clip import ContrastiveTrainer
from drrho.integrations.pairs import logit_scale

N = 16
DRRHO = DRRhoCLIP(temperature=0.1, gamma_min=0.5)


def dual_encoder(seed=1):
    torch.manual_seed(seed)
    shape = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    shape |= {"num_attention_heads": 2, "projection_dim": 8}
    text = shape | {"vocab_size": 12, "max_position_embeddings": 4, "eos_token_id": 2}
    text |= {"bos_token_id": 0, "pad_token_id": 1}
    config = transformers.CLIPConfig(
        text_config=text,
        vision_config=shape | {"image_size": 8, "patch_size": 4},
        projection_dim=8,
    )
    return transformers.CLIPModel(config)


def draw():
    generator = torch.Generator().manual_seed(3)
    images = torch.randn(N, 3, 8, 8, generator=generator)
    texts = torch.randint(1, 12, (N, 4), generator=generator)
    embeddings = torch.randn(2, N, 5, generator=generator)
    rows = [
        {"pixel_values": image, "input_ids": text, "sample_id": row}
        for row, (image, text) in enumerate(zip(images, texts, strict=True))
    ]
    return rows, PairEmbeddings(*torch.nn.functional.normalize(embeddings, dim=-1))


ROWS, REFERENCE = draw()


def arguments(folder, **options):
    defaults = {
        "max_steps": 4,
        "per_device_train_batch_size": 8,
        "learning_rate": 0.3,
        "optim": "sgd",
        "max_grad_norm": 0.0,
        "lr_scheduler_type": "constant",
        "save_strategy": "no",
        "logging_steps": 1,
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
        "dataloader_pin_memory": False,
        "dataloader_drop_last": True,
    }
    return transformers.TrainingArguments(str(folder), **(defaults | options))


def contrastive(folder, model=None, *, options=None, **steering):
    defaults = {"objective": DRRHO, "reference": REFERENCE, "train_dataset": ROWS}
    return ContrastiveTrainer(
        dual_encoder() if model is None else model,
        arguments(folder, **(options or {})),
        **(defaults | steering),
    )


def state_of(trainer):
    return trainer.model.state_dict() | trainer.steering.state_dict()


def logged(trainer, name):
    return [entry[name] for entry in trainer.state.log_history if name in entry]


class Plain(transformers.Trainer):
    """How a CLIPModel trains without us."""

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        inputs = {name: value for name, value in inputs.items() if name != "sample_id"}
        return model(**inputs, return_loss=True).loss


def test_on_one_process_clip_is_the_models_own_loss(tmp_path):
    plain = Plain(dual_encoder(), arguments(tmp_path), train_dataset=ROWS)
    plain.train()
    trainer = contrastive(tmp_path, objective=CLIP(temperature=Learned()), reference=None)
    trainer.train()
    assert_close(trainer.model.state_dict(), plain.model.state_dict(), rtol=1e-4, atol=1e-5)
    assert_close(logged(trainer, "loss"), logged(plain, "loss"), rtol=1e-4, atol=1e-4)
    temperature = logged(trainer, "temperature")[-1]
    assert_close(temperature, float((-trainer.model.logit_scale.detach()).exp()))
    assert not logged(trainer, "gamma")


def share_of_two_processes(folder):
    """What test_hugging_face.py's two processes run: one start for all trainers."""
    options = {
        "per_device_train_batch_size": 4,
        "ddp_backend": "gloo",
        "ddp_find_unused_parameters": False,
        "save_strategy": "steps",
        "save_steps": 4,
    }
    trainer = contrastive(folder, options=options)
    trainer.train()
    torch.save(trainer.model.state_dict(), Path(folder) / f"{trainer.args.process_index}.pt")


def test_resumed_it_ends_as_if_never_interrupted(tmp_path):
    saving = {"save_strategy": "steps", "save_steps": 2}
    whole = contrastive(tmp_path, options=saving)
    whole.train()
    gammas = logged(whole, "gamma")
    assert gammas[0] == 1 and gammas == sorted(gammas, reverse=True) and gammas[-1] == 0.5
    resumed = contrastive(tmp_path, options=saving)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert_close(state_of(resumed), state_of(whole), rtol=0, atol=0)
    (tmp_path / "checkpoint-2" / ContrastiveTrainer.state_file).unlink()
    with pytest.raises(FileNotFoundError, match="no per-sample averages"):
        contrastive(tmp_path, options=saving).train(
            resume_from_checkpoint=str(tmp_path / "checkpoint-2")
        )


def test_the_evaluation_is_the_models_own_loss(tmp_path):
    trainer = contrastive(tmp_path, eval_dataset=ROWS, options={"per_device_eval_batch_size": N})
    batch = transformers.default_data_collator(ROWS)
    del batch["sample_id"]
    with torch.no_grad():
        expected = trainer.model.eval()(**batch, return_loss=True).loss.item()
    assert trainer.evaluate()["eval_loss"] == pytest.approx(expected, rel=1e-5)


class WithoutEmbeddings(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.logit_scale = torch.nn.Parameter(torch.zeros(()))

    def forward(self, pixel_values, input_ids):
        return (pixel_values * self.logit_scale,)


def test_what_it_refuses(tmp_path):
    with pytest.raises(ValueError, match="gradient_accumulation_steps must be 1"):
        contrastive(tmp_path, options={"gradient_accumulation_steps": 2})
    with pytest.raises(ValueError, match="dataloader_drop_last must be True"):
        contrastive(tmp_path, options={"dataloader_drop_last": False})
    with pytest.raises(ValueError, match="Linear has no parameter"):
        contrastive(tmp_path, torch.nn.Linear(1, 1))
    with pytest.raises(ValueError, match="no `image_embeds`, it is a tuple"):
        contrastive(tmp_path, WithoutEmbeddings()).train()
    with pytest.raises(ValueError, match="no column 'place'"):
        contrastive(tmp_path, id_column="place").train()


class Wrapped(torch.nn.Module):
    """A dual encoder within another module, as torch.compile and PEFT hold it."""

    def __init__(self, base):
        super().__init__()
        self.base_model = base

    def forward(self, pixel_values, input_ids):
        return self.base_model(pixel_values=pixel_values, input_ids=input_ids)


@pytest.mark.parametrize("objective", [DRRHO, DRRhoCLIP(temperature=Learned(), rho=0.5)])
def test_a_wrapped_model_trains_as_the_model(tmp_path, objective):
    ends = []
    for wrap in (lambda model: model, Wrapped):
        model = dual_encoder()
        contrastive(tmp_path, wrap(model), objective=objective, options={"max_steps": 2}).train()
        ends.append(model.state_dict())
    assert_close(*ends, rtol=0, atol=0)


COMPILED = {"torch_compile": True, "max_steps": 2}


@pytest.mark.parametrize(("backend", "temperature"), [("eager", Learned()), ("aot_eager", 0.1)])
def test_a_compiled_model_trains_as_the_model(tmp_path, backend, temperature):
    ends = []
    options = COMPILED | {"torch_compile_backend": backend}
    for own in ({"max_steps": 2}, options):
        torch.compiler.reset()
        trainer = contrastive(
            tmp_path, objective=CLIP(temperature=temperature), reference=None, options=own
        )
        trainer.train()
        ends.append(trainer.accelerator.unwrap_model(trainer.model).state_dict())
        assert len(logged(trainer, "temperature")) == 2
    assert_close(*ends, rtol=1e-4, atol=1e-5)


def with_adapters():
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj"])
    return peft.get_peft_model(dual_encoder(), config)


def test_adapters_of_peft_are_trained_and_nothing_else(tmp_path):
    model = with_adapters()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    trainer = contrastive(tmp_path, model, options={"max_steps": 2})
    trainer.train()
    for name, value in model.state_dict().items():
        moved = not torch.equal(value, before[name])
        assert moved == (".lora_" in name), name
    assert logged(trainer, "gamma") and len(logged(trainer, "loss")) == 2


def test_adapters_resume_as_if_never_interrupted(tmp_path):
    saving = {"save_strategy": "steps", "save_steps": 2}
    torch.manual_seed(0)
    whole = contrastive(tmp_path, with_adapters(), options=saving)
    whole.train()
    torch.manual_seed(0)
    resumed = contrastive(tmp_path, with_adapters(), options=saving)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert_close(state_of(resumed), state_of(whole), rtol=0, atol=0)


def test_a_temperature_beside_adapters_is_learned_once_it_is_thawed(tmp_path):
    model, learned = with_adapters(), DRRhoCLIP(temperature=Learned(), rho=0.5)
    with pytest.raises(ValueError, match="PEFT freezes whatever is no adapter"):
        contrastive(tmp_path, model, objective=learned)
    scale = logit_scale(model).requires_grad_(True)
    before = scale.item()
    contrastive(tmp_path, model, objective=learned, options={"max_steps": 2}).train()
    assert scale.item() != before


def test_the_base_of_adapters_is_a_reference(tmp_path):
    """The store of embeddings of the base: what the adapters start from."""
    model = with_adapters()
    batch = transformers.default_data_collator(ROWS)
    del batch["sample_id"]
    with torch.no_grad():
        found = model.eval()(**batch)
    store = PairEmbeddings(found.image_embeds, found.text_embeds)
    contrastive(tmp_path, model, reference=store, options={"max_steps": 1}).train()


def test_a_frozen_logit_scale_is_no_learned_temperature(tmp_path):
    model = dual_encoder()
    model.logit_scale.requires_grad_(False)
    contrastive(tmp_path, Wrapped(model))
    learned = DRRhoCLIP(temperature=Learned(), rho=0.5)
    with pytest.raises(ValueError, match=r"`logit_scale`, which is frozen.*requires_grad_\(True\)"):
        contrastive(tmp_path, Wrapped(model), objective=learned)
    with pytest.raises(ValueError, match="several parameters `logit_scale`: 0.logit_scale, 1"):
        contrastive(tmp_path, torch.nn.ModuleList([dual_encoder(), dual_encoder()]))


class Stream(torch.utils.data.IterableDataset):
    def __iter__(self):
        return iter(ROWS)


def test_data_without_a_length_need_their_number(tmp_path):
    with pytest.raises(ValueError, match="num_samples is needed.* train_dataset is Stream"):
        contrastive(tmp_path, train_dataset=Stream())
    with pytest.raises(ValueError, match="train_dataset is None"):
        contrastive(tmp_path, train_dataset=None)
    contrastive(tmp_path, train_dataset=Stream(), num_samples=N, options={"max_steps": 1}).train()


def test_ids_that_count_from_one_are_an_error_that_says_so(tmp_path):
    from_one = [row | {"sample_id": row["sample_id"] + 1} for row in ROWS]
    for reference, objective in ((REFERENCE, DRRHO), (None, FastCLIP(temperature=0.1))):
        with pytest.raises(IndexError, match=r"num_samples - 1 = 15; got .* to 16\. Subtract 1"):
            contrastive(
                tmp_path, train_dataset=from_one, reference=reference, objective=objective
            ).train()
