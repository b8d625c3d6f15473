"""The excess loss: how it is subtracted, and what its risk promises."""

import pytest
import torch
from tests.risk.cases import TYPICAL
from torch.testing import assert_close

from drrho.risk import excess_loss


@pytest.fixture(params=TYPICAL.values(), ids=repr)
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
    risk(excess_loss(losses, reference)).value.sum().backward()
    assert reference.grad is None
    assert losses.grad is not None


def test_an_offset_of_the_reference_does_not_change_the_weights(losses, reference, risk):
    plain, offset = (risk(excess_loss(losses, r)) for r in (reference, reference - 3))
    assert_close(plain.weights, offset.weights)


def test_risk_below_zero_certifies_a_better_mean_than_the_references(risk):
    losses, reference = torch.randn(500, 4), torch.randn(500, 4) + 1
    better = risk(excess_loss(losses, reference)).value < 0
    assert better.any()
    assert (losses.mean(-1) < reference.mean(-1))[better].all()
