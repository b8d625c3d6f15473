"""Token ids are kept for the texts of evaluations, and are the same ids."""

import pytest
import torch
from tests.small_runs import TINY

from drrho.data.caching import texts as kept_texts
from drrho.data.caching.texts import keeping_tokens
from drrho.encoding.encoder import EmbeddingModel
from drrho.encoding.shared import Encoder
from drrho.evaluation.evaluate import evaluate_encoder
from drrho.evaluation.sets import open_evaluation_set
from drrho.models.build import build_model
from drrho.models.open_clip import simple_tokenizer

TEXTS = ["a red circle", "", "Ein rotes Quadrat &amp; mehr", "a red circle"]


@pytest.fixture(autouse=True)
def _nothing_kept(monkeypatch):
    monkeypatch.setattr(kept_texts, "_kept", {})


class Counting(type(simple_tokenizer(1))):
    """open_clip's tokenizer under its own name, which counts the texts that it is given."""

    def __init__(self, length):
        self.__dict__.update(simple_tokenizer(length).__dict__)
        self.texts = 0

    def __call__(self, texts, context_length=None):
        self.texts += len(texts)
        return super().__call__(texts, context_length)


Counting.__name__, Counting.__module__ = "SimpleTokenizer", "open_clip.tokenizer"


def test_ids_are_the_same_and_are_made_once():
    tokenizer, other = Counting(16), Counting(16)
    for tokens_of in (keeping_tokens(tokenizer), keeping_tokens(other)):
        for _ in range(2):
            ids = tokens_of(list(TEXTS))
            assert torch.equal(ids, simple_tokenizer(16)(TEXTS))
            assert ids.dtype == torch.int64
            ids.zero_()  # what is done to them is not kept
    assert (tokenizer.texts, other.texts) == (4, 0)


def test_another_length_is_another_tokenizer():
    keeping_tokens(simple_tokenizer(16))(TEXTS)
    assert torch.equal(keeping_tokens(simple_tokenizer(8))(TEXTS), simple_tokenizer(8)(TEXTS))
    assert len(kept_texts._kept) == 2


def test_a_tokenizer_whose_ids_depend_on_the_company_is_left_alone():
    def unknown(texts):
        return torch.zeros(len(texts), 16, dtype=torch.int64)

    assert keeping_tokens(unknown) is unknown


def test_the_batches_that_were_used_last_are_kept(monkeypatch):
    monkeypatch.setattr(kept_texts, "MOST_IDS", 2 * 16)
    tokenizer = Counting(16)
    tokens_of = keeping_tokens(tokenizer)
    for text in ("a", "b", "a", "c", "a"):  # "c" takes the place of "b"
        tokens_of([text])
    assert tokenizer.texts == 3
    tokens_of(["b"])
    assert tokenizer.texts == 4
    assert torch.equal(tokens_of(TEXTS), simple_tokenizer(16)(TEXTS))  # more than there is room for
    assert not kept_texts._kept


def test_an_evaluation_finds_the_same_with_kept_tokens(scenes):
    held_out = open_evaluation_set(str(scenes / "test"))
    model = EmbeddingModel.frozen(build_model(TINY, seed=0), device="cpu")
    model.tokenizer = Counting(model.tokenizer.context_length)
    first = evaluate_encoder(Encoder(model=model, batch_size=5), held_out)
    made = model.tokenizer.texts
    again = evaluate_encoder(Encoder(model=model, batch_size=5), held_out)
    assert model.tokenizer.texts == made > len(held_out.manifest.usable_ids())
    kept_texts._kept.clear()
    cleared = evaluate_encoder(Encoder(model=model, batch_size=5), held_out)
    assert model.tokenizer.texts == 2 * made
    assert first.metrics == again.metrics == cleared.metrics
    assert torch.equal(first.reciprocal_ranks, again.reciprocal_ranks)
    assert torch.equal(first.reciprocal_ranks, cleared.reciprocal_ranks)
