"""The dual form against the risks themselves."""

import math

import pytest
import torch
from tests.risk.cases import risks
from torch.testing import assert_close

from drrho.risk import ChiSquareBall, CVaR, KLBall, Mean
from drrho.risk.duality import Dual, dual_form, solve_dual

RISKS = [risk for risk in risks("typical", "examples") if risk != Mean()]


@pytest.fixture(params=RISKS, ids=repr)
def risk(request):
    return request.param


@pytest.fixture
def losses():
    return 3 + torch.randn(41, dtype=torch.float64)


@pytest.fixture
def base_measure():
    return torch.rand(41, dtype=torch.float64)


def test_the_optimum_of_the_dual_is_the_risk(risk, losses, base_measure):
    q = base_measure / base_measure.sum()
    expected = risk(losses, base_measure=base_measure)
    dual = solve_dual(risk, losses, base_measure)
    assert_close((q * dual_form(risk).values(losses, dual)).sum(), expected.value)
    assert_close(dual_form(risk).variable(dual), expected.dual)
    if not isinstance(risk, CVaR):  # whose sample at the threshold has a part of the weight
        assert_close(q * dual_form(risk).densities(losses, dual), expected.weights)
        assert_close(
            (q * dual_form(risk).densities(losses, dual)).sum(), torch.tensor(1.0).double()
        )


def test_no_dual_is_below_the_risk(risk, losses, base_measure):
    q = base_measure / base_measure.sum()
    value = risk(losses, base_measure=base_measure).value
    best = solve_dual(risk, losses, base_measure)
    is_ball = dual_form(risk).scale == "learned"
    for shift in (-1.0, -0.1, 0.1, 1.0):
        for factor in (0.5, 1.0, 2.0) if is_ball else (1.0,):
            other = Dual(best.location + shift, best.scale * factor)
            assert (q * dual_form(risk).values(losses, other)).sum() >= value - 1e-12


def test_slopes_of_the_dual_are_what_the_steps_of_learning_use(risk, losses, base_measure):
    """d/d location = 1 - mean density; d/d scale = radius - divergence."""
    q = base_measure / base_measure.sum()
    best = solve_dual(risk, losses, base_measure)
    here = Dual(best.location + 0.2, 1.3 * best.scale)
    step = 1e-6

    def objective(dual):
        return (q * dual_form(risk).values(losses, dual)).sum()

    w = dual_form(risk).densities(losses, here)
    moved = [Dual(here.location + sign * step, here.scale) for sign in (1, -1)]
    slope = (objective(moved[0]) - objective(moved[1])) / (2 * step)
    assert_close(slope, 1 - (q * w).sum(), rtol=1e-6, atol=1e-6)
    if dual_form(risk).scale == "learned":
        moved = [Dual(here.location, here.scale + sign * step) for sign in (1, -1)]
        slope = (objective(moved[0]) - objective(moved[1])) / (2 * step)
        spent = (q * dual_form(risk).generator(w)).sum()
        assert_close(slope, risk.radius - spent, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("risk", [KLBall(radius=50.0), ChiSquareBall(radius=1e4)], ids=repr)
@pytest.mark.filterwarnings("ignore:radius .* is at least")
def test_a_ball_that_holds_everything_has_a_small_positive_scale(risk, losses, base_measure):
    dual = solve_dual(risk, losses, base_measure)
    assert 0 < dual.scale < 1e-3
    q = base_measure / base_measure.sum()
    largest = losses == losses.max()
    assert_close(dual_form(risk).densities(losses, dual)[largest], 1 / q[largest])


def test_equal_losses_have_density_one(risk):
    losses = torch.full((5,), 2.0)
    dual = solve_dual(risk, losses, torch.ones(5))
    if not isinstance(risk, CVaR):
        assert_close(dual_form(risk).densities(losses, dual), torch.ones(5, dtype=torch.float64))
    assert all(map(math.isfinite, dual))


def test_what_has_nothing_to_learn_is_known():
    assert all(map(dual_form, RISKS))
    for risk in (Mean(), KLBall(radius=0.0), ChiSquareBall(radius=0)):
        with pytest.raises(ValueError, match=rf"{type(risk).__name__}\(.*\) has no dual variables"):
            dual_form(risk)
    with pytest.raises(ValueError, match=r"Mean\(\) has no dual variables"):
        solve_dual(Mean(), torch.zeros(3), torch.ones(3))
