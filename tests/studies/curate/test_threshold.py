"""A stated precision is kept, whatever the reference knows, and one that is too weak says so."""

import pytest
import torch
from torch.nn.functional import normalize

from drrho.contrastive.pairs import PairEmbeddings
from drrho.studies.curate.pair_quality import match_ranks
from drrho.studies.curate.threshold import held_out_ranks, judge


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def pairs_of(num_pairs, *, unknown, seed, noise=0.2):
    """Pairs of which a reference knows nothing in a share: their embeddings are independent."""
    drawn = generator(seed)
    image = normalize(torch.randn(num_pairs, 16, generator=drawn), dim=-1)
    text = normalize(image + noise * torch.randn(num_pairs, 16, generator=drawn), dim=-1)
    blind = torch.rand(num_pairs, generator=drawn) < unknown
    other = normalize(torch.randn(num_pairs, 16, generator=drawn), dim=-1)
    return PairEmbeddings(image, torch.where(blind[:, None], other, text))


def judged(*, wrong, unknown, seed, noise=0.2, held_out=800):
    """Precision and recall on data of which a share of the captions were exchanged."""
    data = pairs_of(1000, unknown=unknown, seed=seed, noise=noise)
    exchanged = torch.arange(1000) < round(1000 * wrong)
    text = data.text.clone()
    text[exchanged] = text[exchanged].roll(1, dims=0)
    negatives = pairs_of(256, unknown=unknown, seed=seed + 1, noise=noise)
    ranks = match_ranks(PairEmbeddings(data.image, text), negatives)
    known = pairs_of(held_out, unknown=unknown, seed=seed + 2, noise=noise)
    found = judge(ranks, held_out_ranks(known, negatives, generator=generator()), precision=0.95)
    called = ranks >= (torch.inf if found.threshold is None else found.threshold)
    return found, called, exchanged


@pytest.mark.parametrize("wrong", [0.0, 0.3])
@pytest.mark.parametrize("unknown", [0.0, 0.02, 0.2])
def test_the_stated_precision_is_kept_whatever_the_reference_does_not_know(wrong, unknown):
    right = total = 0
    for seed in range(0, 18, 3):
        _, called, exchanged = judged(wrong=wrong, unknown=unknown, seed=100 * seed)
        right += int((called & exchanged).sum())
        total += int(called.sum())
    # All data sets together; where no caption is wrong, a call is a rare accident.
    assert total - right <= 0.05 * total + 2
    if wrong and not unknown:
        assert right > 0.9 * 6 * 1000 * wrong


def test_a_judgement_says_what_it_found():
    found, called, exchanged = judged(wrong=0.2, unknown=0.0, seed=7)
    assert found.recall == pytest.approx(float(called[exchanged].double().mean()), abs=0.05)
    assert found.false_alarms < 0.02
    assert found.separation > 0.95
    assert "log_rank from" in str(found)
    assert "(recall)" in str(found)


def test_a_reference_that_guesses_is_too_weak():
    found, called, _ = judged(wrong=0.3, unknown=1.0, seed=5)
    assert found.threshold is None
    assert found.too_weak
    assert not called.any()
    assert found.separation == pytest.approx(0.5, abs=0.06)
    assert "too weak" in str(found)


def test_a_good_reference_that_finds_nothing_wrong_is_not_called_weak():
    found, called, _ = judged(wrong=0.0, unknown=0.0, seed=9, noise=0.1)
    assert not found.too_weak
    assert called.double().mean() < 0.01


def test_captions_that_say_the_same_are_not_exchanged():
    pairs = pairs_of(40, unknown=0.0, seed=1)
    same = PairEmbeddings(pairs.image, pairs.text[:1].expand(40, -1))
    ranks = held_out_ranks(same, pairs, generator=generator())
    assert len(ranks.right) == 40
    assert len(ranks.exchanged) == 0
    with pytest.raises(ValueError, match="cannot be exchanged among 1"):
        held_out_ranks(pairs.take(slice(1)), pairs, generator=generator())
