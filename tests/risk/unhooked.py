"""Run by tests/test_unhooked.py, in a process of its own and without the suite's shape checks: they
cannot be compiled, and they refuse wrong shapes before our own errors, which users see, can."""

import pytest
import torch
from tests.risk.cases import TYPICAL
from torch.testing import assert_close

from drrho.risk import ChiSquareBall, CVaR, excess_loss


def value_weights_and_gradient(function, losses, *others):
    losses = losses.clone().requires_grad_()
    value, weights = function(losses, *others)[:2]
    (gradient,) = torch.autograd.grad(value.sum(), losses)
    return value, weights, gradient


@pytest.mark.parametrize(
    ("risk", "backend"),
    [*((risk, "eager") for risk in TYPICAL.values()), (CVaR(fraction=0.3), "aot_eager")],
)
def test_objective_compiles_into_one_graph(risk, backend):
    def objective(losses, reference, mask):
        return risk(excess_loss(losses, reference), base_measure=mask & reference.isfinite())

    torch.compiler.reset()
    compiled = torch.compile(objective, backend=backend, fullgraph=True)
    losses, reference = torch.randn(2, 3, 7)
    mask = torch.rand(3, 7) > 0.2
    reference[0, 0] = float("nan")
    for offset in (0.0, -100.0):  # all the same graph
        arguments = (losses + offset, reference, mask)
        together = zip(
            value_weights_and_gradient(compiled, *arguments),
            value_weights_and_gradient(objective, *arguments),
            strict=True,
        )
        for ours, theirs in together:
            assert_close(ours, theirs)


def test_a_radius_beyond_reach_compiles():
    """The warning, which would break the graph, is for eager runs."""
    compiled = torch.compile(ChiSquareBall(radius=9.0), backend="eager", fullgraph=True)
    losses = torch.randn(5)
    assert_close(compiled(losses).value, losses.max())


@pytest.mark.parametrize("risk", TYPICAL.values(), ids=repr)
def test_what_is_not_a_row_of_losses_is_refused(risk):
    with pytest.raises(TypeError, match="losses must be floating point, got torch.int64"):
        risk(torch.arange(4))
    with pytest.raises(ValueError, match="last dimension, got one number"):
        risk(torch.tensor(1.0))
    for shape in [(3,), (1, 4), (2, 2, 4), ()]:
        with pytest.raises(ValueError, match="base_measure has shape .* losses, \\(2, 4\\)"):
            risk(torch.zeros(2, 4), base_measure=torch.ones(shape))


def test_losses_of_other_samples_are_refused():
    with pytest.raises(ValueError, match=r"losses have shape \(4,\) and .* \(1,\)"):
        excess_loss(torch.zeros(4), torch.zeros(1))
