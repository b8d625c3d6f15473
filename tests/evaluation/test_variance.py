"""Chunks do not matter, and the numbers are those of the training log."""

import pytest
import torch
from torch.nn.functional import normalize

from drrho.contrastive.diagnostics import contrastive_diagnostics
from drrho.contrastive.pairs import PairEmbeddings
from drrho.evaluation.metrics.variance import gap_variance


def pairs(seed, dim=6, count=11):
    source = torch.Generator().manual_seed(seed)
    return tuple(normalize(torch.randn(2, count, dim, generator=source), dim=-1))


@pytest.mark.parametrize("chunk_size", [1, 4, 512])
def test_it_is_what_the_training_log_says_of_the_same_pairs(chunk_size):
    target, reference = pairs(0), pairs(1, dim=4)
    logged = contrastive_diagnostics(
        PairEmbeddings(*target),
        PairEmbeddings(*reference),
        temperature=torch.tensor(0.1),
        epsilon=1e-4,
    )
    loss = gap_variance(target, chunk_size=chunk_size)
    excess = gap_variance(target, reference, chunk_size=chunk_size)
    assert loss == pytest.approx(float(logged["loss_variance"]), rel=1e-5)
    assert excess == pytest.approx(float(logged["excess_loss_variance"]), rel=1e-5)


def test_a_reference_that_is_the_target_leaves_nothing():
    target = pairs(0)
    assert gap_variance(target, target) == pytest.approx(0, abs=1e-12)
    longer = (3 * target[0], target[1])
    assert gap_variance(longer) == pytest.approx(gap_variance(target), rel=1e-5)


def test_rows_must_be_of_the_same_pairs():
    with pytest.raises(ValueError, match="same two or more pairs"):
        gap_variance(pairs(0), pairs(1, count=3))
    with pytest.raises(ValueError, match="same two or more pairs"):
        gap_variance(pairs(0, count=1))
