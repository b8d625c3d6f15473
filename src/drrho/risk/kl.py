"""Entropic risks: an adversary that pays for KL divergence, or may spend a fixed amount of it.

Both tilt the base measure by exp(loss / temperature) (data weighting). Penalised, the temperature
is given; in a ball, it is the one at which the divergence equals the radius.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float, Float64, Shaped
from torch import Tensor

from drrho.risk.base import Risk
from drrho.risk.limits import check_price, check_radius, warn_if_beyond_reach
from drrho.risk.samples import Samples, as_risk, dot, may_look, normalised, weigh

# Steps for the temperature of a radius. Normal losses need five; losses in clusters of very
# different scales, with tens of decades between them, have needed twelve.
MOST_STEPS = 30
# The error of Newton's method is squared by the step: after one below this it is at rounding.
LAST_STEP = 1e-8
# Below this radius expm1 is worth its time.
SMALL_RADIUS = 1e-3


def kl_risk(
    losses: Float[Tensor, "*batch n"],
    *,
    temperature: float,
    base_measure: Shaped[Tensor, "... n"] | None = None,
) -> Risk:
    """`temperature * log(sum(q exp(losses / temperature)))`, q the base measure.

    This is the maximum, over distributions p, of `sum(p * losses) - temperature * KL(p || q)`,
    attained by `p proportional to q exp(losses / temperature)`. Large temperatures give the
    mean (`mean + Var / (2 temperature) + ...`), small ones the maximum; float32 is accurate to
    rounding in between and at both ends.

    Args:
        losses: shape (..., n); the last dimension is the samples. For the DRRho risk pass
            excess losses: the target model's minus the reference model's.
        temperature: the adversary's price per nat, in units of loss; in [1e-30, 1e30].
        base_measure: mask or sample weights in place of 1/n; see `drrho.risk.samples.weigh`.

    Returns:
        Value of shape (...), weights, and as dual variable the temperature.

    Raises:
        ValueError: `temperature` is out of range, or as `drrho.risk.samples.weigh`.
        TypeError: as `drrho.risk.samples.weigh`.

    Source: Donsker-Varadhan duality; docs/mathematics.md, "KL penalty".
    """
    check_price(temperature, name="temperature")
    samples = weigh(losses, base_measure)
    z = samples.below.div_(temperature).to(samples.losses.dtype)  # nothing else needs them
    tilted = tilt(z, samples)
    value = samples.top + temperature * tilted.log_mean
    dual = torch.full_like(value, temperature)
    return as_risk(samples, value=value, weights=tilted.weights, dual=dual)


def kl_ball_risk(
    losses: Float[Tensor, "*batch n"],
    *,
    radius: float,
    base_measure: Shaped[Tensor, "... n"] | None = None,
) -> Risk:
    """`max sum(p * losses)` over distributions with `KL(p || q) <= radius`, q the base measure.

    Equal to `min over temperature of temperature * radius + entropic risk`: the temperature is
    learned, exactly and on every call. Radius 0 is the mean; from log(1/q_max) on, q_max the
    base measure of the largest loss, it is the maximum. For small radii `mean + sqrt(2 radius
    Var)`.

    Args:
        losses: shape (..., n); the last dimension is the samples. For the DRRho risk pass
            excess losses: the target model's minus the reference model's.
        radius: divergence the adversary may spend, in nats; not negative.
        base_measure: mask or sample weights in place of 1/n; see `drrho.risk.samples.weigh`.

    Returns:
        Value of shape (...), weights, and as dual variable the optimal temperature (infinite
        at radius 0; zero where all weight is on the largest loss).

    Raises:
        ValueError: `radius` is negative or not finite, or as `drrho.risk.samples.weigh`.
        TypeError: as `drrho.risk.samples.weigh`.

    Source: Hu and Hong, "Kullback-Leibler divergence constrained distributionally robust
        optimization", 2013; docs/mathematics.md, "KL ball".
    """
    check_radius(radius)
    samples = weigh(losses, base_measure)
    below = samples.below
    is_top = below == 0
    mass_on_top = is_top if samples.alike else torch.where(is_top, samples.mass, 0.0)
    reach = (samples.total / mass_on_top.sum(dim=-1)).log()

    if radius == 0:
        temperature = torch.full_like(reach, math.inf)
    else:
        temperature = _temperature_of_radius(samples, radius, reach=reach)
    weights = _tilted_weights(below / temperature[..., None], samples).weights

    at_maximum = radius >= reach
    if not may_look(reach) or bool(at_maximum.any()):
        temperature = torch.where(at_maximum, 0.0, temperature)
        weights = torch.where(at_maximum[..., None], normalised(mass_on_top.double()), weights)
    value = samples.top + dot(weights, below)
    return as_risk(samples, value=value, weights=weights, dual=temperature)


class Tilted(NamedTuple):
    """The distribution proportional to `q exp(z)`, and `log(sum(q exp(z)))`."""

    weights: Float[Tensor, "*batch n"]
    log_mean: Float[Tensor, "*batch"]


def tilt(z: Float[Tensor, "*batch n"], samples: Samples) -> Tilted:
    """Tilt the base measure q by exp(z); z is at most zero, and zero somewhere.

    While the mean of exp(z) is near one, its logarithm is small and log1p(mean(expm1)) keeps
    its digits: at high temperature those are what the temperature then multiplies. Far below
    one, that form loses the digits of 1/n, and the logarithm of the mean is exact.
    """
    weights, log_mean = _tilted_weights(z, samples)
    if not may_look(z) or bool((log_mean > math.log(0.5)).any()):
        terms = z.expm1()
        if samples.alike:
            mean_minus_one = terms.mean(dim=-1)
        else:
            mean_minus_one = (samples.measure.to(z.dtype) * terms).sum(dim=-1)
        log_mean = torch.where(mean_minus_one > -0.5, mean_minus_one.log1p(), log_mean)
    return Tilted(weights, log_mean)


def _tilted_weights(z: Float[Tensor, "*batch n"], samples: Samples) -> Tilted:
    """The logarithm's error is a rounding of one, not of itself."""
    if samples.alike:
        weights = z.exp()
        total = weights.sum(dim=-1, keepdim=True)
        return Tilted(weights.div_(total), (total.squeeze(-1) / z.shape[-1]).log())
    # Relative to the largest, so that equal samples add an exact zero to z.
    log_measure = samples.measure.log()
    largest = log_measure.amax(dim=-1, keepdim=True)
    logits = z + (log_measure - largest).to(z.dtype)
    log_mean = logits.logsumexp(dim=-1) + largest.squeeze(-1).to(z.dtype)
    return Tilted(logits.softmax(dim=-1), log_mean)


def _temperature_of_radius(
    samples: Samples, radius: float, *, reach: Float64[Tensor, "*batch"]
) -> Float64[Tensor, "*batch"]:
    """The temperature at which the tilted distribution's divergence is `radius`.

    The divergence falls with the temperature, from `reach` at zero to 0 at infinity; the result
    is meaningful where `radius < reach`. Newton's method on the logarithm of the divergence,
    as a function of the logarithm of the temperature: a straight line of slope -2 at high
    temperature. Clusters of losses at very different scales make it a staircase, so a step
    that leaves the bracket, or is not half as long as the one before the last, bisects instead.

    The bracket: the divergence is at most range^2 / (8 temperature^2), as a variance is at most
    range^2 / 4; and when the second largest loss is 40 + reach temperatures below the largest,
    all weight is on the largest to float64's rounding.
    """
    objective = _Divergence(samples, small=radius < SMALL_RADIUS)
    low = (objective.gap / (40 + reach)).log()
    high = (-samples.below.amin(dim=-1)).log() - 0.5 * math.log(8 * radius)
    log_temperature = (objective.deviation.log() - 0.5 * math.log(2 * radius)).clamp(low, high)
    length = length_before = high - low
    settled = radius >= reach
    for _ in range(MOST_STEPS):
        divergence, variance = objective(log_temperature)
        too_cold = divergence > radius
        low = torch.where(too_cold, log_temperature, low)
        high = torch.where(too_cold, high, log_temperature)
        newton = (divergence / radius).log() * divergence / variance
        moved = log_temperature + newton
        is_newton = (moved >= low) & (moved <= high) & (newton.abs() <= length_before / 2)
        step = torch.where(is_newton, newton, (low + high) / 2 - log_temperature)
        log_temperature = log_temperature + torch.where(settled, 0.0, step)
        length, length_before = step.abs(), length
        settled = settled | (is_newton & (length <= LAST_STEP))
        if may_look(settled) and bool(settled.all()):
            break
    return log_temperature.exp()


class _Divergence:
    """KL(p || q) of the tilted distribution p, and minus its derivative in log temperature,
    which is the variance under p of the losses in units of temperature.

    Small divergences are differences of much larger terms. With expm1(z) for exp(z), and the
    moments of the losses for what is then missing, those are of order z and not of order one;
    large ones lose digits so.
    """

    def __init__(self, samples: Samples, *, small: bool) -> None:
        self.samples = samples
        self.small = small
        self.total = samples.total
        weighted = samples.times_mass(samples.below)
        self.first = weighted.sum(dim=-1)
        self.second = dot(weighted, samples.below)
        mean = self.first / self.total
        self.deviation = (self.second / self.total - mean.square()).clamp_min(0).sqrt()
        others = samples.below.masked_fill(samples.below == 0, -math.inf)
        self.gap = -others.amax(dim=-1)
        # Fresh memory takes longer than a pass over it.
        look = may_look(samples.below)
        self.memory = others if look else None
        self.more_memory = torch.empty_like(others) if look else None

    def __call__(
        self, log_temperature: Float64[Tensor, "*batch"]
    ) -> tuple[Float64[Tensor, "*batch"], Float64[Tensor, "*batch"]]:
        inverse = (-log_temperature).exp()
        z = torch.mul(self.samples.below, inverse[..., None], out=self.memory)
        exponential = torch.expm1 if self.small else torch.exp
        tilted = exponential(z, out=self.more_memory)
        if not self.samples.alike:
            tilted.mul_(self.samples.mass)
        normaliser = tilted.sum(dim=-1)
        tilted.mul_(z)
        first, second = tilted.sum(dim=-1), dot(tilted, z)
        if self.small:
            log_mean = (normaliser / self.total).log1p()
            normaliser = normaliser + self.total
            first = first + self.first * inverse
            second = second + self.second * inverse.square()
        else:
            log_mean = (normaliser / self.total).log()
        mean = first / normaliser
        return mean - log_mean, second / normaliser - mean.square()


@dataclass(frozen=True, kw_only=True)
class KL:
    """`kl_risk` as a configuration.

    Attributes:
        temperature: the adversary's price per nat, in units of loss; positive.
    """

    temperature: float

    def __post_init__(self) -> None:
        check_price(self.temperature, name="temperature")

    def __call__(
        self,
        losses: Float[Tensor, "*batch n"],
        *,
        base_measure: Shaped[Tensor, "... n"] | None = None,
    ) -> Risk:
        return kl_risk(losses, temperature=self.temperature, base_measure=base_measure)


@dataclass(frozen=True, kw_only=True)
class KLBall:
    """`kl_ball_risk` as a configuration.

    Attributes:
        radius: divergence the adversary may spend, in nats; not negative.
    """

    radius: float

    def __post_init__(self) -> None:
        check_radius(self.radius)

    def __call__(
        self,
        losses: Float[Tensor, "*batch n"],
        *,
        base_measure: Shaped[Tensor, "... n"] | None = None,
    ) -> Risk:
        risk = kl_ball_risk(losses, radius=self.radius, base_measure=base_measure)
        num_samples = losses.shape[-1]
        warn_if_beyond_reach(
            self.radius,
            reach=math.log(max(num_samples, 1)),
            num_samples=num_samples,
            base_measure=base_measure,
        )
        return risk
