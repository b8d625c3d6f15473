"""Run by tests/test_unhooked.py without the suite's shape checks, which refuse wrong shapes before
our own errors, which users see, can; and which cannot be compiled."""

import pytest
import torch

from drrho.integrations.live_reference import check_live_reference
from drrho.risk import KL, CVaR, Mean
from drrho.steering import (
    BatchEstimator,
    DRRhoLoss,
    MovingAverage,
    MultiLevelMonteCarlo,
    token_losses,
)


@pytest.mark.parametrize("name", ["reference_losses", "mask", "index", "sample_weight"])
def test_what_is_not_of_the_losses_shape_is_refused(name):
    losses, other = torch.rand(2, 3), torch.ones(3, dtype=torch.bool if name == "mask" else None)
    with pytest.raises(ValueError, match=rf"{name} has shape \(3,\), losses have \(2, 3\)"):
        DRRhoLoss(Mean())(losses, **{name: other})


def test_the_mean_of_the_losses_cannot_be_steered():
    with pytest.raises(ValueError, match='losses is one number, .* with reduction="none"'):
        DRRhoLoss(CVaR(fraction=0.5))(torch.tensor(0.3), torch.tensor(0.1))
    one = torch.tensor([2.0], requires_grad=True)
    DRRhoLoss(CVaR(fraction=0.5))(one).loss.backward()
    assert one.grad == 1


def test_losses_that_are_no_numbers_with_a_gradient_are_refused():
    with pytest.raises(TypeError, match="losses must be floating point, got torch.int64"):
        DRRhoLoss(Mean())(torch.arange(3))


@pytest.mark.parametrize("option", ["nonfinite", "missing"])
def test_an_unknown_option_is_named(option):
    with pytest.raises(ValueError, match=f"{option} must be .*'ignore'"):
        DRRhoLoss(Mean(), **{option: "ignore"})


def test_labels_of_another_length_are_refused():
    with pytest.raises(ValueError, match=r"labels have shape \(2, 4\), logits \(2, 5, 7\)"):
        token_losses(torch.rand(2, 5, 7), torch.zeros(2, 4, dtype=torch.int64))


@pytest.mark.parametrize(
    "estimator", [BatchEstimator, MovingAverage, lambda: MultiLevelMonteCarlo(smallest=2, levels=2)]
)
def test_loss_compiles_into_one_graph(estimator):
    """With policies that do not have to look at the numbers; the others wait for the device."""
    torch.compiler.reset()
    options = {"nonfinite": "drop", "missing": "drop"}
    plain = DRRhoLoss(KL(temperature=0.5), estimator(), **options)
    compiled = DRRhoLoss(KL(temperature=0.5), estimator(), **options)
    compiled.compile(backend="eager", fullgraph=True)
    for _ in range(3):
        losses, reference = torch.rand(2, 8)
        reference[0] = float("nan")
        gradients = []
        for loss in (plain, compiled):
            attached = losses.clone().requires_grad_()
            result = loss(attached, reference)
            result.loss.backward()
            gradients.append(attached.grad)
        torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("wrong", [3, torch.zeros(2), {"logits": 1}, torch.nn.Linear])
def test_a_live_reference_can_be_called(wrong):
    with pytest.raises(TypeError, match="reference must be a model, a function that gives logits"):
        check_live_reference(wrong, torch.nn.Linear(1, 1))
