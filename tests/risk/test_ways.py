"""Where a number may be looked at, some solvers go another way: both lead to the same risk."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.risk.cases import risks
from torch.testing import assert_close

import drrho.risk
from drrho.risk import chi_square

MANY = 10_007  # enough to begin with a sample of the samples, and to eliminate

pytestmark = pytest.mark.filterwarnings("ignore:radius .* is at least")


def without_looking(risk, losses, base_measure=None):
    """As on another device, or compiled."""
    with pytest.MonkeyPatch.context() as patch:
        for module in vars(drrho.risk).values():
            if hasattr(module, "may_read_values"):
                patch.setattr(module, "may_read_values", lambda numbers: False)
        return risk(losses, base_measure=base_measure)


def check(risk, losses, base_measure=None):
    largest = losses.abs().max().item()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chi_square, "FEWEST_FOR_ELIMINATION", 2)
        here = risk(losses, base_measure=base_measure)
    there = without_looking(risk, losses, base_measure)
    assert_close(here.value, there.value, rtol=1e-12, atol=1e-12 * largest)
    assert_close(here.weights, there.weights, rtol=1e-7, atol=1e-12)
    assert_close(here.weights.sum(-1), torch.ones_like(here.value))


loss = st.integers(-3, 3) | st.floats(-100, 100) | st.sampled_from([1e9, -1e9, 1e-9])
rows = st.integers(1, 9).flatmap(
    lambda n: st.lists(st.lists(loss, min_size=n, max_size=n), min_size=1, max_size=3)
)


each_risk = pytest.mark.parametrize("risk", risks("extremes"), ids=repr)


@each_risk
@settings(max_examples=30)
@given(rows=rows, data=st.data())
def test_ties_outliers_weights_and_rows(risk, rows, data):
    losses = torch.tensor(rows, dtype=torch.float64)
    check(risk, losses)
    n = losses.shape[-1]
    masses = st.lists(st.floats(0.01, 3), min_size=n, max_size=n)
    check(risk, losses, torch.tensor(data.draw(masses), dtype=torch.float64))


MANY_LOSSES = {
    "normal": torch.randn,
    "cubed": lambda n, **options: torch.randn(n, **options).pow(3),
    "ties": lambda n, **options: torch.randn(n, **options).mul(5).round(),
    "equal": torch.zeros,
    "rising": lambda n, **options: torch.arange(n, **options) / n,
    "one outlier": lambda n, **options: torch.randn(n, **options) + 1e6 * (torch.arange(n) == 7),
    "sampled unfairly": lambda n, **options: torch.randn(n, **options) * (1 + torch.arange(n) % 64),
}


@each_risk
@pytest.mark.parametrize("draw", MANY_LOSSES.values(), ids=MANY_LOSSES.keys())
def test_many_samples(risk, draw):
    check(risk, draw(MANY, dtype=torch.float64))


@each_risk
def test_many_samples_in_rows_with_weights(risk):
    losses = torch.randn(2, MANY, dtype=torch.float64)
    check(risk, losses, torch.rand(MANY, dtype=torch.float64))


@each_risk
@pytest.mark.parametrize("base", [1.01, 2.0, 10.0])
def test_orders_of_magnitude_that_are_eliminated_one_by_one(risk, base):
    """More of them than rounds: the sort must take over."""
    magnitude = torch.arange(64, dtype=torch.float64) * min(1.0, 15 * math.log(10) / math.log(base))
    check(risk, -(base ** (magnitude / 4)))
    check(risk, base ** (magnitude / 4))


@each_risk
@pytest.mark.parametrize("spoilt", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_is_seen_among_many(risk, spoilt):
    losses = torch.randn(MANY)
    losses[1_234] = spoilt
    assert not risk(losses).value.isfinite()
