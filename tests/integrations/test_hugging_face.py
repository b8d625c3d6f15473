"""The Trainer with a steered loss: the gradient of one batch, whatever the batch is cut into."""

import copy
import functools
import gc
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file
from tests.integrations import test_hugging_face_clip as contrastive
from tests.integrations import test_lightning as in_lightning
from tests.integrations import test_open_clip as in_open_clip
from tests.integrations import test_sentence_transformers as in_sentence_transformers
from tests.processes import Process, by_torchrun, finish
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from torch.testing import assert_close

from drrho.integrations.hugging_face import SteeredTrainer, reference_token_losses
from drrho.integrations.hugging_face_clip import ContrastiveTrainer
from drrho.integrations.live_reference import AdaptersOff
from drrho.integrations.sentence_transformers import PairsTrainer
from drrho.risk import KL, CVaR, Mean
from drrho.steering import LearnedDual, LossTable, MovingAverage

VOCABULARY = 24
LENGTH = 8
CVAR = CVaR(fraction=0.4)
KL = KL(temperature=0.5)


@pytest.fixture(scope="module", autouse=True)
def _little_to_collect():
    """Every training collects garbage first, a quarter of a second with all modules loaded."""
    transformers.Trainer  # noqa: B018 - loads them
    gc.freeze()


def language_model(seed, *, dropout=0.0, vocabulary=VOCABULARY):
    torch.manual_seed(seed)
    config = transformers.LlamaConfig(
        vocab_size=vocabulary,
        max_position_embeddings=LENGTH,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        attention_dropout=dropout,
        initializer_range=0.1,
    )
    return transformers.LlamaForCausalLM(config)


def sentences(number=16, *, seed=0):
    """Rows with a prompt and a rest that do not count, of different sizes."""
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for row in range(number):
        tokens = torch.randint(1, VOCABULARY, (LENGTH,), generator=generator)
        labels = tokens.clone()
        labels[: 1 + row % 3] = -100  # old Trainers also count a first label, which none predicts
        labels[LENGTH - row % 4 :] = -100
        rows.append({"input_ids": tokens.tolist(), "labels": labels.tolist()})
    return rows


def arguments(folder, **options):
    defaults = {
        "max_steps": 4,
        "per_device_train_batch_size": 8,
        "learning_rate": 0.3,
        "optim": "sgd",
        "lr_scheduler_type": "constant",
        "save_strategy": "no",
        "logging_steps": 1,
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
        "dataloader_pin_memory": False,
    }
    return transformers.TrainingArguments(str(folder), **(defaults | options))


def steered(folder, model=None, *, options=None, **steering):
    steering = {"risk": CVAR, "train_dataset": sentences(), "reference": "none"} | steering
    args = arguments(folder, **(options or {}))
    return SteeredTrainer(language_model(1) if model is None else model, args, **steering)


def trained(trainer):
    trainer.train()
    return {name: weight.detach() for name, weight in trainer.model.named_parameters()}


def logged(trainer, name):
    return [entry[name] for entry in trainer.state.log_history if name in entry]


def assert_same(actual, expected, **tolerance):
    assert actual.keys() == expected.keys()
    for name in actual:
        assert_close(actual[name], expected[name], msg=lambda m, n=name: f"{n}: {m}", **tolerance)


def distance(one, other):
    return max(float((one[name] - other[name]).abs().max()) for name in one)


@pytest.mark.parametrize("unit", ["token", "sequence"])
def test_the_mean_is_the_trainers_own_training(tmp_path, unit):
    options = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4}
    plain = transformers.Trainer(
        language_model(1), arguments(tmp_path, **options), train_dataset=sentences()
    )
    trainer = steered(
        tmp_path, risk=Mean(), reference=language_model(2), unit=unit, options=options
    )
    assert_same(trained(trainer), trained(plain), rtol=1e-4, atol=1e-5)
    assert_close(logged(trainer, "mean_loss"), logged(plain, "loss"), rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("risk", "unit"), [(CVAR, "token"), (KL, "token"), (CVAR, "sequence")], ids=str
)
def test_accumulation_is_one_large_batch(tmp_path, risk, unit):
    steering = {"risk": risk, "reference": language_model(2), "unit": unit}
    cut = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4}
    whole = trained(steered(tmp_path, **steering))
    accumulated = trained(steered(tmp_path, options=cut, **steering))
    assert_same(accumulated, whole, rtol=1e-4, atol=1e-5)
    unsteered = trained(steered(tmp_path, **steering | {"risk": Mean()}))
    assert distance(whole, unsteered) > 1e-2


@pytest.mark.parametrize(
    "version", ["new", "old"] if "loss_is_scaled_for_ga" in vars(transformers.Trainer) else ["old"]
)
def test_no_division_by_the_number_of_micro_batches(tmp_path, version, monkeypatch):
    """The Trainer divides the loss of a model like this one, unless one of two things hinders it,
    of which old versions know the second alone.
    """
    match version:
        case "new":
            monkeypatch.delattr(SteeredTrainer, "training_step")
        case "old":
            monkeypatch.delattr(SteeredTrainer, "loss_is_scaled_for_ga")
    model = language_model(1)
    model.accepts_loss_kwargs = False
    cut = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4}
    whole = trained(steered(tmp_path))
    assert_same(trained(steered(tmp_path, model, options=cut)), whole, rtol=1e-4, atol=1e-5)


class Interruption(transformers.TrainerCallback):
    """Stops one training between two micro-batches."""

    def __init__(self):
        self.happened = False

    def on_substep_end(self, *args, **kwargs):
        if not self.happened:
            self.happened = True
            raise KeyboardInterrupt


def test_a_step_begun_again_is_weighed_again(tmp_path):
    cut = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4}
    trainer = steered(tmp_path, options=cut, callbacks=[Interruption()])
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    assert_same(trained(trainer), trained(steered(tmp_path, options=cut)), rtol=0, atol=0)


def test_a_shorter_last_accumulation_is_a_smaller_batch(tmp_path):
    data = {"train_dataset": sentences(12), "risk": KL}
    epoch = {"max_steps": -1, "num_train_epochs": 1}
    cut = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2}
    whole = trained(steered(tmp_path, options=epoch, **data))
    assert_same(trained(steered(tmp_path, options=epoch | cut, **data)), whole)


def share_of_two_processes(folder):
    """What each of two processes runs; both have to end with the same model."""
    options = {
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 2,
        "ddp_backend": "gloo",
        "ddp_find_unused_parameters": False,
    }
    trainer = steered(folder, reference=language_model(2), options=options)
    trainer.train()
    name = f"{trainer.args.process_index}.pt"
    torch.save((trainer.model.state_dict(), logged(trainer, "mean_excess")), Path(folder) / name)
    contrastive.share_of_two_processes(f"{folder}/contrastive")
    rank = trainer.args.process_index
    in_open_clip.share_of_two_processes(Path(folder) / "open_clip", rank=rank)
    in_lightning.share_of_two_processes(Path(folder) / "lightning", rank=rank)
    in_sentence_transformers.share_of_two_processes(f"{folder}/sentence_transformers")


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory):
    """The folder in which two processes have left what they ended with."""
    folder = tmp_path_factory.mktemp("two_processes")
    for name in ("contrastive", "open_clip", "lightning", "sentence_transformers"):
        (folder / name).mkdir()
    in_sentence_transformers.sentence_transformer(folder / "sentence_transformers")
    started = [
        Process(share_of_two_processes, str(folder), environment=it) for it in by_torchrun(2)
    ]
    statuses, _, errors = finish(started)
    assert statuses == [0, 0], errors
    return folder


def test_two_processes_are_one_large_contrastive_batch(tmp_path, two_processes):
    trainer = contrastive.contrastive(tmp_path)
    trainer.train()
    folder = two_processes / "contrastive"
    for rank in "01":
        found = torch.load(folder / f"{rank}.pt")
        assert_same(found, trainer.model.state_dict(), rtol=1e-4, atol=1e-5)
    saved = load_file(folder / "checkpoint-4" / ContrastiveTrainer.state_file)
    assert_same(saved, trainer.steering.state_dict(), rtol=1e-4, atol=1e-5)


def test_two_processes_in_open_clips_loop_are_one_large_batch(two_processes):
    run = in_open_clip.Run(in_open_clip.new_loss()).train(0, 1)
    for rank in "01":
        found = torch.load(two_processes / "open_clip" / f"{rank}.pt")
        assert_same(found, run.state, rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("ignore")  # Lightning's advice about machines
def test_two_processes_in_lightning_are_one_large_batch(tmp_path, two_processes):
    model, _ = in_lightning.trained(tmp_path, epochs=2)
    folder = two_processes / "lightning"
    for rank in "01":
        found = torch.load(folder / f"{rank}.pt")
        assert_same(found, in_lightning.state_of(model), rtol=1e-4, atol=1e-5)
    saved = torch.load(folder / "two.ckpt")["callbacks"]["Steering"]
    assert_same(saved, model.steering.pairs.state_dict(), rtol=1e-4, atol=1e-5)


def test_two_processes_of_text_pairs_are_one_large_batch(tmp_path, two_processes):
    host = in_sentence_transformers.steered(tmp_path)
    host.train()
    folder = two_processes / "sentence_transformers"
    for rank in "01":
        found = torch.load(folder / f"{rank}.pt")
        assert_same(found, host.model.state_dict(), rtol=1e-4, atol=1e-5)
    saved = load_file(folder / "checkpoint-4" / PairsTrainer.state_file)
    assert_same(saved, host.steering.state_dict(), rtol=1e-4, atol=1e-5)


def test_two_processes_are_one_large_batch(tmp_path, two_processes):
    trainer = steered(tmp_path, reference=language_model(2))
    trained(trainer)
    for rank in "01":
        state, excess = torch.load(two_processes / f"{rank}.pt")
        assert_same(state, trainer.model.state_dict(), rtol=1e-4, atol=1e-5)
        if rank == "0":
            assert_close(excess, logged(trainer, "mean_excess"), rtol=0, atol=1e-4)


class Watched(SteeredTrainer):
    """Keeps every loss that it computed."""

    def _losses(self, *args, **options):
        result = super()._losses(*args, **options)
        self.seen.append(result[0].losses.detach())
        return result


def test_both_passes_draw_the_same_dropout(tmp_path):
    options = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2, "max_steps": 2}
    trainer = Watched(
        language_model(1, dropout=0.3),
        arguments(tmp_path, **options),
        risk=KL,
        reference="none",
        train_dataset=sentences(),
    )
    trainer.seen = []
    trainer.train()
    ahead, graph = trainer.seen[0:2] + trainer.seen[4:6], trainer.seen[2:4] + trainer.seen[6:8]
    assert len(trainer.seen) == 8
    for one, other in zip(ahead, graph, strict=True):
        assert torch.equal(one, other)
    trainer.model.eval()
    trainer.seen.clear()
    trainer._losses(trainer.model, trainer._micro_batches[0], with_reference=False)
    assert not torch.equal(trainer.seen[0], ahead[2])  # or there was nothing to draw


def test_a_batch_in_one_piece_needs_one_pass(tmp_path):
    options = {"risk": KL, "reference": "none", "train_dataset": sentences()}
    trainer = Watched(language_model(1), arguments(tmp_path), **options)
    trainer.seen = []
    trainer.train()
    assert len(trainer.seen) == 4


@pytest.mark.parametrize(
    ("risk", "estimator"),
    [(KL, MovingAverage(rate=0.3)), (CVAR, LearnedDual(rate=0.3))],
    ids=["moving average", "learned dual"],
)
def test_a_resumed_training_is_the_uninterrupted_one(tmp_path, risk, estimator):
    options = {
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 2,
        "save_strategy": "steps",
        "save_steps": 2,
        "optim": "adamw_torch",
        "learning_rate": 1e-2,
    }

    def trainer():
        model = language_model(1, dropout=0.1)
        steering = {"risk": risk, "estimator": copy.deepcopy(estimator)}
        return steered(tmp_path, model, options=options, reference=language_model(2), **steering)

    whole, resumed = trainer(), trainer()
    expected = trained(whole)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert_same(dict(resumed.model.state_dict()), expected, rtol=0, atol=0)
    assert_same(resumed.steering.state_dict(), whole.steering.state_dict(), rtol=0, atol=0)
    early = load_file(tmp_path / "checkpoint-2" / "steering.safetensors")
    late = load_file(tmp_path / "checkpoint-4" / "steering.safetensors")
    assert any(not torch.equal(early[name], late[name]) for name in late)

    (tmp_path / "checkpoint-2" / "steering.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="no state of the estimator"):
        trainer().train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))


def padding_collator(side):
    words = {f"word{token}": token for token in range(VOCABULARY)}
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(WordLevel(words, unk_token="word0")),
        pad_token="word0",
        padding_side=side,
    )
    return transformers.DataCollatorForLanguageModeling(tokenizer, mlm=False)


def test_stored_losses_steer_as_the_live_reference(tmp_path):
    """Ragged rows, and batches padded to other lengths than when the losses were computed."""
    rows = [{"input_ids": row["input_ids"][: 3 + n % 5]} for n, row in enumerate(sentences())]
    collator, reference = padding_collator("right"), language_model(2, dropout=0.5)
    column = reference_token_losses(reference, rows, data_collator=collator, batch_size=3)
    assert reference.training  # as before; neither way has dropout
    assert [len(losses) for losses in column] == [len(row["input_ids"]) - 1 for row in rows]
    stored = [row | {"stored": losses} for row, losses in zip(rows, column, strict=True)]
    live = steered(tmp_path, reference=reference, train_dataset=rows, data_collator=collator)
    kept = steered(tmp_path, reference="stored", train_dataset=stored, data_collator=collator)
    assert_same(trained(kept), trained(live), rtol=1e-4, atol=1e-5)
    assert_close(logged(kept, "mean_excess"), logged(live, "mean_excess"), rtol=0, atol=1e-4)
    left = {"train_dataset": stored, "data_collator": padding_collator("left")}
    with pytest.raises(ValueError, match="with padding on the right"):
        steered(tmp_path, reference="stored", **left).train()


def test_a_missing_stored_loss_is_an_error_or_dropped(tmp_path):
    rows = sentences()
    column = reference_token_losses(language_model(2), rows)
    column[3][1] = torch.nan
    rows = [row | {"stored": losses.tolist()} for row, losses in zip(rows, column, strict=True)]
    options = {"per_device_train_batch_size": 16, "max_steps": 1}
    steering = {"reference": "stored", "train_dataset": rows, "options": options}
    with pytest.raises(ValueError, match="reference_losses are NaN"):
        steered(tmp_path, **steering).train()
    trainer = steered(tmp_path, missing="drop", **steering)
    trainer.train()
    assert all(value == value for value in logged(trainer, "mean_excess"))


class Strict(transformers.LlamaForCausalLM):
    """Takes no other arguments."""

    def forward(self, input_ids, labels=None):
        return super().forward(input_ids=input_ids, labels=labels)


def test_the_evaluation_is_the_trainers(tmp_path):
    data = sentences(seed=5)
    column = reference_token_losses(language_model(2), data)
    data = [row | {"stored": losses} for row, losses in zip(data, column, strict=True)]
    plain = transformers.Trainer(language_model(1), arguments(tmp_path), eval_dataset=data)
    expected = plain.evaluate()["eval_loss"]
    for model in (language_model(1), Strict(language_model(1).config)):
        model.load_state_dict(plain.model.state_dict())
        trainer = steered(tmp_path, model, reference="stored", eval_dataset=data)
        assert trainer.evaluate()["eval_loss"] == expected


def test_what_is_logged(tmp_path):
    trainer = steered(
        tmp_path,
        reference=language_model(2),
        options={"logging_steps": 2, "per_device_train_batch_size": 4, "learning_rate": 0.0},
    )
    trainer.train()
    data, model = sentences(), trainer.model
    losses = [reference_token_losses(network, data) for network in (model, trainer.reference)]
    target, reference = (torch.cat([torch.from_numpy(row) for row in rows]) for rows in losses)
    shares = logged(trainer, "kept_share")
    assert len(shares) == 2  # of four steps
    assert all(0 <= share - CVAR.fraction < 0.05 for share in shares)  # a token in 20 is shared
    # Four steps without learning are an epoch, but its batches have unequal numbers of tokens.
    assert abs(sum(logged(trainer, "mean_loss")) / 2 - target.mean()) < 0.02
    assert abs(sum(logged(trainer, "mean_excess")) / 2 - (target - reference).mean()) < 0.02
    assert_close(logged(trainer, "weight_sum"), [1.0, 1.0])
    assert all(1 < size < len(target) / 4 for size in logged(trainer, "effective_sample_size"))
    assert len(logged(trainer, "dual")) == 2


def test_without_a_reference_it_is_plain_robust_optimisation(tmp_path):
    trainer = steered(tmp_path, options={"max_steps": 1})
    trainer.train()
    assert logged(trainer, "loss")[0] > logged(trainer, "mean_loss")[0] + 0.1
    assert not logged(trainer, "mean_excess")


@pytest.mark.parametrize("unit", ["token", "sequence"])
def test_a_batch_without_labels_that_count_moves_nothing(tmp_path, unit):
    data = [row | {"labels": [-100] * LENGTH} for row in sentences()]
    trainer = steered(tmp_path, train_dataset=data, reference=language_model(2), unit=unit)
    assert_same(trained(trainer), language_model(1).state_dict(), rtol=0, atol=0)
    for name in ("loss", "mean_loss", "mean_excess", "kept_share", "dual"):
        assert set(logged(trainer, name)) == {0.0}, name


def test_options_without_effect_are_errors(tmp_path):
    model = language_model(1)
    with pytest.raises(ValueError, match="label_smoothing_factor"):
        steered(tmp_path, options={"label_smoothing_factor": 0.1})
    with pytest.raises(ValueError, match="use_liger_kernel"):
        steered(tmp_path, options={"use_liger_kernel": True})
    with pytest.raises(ValueError, match="the model itself"):
        steered(tmp_path, model, reference=model)
    with pytest.raises(ValueError, match="LossTable needs ids"):
        steered(tmp_path, estimator=LossTable(8))
    with pytest.raises(ValueError, match="KL"):
        steered(tmp_path, estimator=MovingAverage())
    config = transformers.T5Config(vocab_size=8, d_model=8, d_kv=4, d_ff=8, num_layers=1)
    with pytest.raises(ValueError, match="encoder-decoder"):
        steered(tmp_path, transformers.T5ForConditionalGeneration(config))


class WithoutLogits(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))

    def forward(self, input_ids, labels=None):
        return (self.weight * input_ids,)


def test_what_training_refuses(tmp_path):
    with pytest.raises(ValueError, match="vocabulary of 25 tokens, the model of 24"):
        steered(tmp_path, reference=language_model(2, vocabulary=25)).train()
    with pytest.raises(ValueError, match="has no `logits`, it is a tuple"):
        steered(tmp_path, WithoutLogits()).train()
    with pytest.raises(ValueError, match="no labels, only input_ids"):
        unlabelled = [{"input_ids": row["input_ids"]} for row in sentences()]
        steered(tmp_path, train_dataset=unlabelled).train()
    with pytest.raises(ValueError, match="no column 'stored'"):
        steered(tmp_path, reference="stored").train()
    with pytest.raises(ValueError, match="stored losses in the column 'stored'"):
        other = [row | {"stored": [0.5] * LENGTH} for row in sentences()]
        steered(tmp_path, reference="stored", train_dataset=other).train()
    broken = language_model(1)
    torch.nn.init.constant_(broken.model.embed_tokens.weight, torch.nan)
    with pytest.raises(ValueError, match="losses are not finite|not finite at"):
        steered(tmp_path, broken).train()


def test_a_forgotten_reference_is_an_error_and_none_is_asked_for_by_name(tmp_path):
    with pytest.raises(ValueError, match=r'needs a reference.*plain losses pass "none"'):
        steered(tmp_path, reference=None)
    assert steered(tmp_path, reference="none").own_column is None


class Wrapped(torch.nn.Module):
    """A model within another, as PEFT wraps it: no PreTrainedModel, but it gives logits."""

    def __init__(self, base):
        super().__init__()
        self.base = base

    def forward(self, **inputs):
        return self.base(**inputs)


@pytest.mark.parametrize("kind", ["model", "wrapped", "function", "tensor"])
def test_whatever_gives_logits_is_a_reference(tmp_path, kind):
    """The same one each time; a module is held still."""
    frozen = language_model(2)
    reference = {
        "model": frozen,
        "wrapped": Wrapped(frozen),
        "function": functools.partial(frozen),
        "tensor": lambda input_ids, **_: frozen(input_ids).logits,
    }[kind]
    expected = trained(steered(tmp_path, reference=language_model(2)))
    assert_same(trained(steered(tmp_path, reference=reference)), expected)
    assert kind in ("function", "tensor") or not any(p.requires_grad for p in frozen.parameters())


@pytest.mark.parametrize("kind", ["wrapped", "function", "named", "adapters off"])
def test_losses_of_whatever_gives_logits_can_be_stored(kind):
    frozen = language_model(2, dropout=0.3).train()
    reference = {
        "wrapped": Wrapped(frozen),
        "function": functools.partial(frozen.eval()),
        "named": lambda input_ids: frozen.eval()(input_ids).logits,
        "adapters off": AdaptersOff(WithAdapter(frozen)),
    }[kind]
    rows = [row | ({"other": 1} if kind == "named" else {}) for row in sentences(6)]
    expected = reference_token_losses(language_model(2), sentences(6), batch_size=4)
    found = reference_token_losses(reference, rows, batch_size=4)
    for ours, theirs in zip(found, expected, strict=True):
        assert_close(torch.from_numpy(ours), torch.from_numpy(theirs))


class WithAdapter(torch.nn.Module):
    """A model with trained numbers beside its frozen base, as PEFT has them."""

    def __init__(self, base):
        super().__init__()
        self.base = base.requires_grad_(False)
        self.config = base.config
        self.adapter = torch.nn.Parameter(torch.randn(VOCABULARY))
        self.is_on = True

    @contextmanager
    def disable_adapter(self):
        self.is_on = False
        yield
        self.is_on = True

    def forward(self, input_ids, labels=None, **options):
        assert self.is_on or not self.training
        output = self.base(input_ids, **options)
        return {"logits": output.logits + self.is_on * self.adapter}


@pytest.mark.parametrize("cut", [1, 2])
def test_the_base_with_adapters_off_is_a_reference(tmp_path, cut):
    options = {"gradient_accumulation_steps": cut, "max_steps": 2}
    ends = []
    for reference in (AdaptersOff, lambda model: language_model(2)):
        torch.manual_seed(7)
        model = WithAdapter(language_model(2))
        ends.append(trained(steered(tmp_path, model, options=options, reference=reference(model))))
        assert model.training
        assert model.adapter.requires_grad
    assert_same(*ends)
    assert not torch.equal(ends[0]["adapter"], WithAdapter(language_model(2)).adapter)


def test_a_reference_that_is_part_of_the_model_is_an_error(tmp_path):
    model = WithAdapter(language_model(1))
    model.base.lm_head.requires_grad_(True)
    with pytest.raises(ValueError, match=r"shares 1 trained parameter.*base.lm_head.weight.*Adap"):
        steered(tmp_path, model, reference=model.base)
    assert model.base.lm_head.weight.requires_grad
    with pytest.raises(ValueError, match="trained parameters"):
        steered(tmp_path, model, reference=Wrapped(model))
    with pytest.raises(TypeError, match="AdaptersOff needs a model with `disable_adapter`"):
        AdaptersOff(language_model(1))


def test_a_column_that_the_data_lack_is_an_error_before_training(tmp_path):
    class Table(list):
        column_names = ["input_ids", "labels"]  # noqa: RUF012

    with pytest.raises(ValueError, match=r"no column 'stored', the reference, only input_ids, l"):
        steered(tmp_path, reference="stored", train_dataset=Table(sentences()))
