"""The loss of text pairs for sentence-transformers, and the trainer that keeps its state."""

import gc
from pathlib import Path

import drrho.integrations  # noqa: F401 - first: it imports torchvision, whole or not

# isort: split
import datasets
import pytest
import torch
import transformers
from safetensors.torch import load_file
from sentence_transformers import (
    SentenceTransformer,
    SentenceTransformerTrainer,
    SentenceTransformerTrainingArguments,
)
from sentence_transformers.sentence_transformer.losses import (
    CachedMultipleNegativesRankingLoss,
    MultipleNegativesRankingLoss,
)
from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from torch.nn.functional import normalize
from torch.testing import assert_close

from drrho.contrastive.exact import global_contrastive_risk
from drrho.contrastive.memory.temperature import Learned
from drrho.contrastive.pairs import PairEmbeddings
from drrho.integrations.sentence_transformers import (
    DRRhoPairsLoss,
    PairsTrainer,
    embeddings_of_columns,
    reference_embeddings,
    with_sample_ids,
)

N = 12
WORDS = [*"abcdefghijklmnop"]
BOTH = {"directions": ("query_to_doc", "doc_to_query"), "partition_mode": "per_direction"}


@pytest.fixture(scope="module", autouse=True)
def _little_to_collect():
    """Every training collects garbage first, a quarter of a second with all modules loaded."""
    gc.freeze()


class Embeds(torch.nn.Module):
    """A model as the losses see it: features to embeddings."""

    def __init__(self, *, dropout=0.0):
        super().__init__()
        self.layer = torch.nn.Linear(5, 4, dtype=torch.float64)
        self.dropout = torch.nn.Dropout(dropout)

    def __getitem__(self, _):
        return self.layer

    def forward(self, features):
        hidden = self.dropout(torch.tanh(features["input_ids"]))
        return {"sentence_embedding": self.layer(hidden)}


def columns(number=N):
    generator = torch.Generator().manual_seed(1)
    draws = torch.randn(2, number, 5, generator=generator, dtype=torch.float64)
    return [{"input_ids": draw} for draw in draws]


def gradients(loss, *, ids=None, seed=0):
    """The loss and the model's gradient of a third of it, as a trainer's accumulation takes."""
    torch.manual_seed(seed)
    value = loss(columns(), ids)
    (value / 3).backward()
    found = [value.detach(), *(p.grad.clone() for p in loss.model.parameters())]
    loss.model.zero_grad()
    return found


def reference(number=N, dim=3):
    generator = torch.Generator().manual_seed(2)
    return PairEmbeddings(*normalize(torch.randn(2, number, dim, generator=generator), dim=-1))


@pytest.mark.parametrize(("directions", "theirs"), [("both", BOTH), ("first", {})])
@pytest.mark.parametrize("temperature", [0.05, 0.2])
def test_without_memory_and_reference_it_is_multiple_negatives_ranking(
    directions, theirs, temperature
):
    model = Embeds()
    ours = DRRhoPairsLoss(model, temperature=temperature, directions=directions)
    expected = MultipleNegativesRankingLoss(model, scale=1 / temperature, **theirs)
    assert_close(gradients(ours), gradients(expected), rtol=1e-12, atol=1e-14)
    remembering = DRRhoPairsLoss(
        model, temperature=temperature, directions=directions, num_samples=N
    )
    remembering.gamma = 1.0
    ids = torch.arange(N)
    assert_close(gradients(remembering, ids=ids), gradients(expected), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(("directions", "theirs"), [("both", BOTH), ("first", {})])
def test_in_mini_batches_it_is_the_cached_loss_with_its_dropout(directions, theirs):
    model = Embeds(dropout=0.3)
    ours = DRRhoPairsLoss(model, directions=directions, mini_batch_size=5)
    expected = CachedMultipleNegativesRankingLoss(model, mini_batch_size=5, **theirs)
    assert_close(gradients(ours), gradients(expected), rtol=1e-12, atol=1e-14)


def test_against_a_reference_it_is_the_exact_risk_on_the_excess():
    model, tau = Embeds(), 0.2
    given = reference()
    given.image[3] = 0  # a pair without a reference
    loss = DRRhoPairsLoss(model, temperature=tau, reference=given, reference_scale=0.5, epsilon=0.1)
    ids = torch.randperm(N)
    taken = given.take(ids)
    target = [normalize(model(c)["sentence_embedding"], dim=-1) for c in columns()]
    expected = global_contrastive_risk(
        PairEmbeddings(*target),
        PairEmbeddings(0.5 * taken.image, taken.text),
        temperature=tau,
        epsilon=0.1,
    )
    value = loss(columns(), ids)
    assert_close(value, expected / tau + torch.tensor(N - 1.0).double().log(), rtol=1e-6, atol=0)


@pytest.mark.parametrize("mini_batch_size", [None, 4])
@pytest.mark.parametrize("rho", [None, 0.5])
def test_a_learned_temperature_has_the_gradient_of_the_scaled_loss(mini_batch_size, rho):
    model = Embeds()
    given = {"temperature": Learned(initial=0.2), "rho": rho, "mini_batch_size": mini_batch_size}
    loss = DRRhoPairsLoss(model, **given)
    loss.gamma = 1.0
    (parameter,) = loss.steering.parameters()
    parameter.grad = torch.tensor(5.0)  # of an earlier micro-batch
    value = loss(columns(), None)
    (value / 4).backward()
    target = [normalize(model(c)["sentence_embedding"], dim=-1) for c in columns()]
    log_tau = torch.tensor(0.2).log().requires_grad_()
    tau = log_tau.exp()
    risk = global_contrastive_risk(
        PairEmbeddings(*target), temperature=tau, epsilon=1 / (N - 1), rho=rho or 0.0
    )
    expected = risk / (tau if rho is None else tau.detach())
    (expected / 4).backward()
    assert_close(parameter.grad - 5, log_tau.grad, rtol=1e-4, atol=1e-6)


def test_averages_are_those_of_the_batches_a_sample_has_been_in():
    loss = DRRhoPairsLoss(Embeds(), num_samples=N, temperature=0.2)
    loss.gamma = 0.5
    first, second = (loss(columns(), torch.arange(N)).item() for _ in range(2))
    assert first == pytest.approx(second)  # the same values, averaged
    moved = loss.steering.estimator.averages.log_u.entries.clone()
    torch.nn.init.zeros_(loss.model.layer.weight)
    loss(columns(), torch.arange(N))
    expected = torch.logaddexp(moved, torch.full_like(moved, torch.tensor(N / (N - 1.0)).log()))
    found = loss.steering.estimator.averages.log_u.entries
    assert_close(found, expected - torch.tensor(2.0).log())


def test_evaluation_is_the_plain_loss_and_remembers_nothing():
    model = Embeds()
    loss = DRRhoPairsLoss(model, reference=reference(), num_samples=N)
    model.eval()
    with torch.no_grad():
        value = loss(columns(7), None)
        expected = MultipleNegativesRankingLoss(model, **BOTH)(columns(7), None)
        assert_close(value, expected, rtol=1e-12, atol=0)
        assert loss([{"input_ids": c["input_ids"][:1]} for c in columns()], None) == 0
    assert loss.steering.estimator.averages.log_u.entries.isneginf().all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"gamma_min": 0.5}, "gamma_min and gamma_schedule have no effect without num_samples"),
        ({"reference_scale": 2.0}, "reference_scale has no effect without a reference"),
        ({"rho": 1.0}, "rho = 1.0 only acts through a learned temperature"),
        ({"temperature": 20.0}, "this looks like a logit scale"),
        ({"temperature": Learned(per_direction=True)}, "one Learned for both directions"),
        ({"mini_batch_size": 0}, "mini_batch_size must be at least 1, got 0"),
        ({"reference": reference(3), "num_samples": N}, "a row for each of the 12 samples, got 3"),
        ({"reference": PairEmbeddings(*torch.ones(2, N, 3))}, "must have unit length"),
    ],
)
def test_options_that_it_refuses(options, message):
    with pytest.raises(ValueError, match=message):
        DRRhoPairsLoss(Embeds(), **options)


def test_a_reference_of_another_kind_is_refused():
    with pytest.raises(TypeError, match="must be PairEmbeddings, as reference_embeddings"):
        DRRhoPairsLoss(Embeds(), reference=torch.ones(2, 3))


def test_batches_that_it_refuses():
    loss = DRRhoPairsLoss(Embeds(), num_samples=N)
    with pytest.raises(ValueError, match="no ids, which a reference and num_samples need"):
        loss(columns(), None)
    with pytest.raises(ValueError, match=r"gamma is not set: train with drrho.PairsTrainer"):
        loss(columns(), torch.arange(N))
    loss.gamma = 1.0
    with pytest.raises(ValueError, match="two columns of texts, anchors and positives, got 3"):
        loss([*columns(), columns()[0]], torch.arange(N))
    with pytest.raises(ValueError, match="sample_ids must be a tensor of int64 or int32"):
        loss(columns(), torch.rand(N))
    with pytest.raises(IndexError, match="between 0 and 11"):
        loss(columns(), torch.arange(N) + 1)
    with pytest.raises(IndexError, match="rows of the reference, from 0 to 11, got 1 to 12"):
        DRRhoPairsLoss(Embeds(), reference=reference())(columns(), torch.arange(N) + 1)


def sentence_transformer(folder, *, seed=0, dropout=0.0):
    """A small model of sentence-transformers, with a vocabulary of a few words."""
    path = Path(folder) / "base"
    if not path.exists():
        words = Tokenizer(
            WordLevel({w: i for i, w in enumerate(["[PAD]", "[UNK]", *WORDS])}, "[UNK]")
        )
        words.pre_tokenizer = Whitespace()
        transformers.PreTrainedTokenizerFast(
            tokenizer_object=words, pad_token="[PAD]", unk_token="[UNK]", model_max_length=8
        ).save_pretrained(path)
        torch.manual_seed(seed)
        transformers.BertModel(
            transformers.BertConfig(
                vocab_size=2 + len(WORDS),
                hidden_size=8,
                num_hidden_layers=1,
                num_attention_heads=2,
                intermediate_size=8,
                max_position_embeddings=8,
                hidden_dropout_prob=dropout,
                attention_probs_dropout_prob=dropout,
            )
        ).save_pretrained(path)
    module = Transformer(str(path))
    return SentenceTransformer(modules=[module, Pooling(8)], device="cpu")


def pairs():
    generator = torch.Generator().manual_seed(4)
    draws = torch.randint(len(WORDS), (2, N, 4), generator=generator).tolist()
    texts = [[" ".join(WORDS[k] for k in row) for row in rows] for rows in draws]
    return datasets.Dataset.from_dict({"anchor": texts[0], "positive": texts[1]})


def arguments(folder, **options):
    defaults = {
        "max_steps": 4,
        "per_device_train_batch_size": 4,
        "learning_rate": 0.02,
        "optim": "sgd",
        "lr_scheduler_type": "constant",
        "max_grad_norm": 0.0,
        "save_strategy": "no",
        "logging_steps": 1,
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
        "dataloader_pin_memory": False,
        "dataloader_drop_last": True,
    }
    return SentenceTransformerTrainingArguments(str(folder), **(defaults | options))


def trainer(folder, *, options=None, **loss_options):
    model = sentence_transformer(folder)
    data = with_sample_ids(pairs())
    loss = DRRhoPairsLoss(model, **loss_options)
    args = arguments(folder, **(options or {}))
    return PairsTrainer(model=model, args=args, train_dataset=data, loss=loss)


def logged(trainer, name):
    return [entry[name] for entry in trainer.state.log_history if name in entry]


STEERED = {"num_samples": N, "gamma_min": 0.5, "temperature": Learned(initial=0.2)}


def test_in_their_trainer_it_trains_as_multiple_negatives_ranking(tmp_path):
    ends = []
    for make in (lambda m: MultipleNegativesRankingLoss(m, **BOTH), DRRhoPairsLoss):
        model = sentence_transformer(tmp_path)
        host = SentenceTransformerTrainer(
            model=model, args=arguments(tmp_path), train_dataset=pairs(), loss=make(model)
        )
        host.train()
        ends.append(model.state_dict())
    assert_close(*ends, rtol=1e-4, atol=1e-5)
    before = sentence_transformer(tmp_path).state_dict()
    assert any(not torch.equal(before[name], ends[0][name]) for name in before)


def test_resumed_it_ends_as_if_never_interrupted(tmp_path):
    given = STEERED | {"reference": reference(), "mini_batch_size": 3}
    saving = {"save_strategy": "steps", "save_steps": 2}
    whole = trainer(tmp_path, options=saving, **given)
    whole.train()
    gammas = logged(whole, "gamma")
    assert gammas[0] == 1 and gammas[-1] == 0.5
    assert logged(whole, "temperature")[-1] != pytest.approx(0.2)
    resumed = trainer(tmp_path, options=saving, **given)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    for side in ("model", "steering"):
        states = [getattr(it, side).state_dict() for it in (resumed, whole)]
        assert_close(*states, rtol=0, atol=0)
    (tmp_path / "checkpoint-2" / PairsTrainer.state_file).unlink()
    with pytest.raises(FileNotFoundError, match="no state of DRRhoPairsLoss"):
        trainer(tmp_path, options=saving, **given).train(
            resume_from_checkpoint=str(tmp_path / "checkpoint-2")
        )


@pytest.mark.parametrize("of_state", [STEERED, {"temperature": Learned(initial=0.2)}])
def test_a_loss_with_state_does_not_train_in_a_trainer_that_would_lose_it(tmp_path, of_state):
    model = sentence_transformer(tmp_path)
    host = SentenceTransformerTrainer(
        model=model,
        args=arguments(tmp_path),
        train_dataset=with_sample_ids(pairs()),
        loss=DRRhoPairsLoss(model, **of_state),
    )
    with pytest.raises(ValueError, match="train with drrho.PairsTrainer"):
        host.train()


def test_a_learned_temperature_alone_is_in_the_checkpoints(tmp_path):
    saving = {"save_strategy": "steps", "save_steps": 4}
    host = trainer(tmp_path, options=saving, temperature=Learned(initial=0.2))
    host.train()
    assert logged(host, "temperature")[-1] != pytest.approx(0.2)
    stored = load_file(tmp_path / "checkpoint-4" / PairsTrainer.state_file)
    assert any("temperature" in name for name in stored)


def test_a_trainer_evaluates_before_it_has_trained(tmp_path):
    host = trainer(tmp_path, **STEERED)
    found = host.evaluate(pairs())
    assert 0 < found["eval_loss"] < 10 and host.pair_losses["loss"].gamma is None


def test_references_from_a_model_and_from_columns_are_the_same(tmp_path):
    model = sentence_transformer(tmp_path)
    of_model = reference_embeddings(model, with_sample_ids(pairs()))
    data = pairs()
    for name, embeddings in zip(("a", "p"), of_model, strict=True):
        data = data.add_column(name, (3 * embeddings).tolist())
    assert_close(embeddings_of_columns(data, columns=("a", "p")), of_model)
    with pytest.raises(ValueError, match="columns must say which two columns"):
        reference_embeddings(model, data)
    with pytest.raises(ValueError, match="a column 'label' already"):
        with_sample_ids(with_sample_ids(data))


def steered(folder, **options):
    given = STEERED | {"reference": reference(), "mini_batch_size": 2}
    return trainer(folder, options=options, **given)


def share_of_two_processes(folder):
    """What test_hugging_face.py's two processes run, with a model that is in the folder."""
    options = {
        "per_device_train_batch_size": 2,
        "ddp_backend": "gloo",
        "ddp_find_unused_parameters": True,  # BERT's pooler
        "save_strategy": "steps",
        "save_steps": 4,
    }
    host = steered(folder, **options)
    host.train()
    torch.save(host.model.state_dict(), Path(folder) / f"{host.args.process_index}.pt")
