"""Every risk beside its definition, written as a convex program and solved by cvxpy."""

import pytest
import torch
from torch.testing import assert_close

from drrho.risk import (
    KL,
    ChiSquare,
    ChiSquareBall,
    CVaR,
    KLBall,
    KLCVaR,
)

cp = pytest.importorskip("cvxpy", reason="cvxpy, of the dev extra, solves the programs")

pytestmark = pytest.mark.filterwarnings("ignore:radius .* is at least")

# The interior-point solver stops at a duality gap of 1e-8. Where the program is strongly concave
# in p, such a gap allows an error of its square root in the weights.
VALUE_TOLERANCE = 1e-6  # relative to the largest loss
WEIGHT_TOLERANCE = 1e-4
ROUNDING = 1e-11

RISKS = [
    *(CVaR(fraction=fraction) for fraction in (1.0, 0.95, 0.5, 0.3, 0.1, 0.01)),
    *(KL(temperature=temperature) for temperature in (100.0, 1.0, 0.1, 0.01)),
    *(KLBall(radius=radius) for radius in (1e-4, 0.01, 0.3, 1.0, 10.0)),
    *(ChiSquareBall(radius=radius) for radius in (1e-4, 0.01, 0.3, 1.0, 10.0)),
    *(ChiSquare(strength=strength) for strength in (100.0, 1.0, 0.1, 0.01)),
    *(
        KLCVaR(temperature=temperature, fraction=fraction)
        for temperature in (100.0, 1.0, 0.1, 0.01)
        for fraction in (0.95, 0.3, 0.01)
    ),
]


def program(risk, p, q):
    """What p costs the adversary, and what p must satisfy; q is the base measure."""
    match risk:
        case CVaR(fraction=fraction):
            return 0, [p <= q / fraction]
        case KL(temperature=temperature):
            return temperature * kl(p, q), []
        case KLBall(radius=radius):
            return 0, [kl(p, q) <= radius]
        case ChiSquareBall(radius=radius):
            return 0, [chi_square(p, q) <= radius]
        case ChiSquare(strength=strength):
            return strength * chi_square(p, q), []
        case KLCVaR(temperature=temperature, fraction=fraction):
            return temperature * kl(p, q), [p <= q / fraction]


def kl(p, q):
    return cp.sum(cp.rel_entr(p, q))


def chi_square(p, q):
    return cp.sum_squares(cp.multiply(p - q, q**-0.5)) / 2


@pytest.fixture(params=[2, 5, 12])
def losses(request):
    generator = torch.Generator().manual_seed(request.param)
    return torch.randn(request.param, dtype=torch.float64, generator=generator)


def check(risk, losses, base_measure=None):
    base = torch.ones_like(losses) if base_measure is None else base_measure
    p = cp.Variable(len(losses), nonneg=True)
    cost, constraints = program(risk, p, (base / base.sum()).numpy())
    problem = cp.Problem(cp.Maximize(losses.numpy() @ p - cost), [cp.sum(p) == 1, *constraints])
    best = problem.solve(solver=cp.CLARABEL)
    assert problem.status == cp.OPTIMAL
    best_weights = torch.from_numpy(p.value)
    value, weights, _ = risk(losses, base_measure=base_measure)
    largest = losses.abs().max().item()

    # Nothing better exists.
    assert value.item() == pytest.approx(best, rel=0, abs=VALUE_TOLERANCE * largest)
    # Only the sum of tied samples is the program's to decide; ours share by the base measure.
    tied = (losses[:, None] == losses).double()
    assert_close(tied @ weights, tied @ best_weights, rtol=0, atol=WEIGHT_TOLERANCE)

    # What the program says of our own weights does not depend on the solver's accuracy.
    p.value = weights.numpy()
    assert problem.objective.value == pytest.approx(value.item(), rel=0, abs=ROUNDING * largest)
    assert max(constraint.violation().max() for constraint in problem.constraints) < ROUNDING


@pytest.mark.parametrize("risk", RISKS, ids=repr)
def test_different_losses(risk, losses):
    check(risk, losses)


@pytest.mark.parametrize("risk", RISKS, ids=repr)
def test_losses_in_ties_of_two(risk, losses):
    check(risk, losses[torch.arange(len(losses)) // 2])


@pytest.mark.parametrize("risk", RISKS, ids=repr)
def test_an_outlier(risk, losses):
    losses[0] = 50.0
    check(risk, losses)


@pytest.mark.parametrize("risk", RISKS, ids=repr)
def test_sample_weights(risk, losses):
    generator = torch.Generator().manual_seed(0)
    base = torch.rand(len(losses), dtype=torch.float64, generator=generator) + 0.1
    check(risk, losses, base)
