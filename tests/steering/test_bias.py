"""The biases and variances that the docstrings predict, measured on losses whose truth is known.

Losses are standard normal, the KL temperature is one and the gradient g is the loss itself. Under
the adversary p the losses are normal with mean one: G = E_p[g] = 1, E[(p/q)^2] = e and
E_p[(p/q) g] = 2e.
"""

import math
from typing import NamedTuple

import pytest
import torch
from torch.testing import assert_close

from drrho.risk import KL, ChiSquareBall, CVaR, KLBall
from drrho.steering import (
    AdaptiveRate,
    BatchEstimator,
    ExcessLosses,
    LearnedDual,
    LossTable,
    MovingAverage,
    MultiLevelMonteCarlo,
)

BATCH = 64
KL = KL(temperature=1.0)
BATCH_BIAS = -(2 * math.e - math.e) / BATCH


class Measured(NamedTuple):
    bias: float
    standard_error: float
    variance: float


def gradient_bias(estimator, risk=KL, *, steps=2500, burn_in=200, seed=0):
    """Of sum(weight_i g_i), on independent batches.

    Each step is compared with sum(q exp(f - 1/2) g), which is unbiased and sees the same batch;
    the error of the mean is that of 25 consecutive stretches, for the estimators have memory.
    """
    generator = torch.Generator().manual_seed(seed)
    measure = torch.ones(BATCH, dtype=torch.float64)
    estimates, differences = [], []
    for _ in range(burn_in + steps):
        f = torch.randn(BATCH, generator=generator, dtype=torch.float64)
        estimate = (estimator(risk, ExcessLosses(f, measure)).weights * f).sum()
        estimates.append(estimate)
        differences.append(estimate - ((f - 0.5).exp() * f).mean())
    stretches = torch.stack(differences[burn_in:]).view(25, -1).mean(dim=1)
    return Measured(
        bias=stretches.mean().item(),
        standard_error=(stretches.std() / 5).item(),
        variance=torch.stack(estimates[burn_in:]).var().item(),
    )


def predicted_bias_of_average(rate):
    covariance = (2 * math.e - 1) / BATCH  # of the batch's mean exp(f) g and mean exp(f)
    variance = (math.e - 1) / BATCH  # of the batch's mean exp(f); both relative to the means
    return -rate * covariance + rate / (2 - rate) * variance


def assert_near(measured, predicted):
    """Within a quarter, for terms of order 1/B^2, and the noise of the measurement."""
    assert abs(measured.bias - predicted) < 0.25 * abs(predicted) + 3 * measured.standard_error
    assert 3 * measured.standard_error < 0.4 * abs(BATCH_BIAS)  # it says something


def test_the_batchs_bias():
    assert_near(gradient_bias(BatchEstimator()), BATCH_BIAS)


def test_a_rate_of_one_is_the_batch():
    torch.manual_seed(1)
    f = torch.randn(3, BATCH, dtype=torch.float64)
    measure = torch.ones(BATCH, dtype=torch.float64)
    average, batch = MovingAverage(rate=1.0), BatchEstimator()
    for row in f:
        ours = average(KL, ExcessLosses(row, measure))
        assert_close(ours.weights, batch(KL, ExcessLosses(row, measure)).weights)


@pytest.mark.parametrize("rate", [0.5, 0.2])
def test_bias_of_the_moving_average(rate):
    assert_near(gradient_bias(MovingAverage(rate=rate)), predicted_bias_of_average(rate))


def test_the_moving_average_pays_for_less_bias_with_variance():
    biases, variances = [], []
    for rate in (1.0, 0.3, 0.03):
        measured = gradient_bias(MovingAverage(rate=rate))
        biases.append(abs(measured.bias))
        variances.append(measured.variance)
    assert biases == sorted(biases, reverse=True)
    assert variances == sorted(variances)


def test_adaptive_rate_is_stochastic_proximal_mirror_descent():
    estimator = MovingAverage(rate=AdaptiveRate(log_step=-1.5))
    generator = torch.Generator().manual_seed(0)
    v = None
    for _ in range(20):
        f = torch.randn(BATCH, generator=generator, dtype=torch.float64)
        estimator(KL, ExcessLosses(f, torch.ones(BATCH, dtype=torch.float64)))
        new = f.logsumexp(0) - math.log(BATCH)
        softplus = torch.nn.functional.softplus
        v = new if v is None else v + softplus(new - 1.5) - softplus(v - 1.5)
        assert_close(estimator.log_mean, v)


def test_bias_of_the_adaptive_rate_is_that_of_the_rate_it_settles_at():
    estimator = MovingAverage(rate=AdaptiveRate(log_step=-1.5))
    measured = gradient_bias(estimator)
    rate = torch.tensor(-1.5 + 0.5).sigmoid().item()  # v settles at log E exp(f) = 1/2
    assert_near(measured, predicted_bias_of_average(rate))


@pytest.mark.parametrize(("fall", "rate"), [(0.001, 0.1), (0.01, 0.1), (0.01, 0.05)])
def test_falling_losses_leave_the_average_behind(fall, rate):
    """Weights of losses that fall by c each step sum to (1 - (1 - rate) e^c) / rate."""
    average, normalised = MovingAverage(rate=rate), MovingAverage(rate=rate, normalise=True)
    measure = torch.ones(4, dtype=torch.float64)
    for step in range(1000):
        f = torch.full((4,), -fall * step, dtype=torch.float64)
        weight_sum = average(KL, ExcessLosses(f, measure)).weights.sum()
        mended = normalised(KL, ExcessLosses(f, measure)).weights.sum()
    expected = (1 - (1 - rate) * math.exp(fall)) / rate
    assert_close(weight_sum.item(), expected, rtol=1e-6, atol=1e-9)
    assert_close(mended.item(), 1.0, rtol=1e-6, atol=1e-9)


def test_a_learned_dual_is_unbiased_under_the_kl_penalty():
    measured = gradient_bias(LearnedDual(rate=0.1))
    assert abs(measured.bias) < 3.5 * measured.standard_error
    assert 3.5 * measured.standard_error < 0.5 * abs(BATCH_BIAS)


def test_variance_of_the_learned_location():
    """Stochastic approximation: rate / (2 - rate) of the variance of one batch's mean density."""
    estimator, rate = LearnedDual(rate=0.1), 0.1
    generator = torch.Generator().manual_seed(2)
    locations = []
    for step in range(4000):
        f = torch.randn(BATCH, generator=generator, dtype=torch.float64)
        estimator(KL, ExcessLosses(f, torch.ones(BATCH, dtype=torch.float64)))
        if step >= 200:
            locations.append(estimator.location.clone())
    predicted = rate / (2 - rate) * (math.e - 1) / BATCH
    assert_close(torch.stack(locations).var().item(), predicted, rtol=0.25, atol=0)


@pytest.mark.parametrize(
    "risk", [CVaR(fraction=0.2), KLBall(radius=0.8), ChiSquareBall(radius=0.8)], ids=repr
)
def test_a_learned_dual_finds_the_risk_that_a_batch_underestimates(risk):
    """With g = f, sum(p g) is the risk itself: these three are homogeneous."""
    size, generator = 16, torch.Generator().manual_seed(3)
    middles = (torch.arange(100_000, dtype=torch.float64) + 0.5) / 100_000
    truth = risk(torch.special.ndtri(middles)).value
    of_batches = risk(torch.randn(20_000, size, generator=generator, dtype=torch.float64)).value

    learned, measure, found = LearnedDual(rate=0.05), torch.ones(size, dtype=torch.float64), []
    for _ in range(200 + 2500):
        f = torch.randn(size, generator=generator, dtype=torch.float64)
        weights = learned(risk, ExcessLosses(f, measure)).weights
        found.append((weights * f).sum() - (weights.sum() - 1) * truth - f.mean())
    stretches = torch.stack(found[200:]).view(25, -1).mean(dim=1)
    bias, error = stretches.mean() - truth, stretches.std() / 5
    bias_of_batches = of_batches.mean() - truth
    assert bias_of_batches < -10 * of_batches.std() / math.sqrt(20_000)
    assert abs(bias) < 0.3 * abs(bias_of_batches) + 3 * error
    assert 3 * error < 0.5 * abs(bias_of_batches)


@pytest.mark.parametrize("risk", [KL, CVaR(fraction=0.2), ChiSquareBall(radius=0.2)], ids=repr)
@pytest.mark.parametrize("weighted", [False, True])
def test_a_table_is_unbiased_once_full(risk, weighted):
    """Over an epoch the gradients average to the full data set's: exactly."""
    losses, gradients = torch.randn(2, 60, dtype=torch.float64)
    losses = losses.float().double()  # what the table holds
    measure = torch.randint(0 if weighted else 1, 4 if weighted else 2, (60,)).double()
    table = LossTable(60)
    counted = measure.nonzero().squeeze(1)  # batches of as many samples that count
    counted = counted[: len(counted) // 5 * 5]
    measure[~torch.isin(torch.arange(60), counted)] = 0
    for _ in range(2):
        batches = counted[torch.randperm(len(counted))].view(5, -1)
        epoch = [
            (table(risk, ExcessLosses(losses[i], measure[i], i)).weights * gradients[i]).sum()
            for i in batches
        ]
    expected = (risk(losses, base_measure=measure).weights * gradients).sum()
    assert_close(torch.stack(epoch).mean(), expected)


@pytest.mark.parametrize("risk", [KL, CVaR(fraction=0.2), ChiSquareBall(radius=0.2)], ids=repr)
def test_multi_level_expectation_telescopes_to_the_largest_batch(risk):
    """Averaged over levels and over the blocks of one large batch: exactly the large batch."""
    estimator = MultiLevelMonteCarlo(smallest=4, levels=3)
    f = torch.randn(32, dtype=torch.float64)
    value, weights = torch.tensor(0.0, dtype=torch.float64), torch.zeros(32, dtype=torch.float64)
    for level in (1, 2, 3):
        blocks = f.view(-1, 4 * 2**level)
        for number, block in enumerate(blocks):
            measure = torch.ones_like(block)
            estimate = estimator(risk, ExcessLosses(block, measure))
            share = estimator.probability(level) / len(blocks)
            value += share * estimate.value
            weights.view_as(blocks)[number] += share * estimate.weights
    assert_close(value, risk(f).value)
    assert_close(weights, risk(f).weights)


def test_multi_level_sizes_come_as_often_as_they_should():
    estimator, generator = MultiLevelMonteCarlo(smallest=4, levels=3), torch.Generator()
    drawn = torch.tensor([estimator.draw_size(generator.manual_seed(s)) for s in range(4000)])
    for level, size in enumerate((8, 16, 32), start=1):
        share = (drawn == size).double().mean().item()
        assert abs(share - estimator.probability(level)) < 0.03
    assert sum(map(estimator.probability, (1, 2, 3))) == 1
    assert abs(drawn.double().mean().item() - 4 * (3 + 1)) < 0.5


def test_multi_level_weights_vary_more_than_the_batchs():
    estimator, generator = MultiLevelMonteCarlo(smallest=4, levels=4), torch.Generator()
    generator.manual_seed(0)
    values = {"multi-level": [], "largest batch": []}
    for _ in range(400):
        size = estimator.draw_size(generator)
        f = torch.randn(size, generator=generator, dtype=torch.float64)
        measure = torch.ones(size, dtype=torch.float64)
        values["multi-level"].append(estimator(KL, ExcessLosses(f, measure)).value)
        values["largest batch"].append(KL(torch.randn(64, generator=generator)).value)
    one, other = (torch.stack(kept).double() for kept in values.values())
    assert one.var() > other.var()
    difference = (one.mean() - other.mean()).abs()
    assert difference < 4 * ((one.var() + other.var()) / 400).sqrt()


def test_multi_level_needs_the_sizes_it_draws():
    with pytest.raises(ValueError, match="batches of 8, 16 samples.*got 12"):
        MultiLevelMonteCarlo(smallest=4, levels=2)(
            KL, ExcessLosses(torch.zeros(12), torch.ones(12))
        )
