"""Entropic risks: accuracy over twelve decades of temperature, and the ball's temperature."""

import math

import pytest
import torch
from torch.testing import assert_close

from drrho.risk import (
    KL,
    KLBall,
    kl_divergence,
)


def exact_entropic_risk(losses, temperature):
    """In float64, every sum rounded once; at most one of its terms is zero."""
    losses = losses.double().tolist()
    top = max(losses)
    terms = [math.expm1((loss - top) / temperature) for loss in losses]
    return top + temperature * math.log1p(math.fsum(terms) / len(losses))


@pytest.mark.parametrize("temperature", [10.0**k for k in range(-6, 7)])
def test_float32_is_exact_at_every_temperature(temperature):
    losses = 3 + torch.randn(4096)
    value = KL(temperature=temperature)(losses).value
    assert value.item() == pytest.approx(exact_entropic_risk(losses, temperature), rel=2e-7)


def test_textbook_formulas_fail_where_this_one_does_not():
    """So that the test above is known to be able to fail."""
    losses, temperature = 3 + torch.randn(4096), 1e6
    scaled = losses / temperature
    log_sum_exp = temperature * (scaled.logsumexp(0) - math.log(4096))
    exact = exact_entropic_risk(losses, temperature)
    assert abs(log_sum_exp.item() - exact) > 1e-2
    assert abs(temperature * scaled.exp().mean().log().item() - exact) > 1e-3


def test_high_temperature_is_mean_plus_variance_over_twice_the_temperature(losses):
    for temperature in (1e3, 1e4):
        value = KL(temperature=temperature)(losses).value
        pessimism = losses.var(-1, correction=0) / (2 * temperature)
        assert_close(value - losses.mean(-1), pessimism, rtol=5 / temperature, atol=0)


def test_a_sample_of_almost_no_weight_still_counts_when_it_is_the_worst():
    losses, base = torch.tensor([100.0, 0.0]), torch.tensor([1e-60, 1.0], dtype=torch.float64)
    value, weights, _ = KL(temperature=0.5)(losses, base_measure=base)
    assert value.item() == pytest.approx(100 + 0.5 * math.log(1e-60), rel=1e-6)
    assert_close(weights, torch.tensor([1.0, 0.0]))


def test_batches_are_biased_down():
    """Standard normal losses: -(tau/2B)(e^(1/tau^2) - 1) = 0.0134 to leading order at tau = 1;
    at tau = 0.5 the batch is smaller than the e^4 the expansion needs."""
    losses = torch.randn(100_000, 64)
    for temperature, bias, margin in [(1.0, -0.0132, 0.002), (0.5, -0.080, 0.003)]:
        value = KL(temperature=temperature)(losses).value.mean().item()
        assert value - 0.5 / temperature == pytest.approx(bias, abs=margin)


RADII = [1e-10, 1e-6, 1e-3, 0.1, 1.0, 2.0, 3.9]


def clusters(generator):
    """Losses of 64 samples whose gaps span up to 16 decades: the divergence as a function of
    the temperature is then a staircase, where Newton's method alone goes astray."""

    def draw():
        return torch.rand(50, 64, dtype=torch.float64, generator=generator)

    steps = torch.zeros(50, 64, dtype=torch.float64)
    steps[:, :3] = torch.tensor([1.0, 1e-6, 1e6])
    return torch.cat(
        [
            -draw().pow(-1.5),
            -(10 ** (16 * draw() - 8)),
            steps,
            -steps + draw() * 1e-9,
            draw() + 1e8 * (torch.arange(64) == 0),
        ]
    )


@pytest.mark.parametrize("radius", RADII)
def test_ball_is_spent_to_the_last_nat(radius):
    losses = clusters(torch.Generator().manual_seed(0))
    _, weights, temperature = KLBall(radius=radius)(losses)
    uniform = torch.full_like(losses, 1 / 64)
    reach = (64 / (losses == losses.amax(-1, keepdim=True)).sum(-1)).log()
    within = radius < reach
    assert within.sum() >= 200
    spent = kl_divergence(weights, uniform)[within]
    assert_close(spent, torch.full_like(spent, radius), rtol=1e-7, atol=0)
    assert (temperature[within] > 0).all()


@pytest.mark.filterwarnings("ignore:radius .* is at least")
@pytest.mark.parametrize("radius", RADII)
def test_ball_is_the_cheapest_penalty_over_all_temperatures(radius, losses):
    ball = KLBall(radius=radius)(losses)

    def bound(row, temperature):
        return temperature * radius + KL(temperature=temperature)(losses[row]).value

    for row, (value, temperature) in enumerate(zip(ball.value, ball.dual.tolist(), strict=True)):
        if temperature > 0:
            assert_close(bound(row, temperature), value)
        assert all(value <= bound(row, 10 ** (k / 4)) + 1e-12 for k in range(-24, 25))


def test_small_ball_is_mean_plus_deviation_plus_skewness(losses):
    deviation = losses.std(-1, correction=0)
    centred = losses - losses.mean(-1, keepdim=True)
    skewness = centred.pow(3).mean(-1) / deviation**3
    for radius in (1e-4, 1e-6):
        value = KLBall(radius=radius)(losses).value
        expected = (2 * radius) ** 0.5 * deviation + radius / 3 * deviation * skewness
        assert_close(value - losses.mean(-1), expected, rtol=radius, atol=0)


def test_ball_beyond_reach_is_the_maximum_shared_by_ties():
    losses = torch.tensor([1.0, 4.0, 4.0, 2.0])
    for radius, at_maximum in [(math.log(2) + 1e-6, True), (math.log(2) - 1e-6, False)]:
        value, weights, temperature = KLBall(radius=radius)(losses)
        assert (temperature == 0) == at_maximum
        assert_close(value, torch.tensor(4.0), rtol=1e-6, atol=0)
        assert_close(weights, torch.tensor([0.0, 0.5, 0.5, 0.0]), rtol=0, atol=1e-5)


def test_ball_of_radius_zero_has_infinite_temperature(losses):
    assert KLBall(radius=0.0)(losses).dual.tolist() == [math.inf] * 3


def test_ball_that_holds_every_distribution_says_so(losses):
    with pytest.warns(UserWarning, match=r"radius 2 is at least 1.94591.*7 samples"):
        KLBall(radius=2.0)(losses)
    with pytest.warns(UserWarning, match="radius 2 is at least"):
        KLBall(radius=2.0)(losses, base_measure=torch.ones(7, dtype=torch.bool))
    weights = torch.tensor([1.0, 1, 1, 1, 1, 1, 100])  # six samples are rarer than one in seven
    KLBall(radius=2.0)(losses, base_measure=weights)


@pytest.mark.parametrize("temperature", [0.0, -1.0, math.inf, math.nan])
def test_temperature_must_be_positive_and_finite(temperature):
    with pytest.raises(ValueError, match=rf"temperature .* got {temperature}.*Mean\(\)"):
        KL(temperature=temperature)


@pytest.mark.parametrize("radius", [-0.1, math.inf, math.nan])
def test_radius_must_be_finite_and_not_negative(radius):
    with pytest.raises(ValueError, match=rf"radius .* got {radius}"):
        KLBall(radius=radius)
