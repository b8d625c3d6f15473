"""The chi-square ball: against an independent solver, and the theory's identities."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from drrho.risk import ChiSquareBall, chi_square, effective_sample_size

RADII = [0.0, 1e-12, 1e-3, 0.1, 0.5, 2.0]


def dual_minimum(losses, radius, base):
    """min over eta of `eta + sqrt((1 + 2 radius) sum(q relu(f - eta)^2))`, by ternary search:
    slow, and shares nothing with the solver but the problem."""
    total = sum(base)
    top, spread = max(losses), max(losses) - min(losses)

    def bound(eta):
        squares = (q * max(f - eta, 0) ** 2 for f, q in zip(losses, base, strict=True))
        return eta + math.sqrt((1 + 2 * radius) * math.fsum(squares) / total)

    low, high = top - (1 + spread) * (2 + 2 / math.sqrt(radius)), top
    for _ in range(200):
        third = (high - low) / 3
        if bound(low + third) < bound(high - third):
            high -= third
        else:
            low += third
    return bound((low + high) / 2)


@settings(max_examples=100)
@given(
    samples=st.lists(
        st.tuples(st.integers(-5, 5) | st.floats(-100, 100), st.floats(0.1, 3)),
        min_size=1,
        max_size=9,
    ),
    radius=st.floats(1e-2, 5),
)
def test_value_is_the_duals_minimum(samples, radius):
    losses, base = (list(column) for column in zip(*samples, strict=True))
    f, q = torch.tensor([losses, base], dtype=torch.float64)
    value = ChiSquareBall(radius=radius)(f, base_measure=q).value
    assert value.item() == pytest.approx(dual_minimum(losses, radius, base), abs=1e-6)


@pytest.mark.parametrize("radius", RADII)
def test_weights_are_proportional_to_the_excess_over_eta(radius):
    losses = torch.randn(20, 13, dtype=torch.float64)
    _, weights, eta = ChiSquareBall(radius=radius)(losses)
    if radius == 0:
        assert (eta == -math.inf).all()
        return
    excess = (losses - eta[:, None]).relu()
    assert_close(weights, excess / excess.sum(-1, keepdim=True))


@pytest.mark.parametrize("radius", RADII)
def test_value_is_mean_plus_deviation_exactly_while_no_weight_is_zero(radius):
    losses = torch.rand(500, 6, dtype=torch.float64).square()
    mean, deviation = losses.mean(-1), losses.std(-1, correction=0)
    value, weights, _ = ChiSquareBall(radius=radius)(losses)
    bound = mean + math.sqrt(2 * radius) * deviation
    inside = math.sqrt(2 * radius) * (mean - losses.amin(-1)) < deviation * (1 - 1e-9)
    assert torch.equal(inside, (weights > 0).all(-1))
    assert_close(value[inside], bound[inside])
    assert (value[~inside] < bound[~inside]).all()
    # And never further below than range * radius / 2.
    span = losses.amax(-1) - losses.amin(-1)
    assert (value >= bound - span * radius / 2 - 1e-12).all()


@pytest.mark.parametrize("radius", [1e-12, 1e-6])
def test_small_radii_keep_their_digits_in_float32(radius):
    """eta is a million deviations away; nothing is computed through it."""
    losses = torch.randn(3, 50)
    value, weights, _ = ChiSquareBall(radius=radius)(losses)
    centred = losses.double() - losses.double().mean(-1, keepdim=True)
    deviation = losses.double().std(-1, correction=0)
    steepness = math.sqrt(2 * radius) / deviation
    assert_close(
        value.double(), losses.double().mean(-1) + 2 * radius / steepness, atol=2e-7, rtol=0
    )
    assert_close(weights.double(), (1 + steepness[:, None] * centred) / 50, rtol=1e-7, atol=0)


def test_an_outlier_a_billion_times_larger_does_not_cost_digits():
    losses = torch.tensor([0.0, 1e9, 1.0, 2.0], dtype=torch.float64)
    value, weights, _ = ChiSquareBall(radius=0.2)(losses)
    p = weights.tolist()
    assert sum(4 * (x - 0.25) ** 2 for x in p) / 2 == pytest.approx(0.2, rel=1e-9)
    assert value.item() == pytest.approx(1e9 * p[1] + p[2] + 2 * p[3], rel=1e-12)


@pytest.mark.parametrize("radius", [0.1, 1.0, 10.0])
def test_effective_sample_size_is_at_least_n_over_one_plus_twice_the_radius(radius):
    weights = ChiSquareBall(radius=radius)(torch.randn(100, 40).exp()).weights
    assert (effective_sample_size(weights) >= 40 / (1 + 2 * radius) * (1 - 1e-6)).all()


def test_radius_beyond_reach_is_the_maximum_shared_by_ties():
    losses = torch.tensor([1.0, 4.0, 4.0, 2.0])
    value, weights, eta = ChiSquareBall(radius=0.5)(losses)  # (4/2 - 1) / 2
    assert value == 4
    assert eta <= 4
    assert torch.equal(weights, torch.tensor([0.0, 0.5, 0.5, 0.0]))
    assert ChiSquareBall(radius=0.499)(losses).value < 4


@pytest.mark.filterwarnings("ignore:radius .* is at least")
@pytest.mark.parametrize("radius", [0.1, 1e5])
def test_elimination_finds_its_samples_without_sorting_all(radius, monkeypatch):
    """Also where the threshold is the largest loss, which nothing is above."""
    sorted_sizes = []

    def noted(samples, threshold):
        sorted_sizes.append(samples.below.shape[-1])
        return by_sorting(samples, threshold)

    by_sorting = chi_square._by_sorting
    monkeypatch.setattr(chi_square, "_by_sorting", noted)
    losses = torch.randn(chi_square.FEWEST_FOR_ELIMINATION, dtype=torch.float64)
    found = ChiSquareBall(radius=radius)(losses)
    assert sorted_sizes == [len(losses) // chi_square.STRIDE]
    monkeypatch.setattr(chi_square, "may_read_values", lambda _: False)
    assert_close(found.weights, ChiSquareBall(radius=radius)(losses).weights, rtol=1e-9, atol=1e-12)


def test_excess_losses_that_are_all_zero_have_uniform_weights():
    """A target at its reference: the deviation is zero and its square root has no slope."""
    losses = torch.zeros(6, requires_grad=True)
    value, weights, _ = ChiSquareBall(radius=0.3)(losses)
    value.backward()
    assert value == 0
    assert torch.equal(losses.grad, weights)
    assert_close(weights, torch.full((6,), 1 / 6))


def test_from_rho_is_the_theorems_radius():
    assert ChiSquareBall.from_rho(5.0, num_samples=1000) == ChiSquareBall(radius=0.005)
    with pytest.raises(ValueError, match="num_samples must be at least 1, got 0"):
        ChiSquareBall.from_rho(5.0, num_samples=0)
    with pytest.raises(ValueError, match="rho must be finite and not negative, got -1"):
        ChiSquareBall.from_rho(-1, num_samples=10)


def test_ball_that_holds_every_distribution_says_so():
    with pytest.warns(UserWarning, match=r"radius 4.5 is at least 4.5.*10 samples"):
        ChiSquareBall(radius=4.5)(torch.randn(10))


@pytest.mark.parametrize("radius", [-0.1, math.inf, math.nan])
def test_radius_must_be_finite_and_not_negative(radius):
    with pytest.raises(ValueError, match=rf"radius .* got {radius}"):
        ChiSquareBall(radius=radius)
