"""Quality of pairs: wrong captions rank like chance, repetitions are found, losses are exact."""

import pytest
import torch
from torch.nn.functional import normalize

from drrho.contrastive.exact import log_gap_means
from drrho.contrastive.pairs import PairEmbeddings
from drrho.studies.curate.pair_quality import mismatched_share, nearest_earlier, pair_scores

TAU = 0.1


def good_pairs(num_pairs, *, noise=0.3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    image = normalize(torch.randn(num_pairs, 16, generator=generator), dim=-1)
    text = normalize(image + noise * torch.randn(num_pairs, 16, generator=generator), dim=-1)
    return PairEmbeddings(image, text)


def against_themselves(target, reference):
    return pair_scores(
        target,
        reference,
        negatives=(target, reference),
        same=torch.eye(len(target.image), dtype=torch.bool),
        temperature=TAU,
    )


def test_losses_against_all_others_are_those_of_the_exact_objective():
    target, reference = good_pairs(9, noise=1.0), good_pairs(9, seed=1)
    loss = against_themselves(target, reference).loss
    tau = torch.tensor(TAU)
    for column, exact in enumerate(
        (
            log_gap_means(target, temperature=tau),
            log_gap_means(reference, temperature=tau),
            log_gap_means(target, reference, temperature=tau),
        )
    ):
        torch.testing.assert_close(loss[:, column], TAU * exact.mean(dim=0))


@pytest.mark.parametrize("share", [0.0, 0.1, 0.4])
def test_the_share_of_wrong_captions_is_estimated(share):
    num_wrong = round(share * 600)
    pairs = good_pairs(600, noise=0.1)
    text = pairs.text.clone()
    text[:num_wrong] = text[:num_wrong].roll(7, dims=0)
    scores = against_themselves(pairs, PairEmbeddings(pairs.image, text))
    assert mismatched_share(scores.rank, scores.chance_rank) == pytest.approx(share, abs=0.05)
    if num_wrong:
        worst = scores.rank.argsort(descending=True)[:num_wrong]
        assert (worst < num_wrong).double().mean() > 0.9


def test_the_pair_itself_is_no_negative():
    """With it among the negatives, nothing changes but their number."""
    pairs = good_pairs(5)
    others = PairEmbeddings(*(torch.cat([e, e[:1]]) for e in pairs))
    same = torch.cat([torch.eye(5), torch.eye(5)[:, :1]], dim=1).bool()
    scores = pair_scores(pairs, pairs, negatives=(others, others), same=same, temperature=TAU)
    torch.testing.assert_close(scores.rank[0], against_themselves(pairs, pairs).rank[0])


def test_repetitions_need_image_and_text():
    pairs = good_pairs(4)
    again = PairEmbeddings(
        torch.stack([pairs.image[2], pairs.image[1], -pairs.image[0]]),
        torch.stack([pairs.text[2], -pairs.text[1], pairs.text[0]]),
    )
    assert nearest_earlier(again, pairs, similarity=0.99).tolist() == [2, -1, -1]


def test_too_few_are_refused():
    with pytest.raises(ValueError, match="every pair needs a negative"):
        against_themselves(good_pairs(1), good_pairs(1))
    pairs = good_pairs(2)
    with pytest.raises(ValueError, match="every pair needs a negative"):
        pair_scores(
            pairs,
            pairs,
            negatives=(pairs, pairs),
            same=torch.ones(2, 2, dtype=torch.bool),
            temperature=TAU,
        )
    with pytest.raises(ValueError, match="needs pairs"):
        mismatched_share(torch.empty(0), torch.empty(0))
