"""Every risk beside its definition, written as a convex program and solved by cvxpy."""

import math

import pytest
import torch
from tests.risk import cases
from torch.testing import assert_close

cp = pytest.importorskip("cvxpy", reason="cvxpy, of the dev extra, solves the programs")

pytestmark = pytest.mark.filterwarnings("ignore:radius .* is at least")

# The interior-point solver stops at a duality gap of 1e-8. Where the program is strongly concave
# in p, such a gap allows an error of its square root in the weights.
VALUE_TOLERANCE = 1e-6  # relative to the largest loss
WEIGHT_TOLERANCE = 1e-4
ROUNDING = 1e-11

PROGRAMS = [(it, family) for family in cases.FAMILIES.values() for it in family.programs]
each_risk = pytest.mark.parametrize(
    ("risk", "family"), PROGRAMS, ids=[repr(risk) for risk, _ in PROGRAMS]
)


def kl(p, q):
    return cp.sum(cp.rel_entr(p, q))


def chi_square(p, q):
    return cp.sum_squares(cp.multiply(p - q, q**-0.5)) / 2


COSTS = {cases.kl: kl, cases.chi_square: chi_square, cases.free: lambda p, q: 0}


def program(definition, p, q):
    """What p costs the adversary, and what p must satisfy; q is the base measure."""
    cost = COSTS[definition.cost](p, q)
    constraints = []
    if definition.budget < math.inf:
        constraints.append(cost <= definition.budget)
    if definition.cap < math.inf:
        constraints.append(p <= q * definition.cap)
    return definition.price * cost if definition.price else 0, constraints


@pytest.fixture(params=[2, 5, 12])
def losses(request):
    generator = torch.Generator().manual_seed(request.param)
    return torch.randn(request.param, dtype=torch.float64, generator=generator)


def check(risk, family, losses, base_measure=None):
    base = torch.ones_like(losses) if base_measure is None else base_measure
    p = cp.Variable(len(losses), nonneg=True)
    cost, constraints = program(family.define(risk), p, (base / base.sum()).numpy())
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


@each_risk
def test_different_losses(risk, family, losses):
    check(risk, family, losses)


@each_risk
def test_losses_in_ties_of_two(risk, family, losses):
    check(risk, family, losses[torch.arange(len(losses)) // 2])


@each_risk
def test_an_outlier(risk, family, losses):
    losses[0] = 50.0
    check(risk, family, losses)


@each_risk
def test_sample_weights(risk, family, losses):
    generator = torch.Generator().manual_seed(0)
    base = torch.rand(len(losses), dtype=torch.float64, generator=generator) + 0.1
    check(risk, family, losses, base)
