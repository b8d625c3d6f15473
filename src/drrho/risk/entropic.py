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

from drrho.risk.limits import check_price, check_radius, warn_if_beyond_reach
from drrho.risk.result import Risk
from drrho.risk.samples import as_risk, normalised, weigh

# Enough for the bracket of any float32 losses: bisection leaves at most 2e-4 of log temperature,
# from where Newton's method is at rounding in three steps.
BISECTIONS = 20
NEWTON_STEPS = 4


def entropic_risk(
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
    z = (samples.below / temperature).to(samples.losses.dtype)
    tilted = tilt(z, samples.measure)
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
    below, measure = samples.below, samples.measure
    on_top = torch.where(below == 0, samples.mass, 0.0)
    reach = (samples.total / on_top.sum(dim=-1)).log()

    if radius == 0:
        temperature = torch.full_like(reach, math.inf)
    else:
        temperature = _temperature_of_radius(below, measure, radius, reach=reach)
    tilted = tilt(below / temperature[..., None], measure)

    at_maximum = radius >= reach
    temperature = torch.where(at_maximum, 0.0, temperature)
    weights = torch.where(at_maximum[..., None], normalised(on_top), tilted.weights)
    value = samples.top + (weights * below).sum(dim=-1)
    return as_risk(samples, value=value, weights=weights, dual=temperature)


class Tilted(NamedTuple):
    """The distribution proportional to `q exp(z)`, and `log(sum(q exp(z)))`."""

    weights: Float[Tensor, "*batch n"]
    log_mean: Float[Tensor, "*batch"]


def tilt(z: Float[Tensor, "*batch n"], measure: Float64[Tensor, "*batch n"]) -> Tilted:
    """Tilt the base measure q by exp(z); z is at most zero, and zero somewhere.

    While the mean of exp(z) is near one, its logarithm is small and log1p(mean(expm1)) keeps
    its digits: at high temperature those are what the temperature then multiplies. Far below
    one, that form loses the digits of 1/n, and log-sum-exp is exact.
    """
    # Relative to the largest, so that equal samples add an exact zero to z.
    log_measure = measure.log()
    largest = log_measure.amax(dim=-1, keepdim=True)
    logits = z + (log_measure - largest).to(z.dtype)
    far_below_one = logits.logsumexp(dim=-1) + largest.squeeze(-1).to(z.dtype)
    mean_minus_one = (measure.to(z.dtype) * z.expm1()).sum(dim=-1)
    log_mean = torch.where(mean_minus_one > -0.5, mean_minus_one.log1p(), far_below_one)
    return Tilted(logits.softmax(dim=-1), log_mean)


def _temperature_of_radius(
    below: Float64[Tensor, "*batch n"],
    measure: Float64[Tensor, "*batch n"],
    radius: float,
    *,
    reach: Float64[Tensor, "*batch"],
) -> Float64[Tensor, "*batch"]:
    """The temperature at which the tilted distribution's divergence is `radius`.

    The divergence falls with the temperature, from `reach` at zero to 0 at infinity; the result
    is meaningful where `radius < reach`. The number of steps is fixed, so nothing waits for the
    device and the loop compiles: bisection in log temperature, which nothing stops (clusters of
    losses at very different scales make the divergence a staircase), then Newton's method on
    the logarithm of the divergence, a straight line of slope -2 at high temperature.

    The bracket: the divergence is at most range^2 / (8 temperature^2), as a variance is at most
    range^2 / 4; and when the second largest loss is 40 + reach temperatures below the largest,
    all weight is on the largest to float64's rounding.
    """
    gap = torch.where(below < 0, -below, math.inf).amin(dim=-1)
    low = (gap / (40 + reach)).log()
    high = (-below).amax(dim=-1).log() - 0.5 * math.log(8 * radius)
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        divergence, _ = _divergence_and_variance(below, measure, log_temperature=middle)
        too_cold = divergence > radius
        low, high = torch.where(too_cold, middle, low), torch.where(too_cold, high, middle)
    log_temperature = (low + high) / 2
    for _ in range(NEWTON_STEPS):
        divergence, variance = _divergence_and_variance(
            below, measure, log_temperature=log_temperature
        )
        step = (divergence / radius).log() * divergence / variance
        step = torch.where(step.isfinite(), step, 0.0)
        log_temperature = (log_temperature + step).clamp(low, high)
    return log_temperature.exp()


def _divergence_and_variance(
    below: Float64[Tensor, "*batch n"],
    measure: Float64[Tensor, "*batch n"],
    *,
    log_temperature: Float64[Tensor, "*batch"],
) -> tuple[Float64[Tensor, "*batch"], Float64[Tensor, "*batch"]]:
    """KL(p || q) of the tilted distribution p, and minus its derivative in log temperature,
    which is the variance under p of the losses in units of temperature.
    """
    z = below * (-log_temperature).exp()[..., None]
    weights, log_mean = tilt(z, measure)
    mean = (weights * z).sum(dim=-1)
    variance = (weights * (z - mean[..., None]).square()).sum(dim=-1)
    return mean - log_mean, variance


@dataclass(frozen=True, kw_only=True)
class KLPenalized:
    """`entropic_risk` as a configuration.

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
        return entropic_risk(losses, temperature=self.temperature, base_measure=base_measure)


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
