"""Chi-square ball: the ambiguity set of the generalisation theorem; mean plus deviation."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float, Float64, Shaped
from torch import Tensor
from torch.nn.functional import pad

from drrho.risk.limits import check_radius, warn_if_beyond_reach
from drrho.risk.result import Risk
from drrho.risk.samples import as_risk, normalised, weigh


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
    active = _active_set(below, samples.mass, radius)
    deviation = active.variance.sqrt()
    slack = active.slack.sqrt()

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


class _ActiveSet(NamedTuple):
    """Of the samples with positive weight: weighted mean and variance, the smallest loss, and
    the slack `(1 + 2 radius) P - 1`, P their share of the base measure.
    """

    mean: Float64[Tensor, "*batch"]
    variance: Float64[Tensor, "*batch"]
    smallest: Float64[Tensor, "*batch"]
    slack: Float64[Tensor, "*batch"]


def _active_set(
    below: Float64[Tensor, "*batch n"], mass: Float64[Tensor, "*batch n"], radius: float
) -> _ActiveSet:
    """Find the samples above eta.

    The threshold eta solves `sum(q relu(f - eta)^2) = (1 + 2 radius) sum(q relu(f - eta))^2`.
    The ratio of the two sums grows with eta, so a sample is above eta if and only if, with eta
    put at its own loss, the ratio is above 1 + 2 radius. Mean and variance of the k largest
    losses decide that for the k-th sample, and there is no search.
    """
    ordered, index = below.sort(dim=-1, descending=True)
    ordered_mass = mass.gather(-1, index)
    cumulative = ordered_mass.cumsum(dim=-1)
    # Zero only where dropped samples come first (equal losses, empty rows): sums are zero too.
    divisor = torch.where(cumulative > 0, cumulative, 1.0)
    mean = (ordered_mass * ordered).cumsum(dim=-1) / divisor
    # Welford's increments: a prefix sum of squares would cancel against the squared mean.
    mean_before = pad(mean[..., :-1], (1, 0))
    increments = ordered_mass * (ordered - mean_before) * (ordered - mean)
    variance = increments.cumsum(dim=-1).clamp_min(0) / divisor

    total = cumulative[..., -1:]
    slack = (2 * radius * cumulative - (total - cumulative)) / torch.where(total > 0, total, 1.0)
    is_active = variance >= slack * (mean - ordered).square()
    last = (is_active.sum(dim=-1, keepdim=True) - 1).clamp_min(0)

    def at_last(column: Float64[Tensor, "*batch n"]) -> Float64[Tensor, "*batch"]:
        return column.gather(-1, last).squeeze(-1)

    return _ActiveSet(
        mean=at_last(mean),
        variance=at_last(variance),
        smallest=at_last(ordered),
        slack=at_last(slack).clamp_min(0),
    )


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
