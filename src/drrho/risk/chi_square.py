"""Chi-square risks: mean plus deviation, the generalisation theorem's; and mean plus variance."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Float64, Shaped
from torch import Tensor
from torch.nn.functional import pad

from drrho.risk.limits import check_price, check_radius, warn_if_beyond_reach
from drrho.risk.result import Risk
from drrho.risk.samples import Samples, as_risk, normalised, weigh


def chi_square_ball_risk(
    losses: Float[Tensor, "*batch n"],
    *,
    radius: float,
    base_measure: Shaped[Tensor, "... n"] | None = None,
) -> Risk:
    """`max sum(p * losses)` over distributions with `sum(q (p/q - 1)^2) / 2 <= radius`.

    q is the base measure. Equal to `min over eta of eta + sqrt((1 + 2 radius) sum(q
    relu(losses - eta)^2))`; the adversary is proportional to `q relu(losses - eta)`. While no
    weight is zero this is `mean + sqrt(2 radius Var)`, Var the variance with divisor n.
    Radius 0 is the mean; from (1/q_max - 1)/2 on, q_max the base measure of the largest loss,
    it is the maximum. Exact: one sort and three prefix sums, no iteration. The effective sample
    size of equal samples is at least n / (1 + 2 radius).

    Args:
        losses: shape (..., n); the last dimension is the samples. For the DRRho risk pass
            excess losses: the target model's minus the reference model's.
        radius: divergence the adversary may spend; not negative, no unit. It is absolute: the
            theorem's is rho / N with N the number of samples of the data set, not of the
            batch (`ChiSquareBall.from_rho`).
        base_measure: mask or sample weights in place of 1/n; see `drrho.risk.samples.weigh`.

    Returns:
        Value of shape (...), weights, and as dual variable the threshold eta (minus infinity
        at radius 0; the largest loss where all weight is on it).

    Raises:
        ValueError: `radius` is negative or not finite, or as `drrho.risk.samples.weigh`.
        TypeError: as `drrho.risk.samples.weigh`.

    Source: Duchi and Namkoong, "Variance-based regularization with convex objectives", 2019,
        for the risk; docs/mathematics.md, "Chi-square ball".
    """
    check_radius(radius)
    samples = weigh(losses, base_measure)
    below = samples.below
    prefixes = _prefixes(samples)
    # eta solves `sum(q relu(f - eta)^2) = (1 + 2 radius) sum(q relu(f - eta))^2`. The ratio of
    # the two sums grows with eta, so a sample is above eta if and only if, with eta put at its
    # own loss, the ratio is above 1 + 2 radius. The slack is (1 + 2 radius) share - 1, which
    # cancels as written.
    slack = 2 * radius * prefixes.share - prefixes.rest
    gap = prefixes.mean - prefixes.ordered
    active = prefixes.active(prefixes.variance >= slack * gap.square())
    deviation = active.variance.sqrt()
    slack = (2 * radius * active.share - active.rest).clamp_min(0).sqrt()

    # (f - eta) / (mean - eta), where mean - eta = deviation / slack is infinite at radius 0.
    # No variance among the active samples: they are ties, and share by the base measure.
    spread = deviation > 0
    slope = torch.where(spread, slack / torch.where(spread, deviation, 1.0), 0.0)
    height = (1 + (below - active.mean[..., None]) * slope[..., None]).clamp_min(0)
    height = torch.where(below >= active.smallest[..., None], height, 0.0)

    # eta + (1 + 2 radius) sum(q relu(f - eta)), simplified: eta may be huge and would cancel.
    value = samples.top + (active.mean + slack * deviation)
    eta = samples.top + (active.mean - torch.where(spread, deviation / slack, 0.0))
    weights = normalised(samples.mass * height)
    return as_risk(samples, value=value, weights=weights, dual=eta)


def chi_square_penalized_risk(
    losses: Float[Tensor, "*batch n"],
    *,
    strength: float,
    base_measure: Shaped[Tensor, "... n"] | None = None,
) -> Risk:
    """`max sum(p * losses) - strength sum(q (p/q - 1)^2) / 2` over distributions p.

    q is the base measure. The adversary is `q relu(losses - eta) / strength`, the projection of
    `q + q losses / strength` onto the distributions. While no weight is zero this is
    `mean + Var / (2 strength)`: variance regularisation. Large strengths give the mean, small
    ones the maximum. Exact: one sort and three prefix sums, no iteration.

    Args:
        losses: shape (..., n); the last dimension is the samples. For the DRRho risk pass
            excess losses: the target model's minus the reference model's.
        strength: the adversary's price for a unit of divergence, in units of loss; in
            [1e-30, 1e30].
        base_measure: mask or sample weights in place of 1/n; see `drrho.risk.samples.weigh`.

    Returns:
        Value of shape (...), weights, and as dual variable the threshold eta.

    Raises:
        ValueError: `strength` is out of range, or as `drrho.risk.samples.weigh`.
        TypeError: as `drrho.risk.samples.weigh`.

    Source: docs/mathematics.md, "Chi-square penalty".
    """
    check_price(strength, name="strength")
    samples = weigh(losses, base_measure)
    prefixes = _prefixes(samples)
    # With eta at the loss of the k-th sample, the weights above it must not exceed one.
    active = prefixes.active(prefixes.share * (prefixes.mean - prefixes.ordered) < strength)

    below_mean = samples.below - active.mean[..., None]
    share = torch.where(active.share > 0, active.share, 1.0)
    height = (1 / share[..., None] + below_mean / strength).clamp_min(0)
    height = torch.where(samples.below >= active.smallest[..., None], height, 0.0)
    weights = normalised(samples.mass * height)

    # eta + strength / 2 + sum(q relu(f - eta)^2) / (2 strength), simplified as for the ball.
    spread = share * active.variance / (2 * strength)
    value = samples.top + (active.mean + spread - strength * (active.rest / share) / 2)
    eta = samples.top + (active.mean - strength / share)
    return as_risk(samples, value=value, weights=weights, dual=eta)


class _Active(NamedTuple):
    """Of the samples above eta: share of the base measure and what is left of it, weighted mean
    and variance, the smallest loss.
    """

    share: Float64[Tensor, "*batch"]
    rest: Float64[Tensor, "*batch"]
    mean: Float64[Tensor, "*batch"]
    variance: Float64[Tensor, "*batch"]
    smallest: Float64[Tensor, "*batch"]


class _Prefixes(NamedTuple):
    """The k largest losses for every k: what `_Active` has of them, and the k-th itself."""

    ordered: Float64[Tensor, "*batch n"]
    share: Float64[Tensor, "*batch n"]
    rest: Float64[Tensor, "*batch n"]
    mean: Float64[Tensor, "*batch n"]
    variance: Float64[Tensor, "*batch n"]

    def active(self, is_active: Bool[Tensor, "*batch n"]) -> _Active:
        """The samples above eta, given for each whether it is; the largest always is."""
        last = (is_active.sum(dim=-1, keepdim=True) - 1).clamp_min(0)
        columns = (self.share, self.rest, self.mean, self.variance, self.ordered)
        return _Active(*(column.gather(-1, last).squeeze(-1) for column in columns))


def _prefixes(samples: Samples) -> _Prefixes:
    """Sort the losses, largest first, and accumulate.

    The threshold eta of both risks is found from these without a search: whether eta lies below
    the k-th loss depends on mean and variance of the k largest alone.
    """
    ordered, index = samples.below.sort(dim=-1, descending=True)
    mass = samples.mass.gather(-1, index)
    cumulative = mass.cumsum(dim=-1)
    # Zero only where dropped samples come first (equal losses, empty rows): sums are zero too.
    divisor = torch.where(cumulative > 0, cumulative, 1.0)
    mean = (mass * ordered).cumsum(dim=-1) / divisor
    # Welford's increments: a prefix sum of squares would cancel against the squared mean.
    mean_before = pad(mean[..., :-1], (1, 0))
    increments = mass * (ordered - mean_before) * (ordered - mean)
    variance = increments.cumsum(dim=-1).clamp_min(0) / divisor

    total = cumulative[..., -1:]
    whole = torch.where(total > 0, total, 1.0)
    return _Prefixes(ordered, cumulative / whole, (total - cumulative) / whole, mean, variance)


@dataclass(frozen=True, kw_only=True)
class ChiSquareBall:
    """`chi_square_ball_risk` as a configuration.

    Attributes:
        radius: divergence the adversary may spend, not negative.
    """

    radius: float

    def __post_init__(self) -> None:
        check_radius(self.radius)

    @classmethod
    def from_rho(cls, rho: float, *, num_samples: int) -> "ChiSquareBall":
        """The theorem's ball: radius `rho / num_samples`.

        Args:
            rho: confidence parameter, not negative.
            num_samples: size of the data set, also when the risk is applied to batches; with
                the batch size b instead, the deviation's coefficient is sqrt(num_samples / b)
                times too large.
        """
        if num_samples < 1:
            raise ValueError(f"num_samples must be at least 1, got {num_samples}")
        return cls(radius=rho / num_samples)

    def __call__(
        self,
        losses: Float[Tensor, "*batch n"],
        *,
        base_measure: Shaped[Tensor, "... n"] | None = None,
    ) -> Risk:
        risk = chi_square_ball_risk(losses, radius=self.radius, base_measure=base_measure)
        num_samples = losses.shape[-1]
        warn_if_beyond_reach(
            self.radius,
            reach=(num_samples - 1) / 2,
            num_samples=num_samples,
            base_measure=base_measure,
        )
        return risk


@dataclass(frozen=True, kw_only=True)
class ChiSquarePenalized:
    """`chi_square_penalized_risk` as a configuration.

    Attributes:
        strength: the adversary's price for a unit of divergence, in units of loss; positive.
    """

    strength: float

    def __post_init__(self) -> None:
        check_price(self.strength, name="strength")

    def __call__(
        self,
        losses: Float[Tensor, "*batch n"],
        *,
        base_measure: Shaped[Tensor, "... n"] | None = None,
    ) -> Risk:
        return chi_square_penalized_risk(losses, strength=self.strength, base_measure=base_measure)
