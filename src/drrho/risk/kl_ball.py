"""Risk in a KL ball: the adversary of `drrho.risk.kl`, with a fixed divergence to spend."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float64
from torch import Tensor

from drrho.risk.base import BaseMeasure, LossRows, Risk
from drrho.risk.duality import Dual, DualForm, Solved
from drrho.risk.kl import kl_density, kl_generator, rough_tilt
from drrho.risk.limits import check_not_negative, warn_if_beyond_reach
from drrho.risk.samples import Samples, as_risk, dot, may_read_values, normalised, weigh

# Steps for the temperature of a radius. Normal losses need five; losses in clusters of very
# different scales, with tens of decades between them, have needed twelve.
MOST_STEPS = 30
# The error of Newton's method is squared by the step: after one below this it is at rounding.
LAST_STEP = 1e-8
# Below this radius expm1 is worth its time.
SMALL_RADIUS = 1e-3


@dataclass(frozen=True, kw_only=True)
class KLBall:
    """Risk `max sum(p * losses)` over distributions with `KL(p || q) <= radius`.

    q is the base measure. Equal to `min over temperature of temperature * radius + entropic risk`:
    the adversary is the KL penalty's at the temperature at which the divergence equals the radius,
    found exactly on every call. Radius 0 is the mean; from log(1/q_max) on, q_max the base measure
    of the largest loss, it is the maximum. For small radii `mean + sqrt(2 radius Var)`. The dual
    variable is the optimal temperature: infinite at radius 0, zero where all weight is on the
    largest loss.

    Attributes:
        radius: divergence the adversary may spend, in nats; finite, not negative.

    Source: Hu and Hong, "Kullback-Leibler divergence constrained distributionally robust
        optimization", 2013; docs/mathematics.md, "KL ball".
    """

    radius: float

    def __post_init__(self) -> None:
        check_not_negative(radius=self.radius)

    def __call__(self, losses: LossRows, *, base_measure: BaseMeasure = None) -> Risk:
        samples = weigh(losses, base_measure)
        warn_if_beyond_reach(self.radius, losses, base_measure, reach=math.log)
        below = samples.below
        is_top = below == 0
        mass_on_top = is_top if samples.alike else torch.where(is_top, samples.mass, 0.0)
        reach = (samples.total / mass_on_top.sum(dim=-1)).log()

        if self.radius == 0:
            temperature = torch.full_like(reach, math.inf)
        else:
            temperature = _temperature_of_radius(samples, self.radius, reach=reach)
        weights = rough_tilt(below / temperature[..., None], samples).weights

        at_maximum = self.radius >= reach
        if not may_read_values(reach) or bool(at_maximum.any()):
            temperature = torch.where(at_maximum, 0.0, temperature)
            weights = torch.where(at_maximum[..., None], normalised(mass_on_top.double()), weights)
        value = samples.top + dot(weights, below)
        return as_risk(samples, value=value, weights=weights, dual=temperature)

    @property
    def dual_form(self) -> DualForm | None:
        if self.radius == 0:
            return None
        return DualForm(
            density=kl_density,
            generator=kl_generator,
            optimum=_optimal_dual,
            variable=lambda dual: dual.scale,
            scale="learned",
            radius=self.radius,
        )


def _optimal_dual(at: Solved) -> Dual:
    temperature = at.dual.clamp(at.smallest_scale, at.largest_scale)
    log_mean = (at.measure.log() + at.losses / temperature).logsumexp(dim=-1)
    return Dual(temperature * log_mean, temperature)


def _temperature_of_radius(
    samples: Samples, radius: float, *, reach: Float64[Tensor, "*batch"]
) -> Float64[Tensor, "*batch"]:
    """Solve for the temperature at which the tilted distribution's divergence is `radius`.

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
        if may_read_values(settled) and bool(settled.all()):
            break
    return log_temperature.exp()


class _Divergence:
    """Divergence KL(p || q) of the tilted distribution p, and minus its derivative in log
    temperature, which is the variance under p of the losses in units of temperature.

    Small divergences are differences of much larger terms, of order one with exp(z); with expm1(z)
    and the moments of the losses they are of order z. Large divergences would lose digits so.
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
        look = may_read_values(samples.below)
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
