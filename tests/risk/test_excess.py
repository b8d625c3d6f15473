"""The excess-loss objective: what it subtracts, what it drops, what it reports."""

import math

import pytest
import torch
from torch.testing import assert_close

from drrho.risk import (
    ChiSquareBall,
    CVaR,
    KLBall,
    KLPenalized,
    Mean,
    excess_loss,
    excess_risk,
)

RISKS = [
    Mean(),
    CVaR(fraction=0.4),
    KLPenalized(temperature=0.5),
    KLBall(radius=0.3),
    ChiSquareBall(radius=0.3),
]


@pytest.fixture(params=RISKS, ids=repr)
def risk(request):
    return request.param


@pytest.fixture
def reference(losses):
    return losses + 0.3 * torch.randn(3, 7, dtype=torch.float64)


def test_half_precision_is_subtracted_in_float32():
    losses = torch.tensor([3.015625, 2.984375]).bfloat16()
    reference = torch.tensor([3.0, 3.0])
    excess = excess_loss(losses, reference.bfloat16())
    assert excess.dtype == torch.float32
    assert torch.equal(excess, losses.float() - reference)
    # A float32 reference is not rounded to the target's precision.
    fine = torch.tensor([3.001, 3.002])
    assert torch.equal(excess_loss(losses, fine), losses.float() - fine)


def test_reference_is_frozen(losses, reference, risk):
    losses.requires_grad_()
    reference.requires_grad_()
    excess_risk(losses, reference, risk).loss.sum().backward()
    assert reference.grad is None
    assert losses.grad is not None


def test_objective_is_the_risk_of_the_difference(losses, reference, risk):
    losses.requires_grad_()
    result, direct = excess_risk(losses, reference, risk), risk(losses - reference)
    result.loss.sum().backward()
    assert_close(result.loss, direct.value)
    assert_close(result.weights, direct.weights)
    assert torch.equal(losses.grad, result.weights)
    assert result.num_used.tolist() == [7, 7, 7]


def test_without_a_reference_it_is_the_risk_of_the_losses(losses, risk):
    assert_close(excess_risk(losses, None, risk).loss, risk(losses).value)


def test_an_offset_of_the_reference_does_not_change_the_weights(losses, reference, risk):
    plain, offset = (excess_risk(losses, r, risk) for r in (reference, reference - 3))
    assert_close(plain.weights, offset.weights)


def test_loss_below_zero_certifies_a_better_mean_than_the_references(risk):
    losses, reference = torch.randn(500, 4), torch.randn(500, 4) + 1
    better = excess_risk(losses, reference, risk).loss < 0
    assert better.any()
    assert (losses.mean(-1) < reference.mean(-1))[better].all()


@pytest.mark.parametrize("with_reference", [True, False])
def test_drop_leaves_out_and_counts(losses, reference, risk, with_reference):
    mask = torch.ones(3, 7, dtype=torch.bool)
    mask[:, 6] = False
    losses[0, 1], losses[0, 2], losses[1, 0], losses[:, 6] = math.inf, math.nan, -math.inf, math.nan
    reference[0, 3], reference[2, 4], reference[2, 5] = math.nan, math.nan, -math.inf
    losses.requires_grad_()
    given = reference if with_reference else None
    result = excess_risk(losses, given, risk, mask=mask, nonfinite="drop")
    result.loss.sum().backward()
    assert torch.equal(losses.grad, result.weights)
    if with_reference:
        assert result.num_missing_reference.tolist() == [1, 0, 1]
        assert result.num_nonfinite.tolist() == [2, 1, 1]
        assert result.num_used.tolist() == [3, 5, 4]
        kept = [[0, 4, 5], [1, 2, 3, 4, 5], [0, 1, 2, 3]]
    else:
        assert result.num_missing_reference.tolist() == [0, 0, 0]
        assert result.num_nonfinite.tolist() == [2, 1, 0]
        kept = [[0, 3, 4, 5], [1, 2, 3, 4, 5], [0, 1, 2, 3, 4, 5]]
    for row, columns in enumerate(kept):
        ours = losses[row, columns].detach()
        theirs = reference[row, columns] if with_reference else None
        alone = excess_risk(ours, theirs, risk)
        for quantity in ("loss", "effective_sample_size", "kl"):
            assert_close(getattr(result, quantity)[row], getattr(alone, quantity))
        assert_close(result.weights[row, columns], alone.weights)
        assert_close(result.weights[row].sum(), torch.tensor(1.0, dtype=torch.float64))


def test_raise_names_what_where_and_the_remedy(losses, reference):
    reference[1, 5], reference[2, 0], losses[0, 3] = math.nan, math.nan, math.inf
    missing = r"reference_losses are NaN \(missing\) at 2 of 21 samples: \[1, 5\], \[2, 0\]"
    unusable = r"not finite at 1 of 21 samples: \[0, 3\]"
    with pytest.raises(ValueError, match=rf'{missing}; .*{unusable}; .*nonfinite="drop"'):
        excess_risk(losses, reference, Mean())


def test_masked_samples_never_raise(losses, reference, risk):
    mask = torch.arange(7).expand(3, 7) < 5
    losses[:, 5], reference[:, 6] = math.nan, math.inf
    result = excess_risk(losses, reference, risk, mask=mask)
    assert_close(result.loss, excess_risk(losses[:, :5], reference[:, :5], risk).loss)


def test_nothing_left_is_zero_and_attached(losses, risk):
    losses.requires_grad_()
    missing = torch.full_like(losses, math.nan)
    result = excess_risk(losses, missing, risk, nonfinite="drop")
    result.loss.sum().backward()
    assert not result.loss.any()
    assert not losses.grad.any()
    assert not result.effective_sample_size.any()
    assert not result.kl.any()
    assert result.num_missing_reference.tolist() == [7, 7, 7]


def test_divergence_is_what_the_adversary_spent(losses, reference):
    few = excess_risk(losses, reference, CVaR(fraction=2 / 7))
    assert_close(few.kl, torch.full((3,), math.log(7 / 2), dtype=torch.float64))
    assert_close(few.effective_sample_size, torch.full((3,), 2.0, dtype=torch.float64))
    ball = excess_risk(losses, reference, KLBall(radius=0.3))
    assert_close(ball.kl, torch.full((3,), 0.3, dtype=torch.float64))
    assert not excess_risk(losses, reference, Mean()).kl.gt(1e-12).any()
