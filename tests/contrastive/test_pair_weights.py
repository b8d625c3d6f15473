"""Weights of pairs: those of the exact objective's gradient, however the strips are cut."""

import pytest
import torch
from torch.nn.functional import normalize

from drrho.contrastive.exact import global_contrastive_risk, log_gap_means
from drrho.contrastive.pairs import PairEmbeddings
from drrho.studies.report import pair_weights
from drrho.studies.report.pair_weights import HISTOGRAM_EDGES, exchanged, image_anchor_weights

TAU, EPSILON = 0.2, 1e-2


def some_pairs(num_pairs=11, *, dim=6, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return PairEmbeddings(*normalize(torch.randn(2, num_pairs, dim, generator=generator), dim=-1))


def weights(target, reference, **options):
    return image_anchor_weights(
        target, reference, temperature=TAU, epsilon=EPSILON, num_hardest=10, **options
    )


def test_weights_of_negatives_and_anchors_are_the_gradient_of_the_exact_risk():
    """d F / d S_ij = A_ij + D_ij, of which A_ij is the image anchor's part."""
    target, reference = some_pairs(), some_pairs(dim=4, seed=1)
    num_pairs = len(target.image)
    by_image = weights(target, reference)
    turned = exchanged(target)
    assert turned is not None
    by_text = weights(turned, exchanged(reference))

    def push(found):
        """Entry ij: anchor i's share of the gradient at its negative j."""
        rows = torch.zeros(num_pairs, num_pairs)
        rows.scatter_(1, found.hardest.index, found.hardest.weight / (num_pairs - 1))
        return found.weight[:, None] * rows / (2 * num_pairs)

    predicted = push(by_image) + push(by_text).T
    similarity = (target.image @ target.text.T).requires_grad_()
    eye = torch.eye(num_pairs)
    # F of S = similarity: embed its rows against one-hot texts, which are of unit length.
    risk = global_contrastive_risk(
        PairEmbeddings(similarity, eye),
        reference,
        temperature=torch.tensor(TAU),
        epsilon=EPSILON,
    )
    (gradient,) = torch.autograd.grad(risk, similarity)
    off_diagonal = ~eye.bool()
    torch.testing.assert_close(predicted[off_diagonal], gradient[off_diagonal])


def test_strips_change_nothing(monkeypatch):
    target, reference = some_pairs(), some_pairs(seed=1)
    whole = weights(target, reference)
    monkeypatch.setattr(pair_weights, "STRIP_ENTRIES", 2 * len(target.image))
    parts = weights(target, reference)
    for name in ("log_gap_mean", "weight", "histogram"):
        torch.testing.assert_close(getattr(parts, name), getattr(whole, name))
    for name in ("hardest", "raised", "lowered"):
        for ours, theirs in zip(getattr(parts, name), getattr(whole, name), strict=True):
            torch.testing.assert_close(ours, theirs)
    exact = log_gap_means(target, reference, temperature=torch.tensor(TAU))[0]
    torch.testing.assert_close(whole.log_gap_mean, exact)


def test_the_reference_raises_what_it_finds_far_and_lowers_what_it_finds_close():
    """Two negatives that the target finds equally close; the reference knows one of them."""
    target = PairEmbeddings(torch.eye(4), torch.eye(4))
    reference = PairEmbeddings(
        torch.eye(4), normalize(torch.eye(4) + torch.eye(4)[[1, 2, 3, 0]], dim=-1)
    )
    found = weights(target, reference)
    assert found.lowered.index[1].item() == 0  # image 1 and text 0, alike for the reference
    assert found.lowered.weight[1] < found.lowered.plain_weight[1] == pytest.approx(1.0)
    assert found.raised.index[1].item() in (2, 3)
    assert found.raised.weight[1] > 1


def test_histogram_counts_every_negative_once_and_no_positive():
    target = some_pairs()
    found = weights(target, None)
    assert found.histogram.sum() == 11 * 10
    assert len(found.histogram) == len(HISTOGRAM_EDGES) - 1
    expected = torch.histogram(
        found.hardest.weight.log10().flatten(), bins=torch.tensor(HISTOGRAM_EDGES)
    ).hist
    torch.testing.assert_close(found.histogram.float(), expected)
    torch.testing.assert_close(found.raised.weight, found.raised.plain_weight)


def test_bad_numbers_are_refused():
    target = some_pairs()
    with pytest.raises(ValueError, match="temperature must be positive"):
        image_anchor_weights(target, None, temperature=0.0, epsilon=EPSILON)
    with pytest.raises(ValueError, match="num_hardest must be at least 1"):
        image_anchor_weights(target, None, temperature=1.0, epsilon=1.0, num_hardest=0)
    with pytest.raises(ValueError, match="two pairs"):
        weights(some_pairs(1), None)
