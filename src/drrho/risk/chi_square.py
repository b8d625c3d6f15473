"""Chi-square risks: mean plus deviation (a ball, the theorem's), mean plus variance (a penalty)."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float64
from torch import Tensor
from torch.nn.functional import pad

from drrho.risk.base import BaseMeasure, LossRows, Risk
from drrho.risk.duality import Dual, DualForm, Solved
from drrho.risk.limits import check_not_negative, check_price, warn_if_beyond_reach
from drrho.risk.samples import Samples, as_risk, dot, may_read_values, weigh

# Rounds of elimination before the sort takes over. Normal losses take five to ten; losses of n
# different orders of magnitude would take n.
ROUNDS = 30
# Fewer samples are sorted sooner. Of more, one of every STRIDE tells where to begin.
FEWEST_FOR_ELIMINATION, STRIDE = 1 << 13, 64
# Least distance between the largest loss and any other.
SMALLEST_GAP = torch.finfo(torch.float64).tiny


@dataclass(frozen=True, kw_only=True)
class ChiSquareBall:
    """Risk `max sum(p * losses)` over distributions with `sum(q (p/q - 1)^2) / 2 <= radius`.

    q is the base measure. Equal to `min over eta of eta + sqrt((1 + 2 radius) sum(q
    relu(losses - eta)^2))`; the adversary is proportional to `q relu(losses - eta)`. While no
    weight is zero this is `mean + sqrt(2 radius Var)`, Var the variance with divisor n.
    Radius 0 is the mean; from (1/q_max - 1)/2 on, q_max the base measure of the largest loss,
    it is the maximum. Exact to rounding. The effective sample size of equal samples is at least
    n / (1 + 2 radius). The dual variable is the threshold eta: minus infinity at radius 0, the
    largest loss where all weight is on it.

    Attributes:
        radius: divergence the adversary may spend; finite, not negative, no unit. The theorem's is
            rho / N with N the size of the data set, not of the batch (`from_rho`).

    Source: Duchi and Namkoong, "Variance-based regularization with convex objectives", 2019,
        for the risk; docs/mathematics.md, "Chi-square ball".
    """

    radius: float

    def __post_init__(self) -> None:
        check_not_negative(radius=self.radius)

    @classmethod
    def from_rho(cls, rho: float, *, num_samples: int) -> "ChiSquareBall":
        """Make the theorem's ball, of radius `rho / num_samples`.

        Args:
            rho: confidence parameter, finite and not negative.
            num_samples: size of the data set, also when the risk is applied to batches; with
                the batch size b instead, the deviation's coefficient is sqrt(num_samples / b)
                times too large.
        """
        if num_samples < 1:
            raise ValueError(f"num_samples must be at least 1, got {num_samples}")
        check_not_negative(rho=rho)
        return cls(radius=rho / num_samples)

    def __call__(self, losses: LossRows, *, base_measure: BaseMeasure = None) -> Risk:
        samples = weigh(losses, base_measure)
        warn_if_beyond_reach(self.radius, losses, base_measure, reach=lambda n: (n - 1) / 2)

        def threshold(moments: _Moments) -> Tensor:
            # The slack is (1 + 2 radius) share - 1, which cancels as written. None left: too few
            # samples to spend the radius on, and eta is below them all.
            slack = 2 * self.radius * moments.share - moments.rest
            distance = (moments.variance / slack).sqrt()
            eta = moments.mean - torch.where(moments.variance > 0, distance, 0.0)
            return torch.where(slack < 0, -math.inf, eta)

        active = _active(samples, threshold)
        share, rest, mean, variance = active.moments
        deviation = variance.sqrt()
        slack = (2 * self.radius * share - rest).clamp_min(0).sqrt()

        # (f - eta) / (mean - eta), where mean - eta = deviation / slack is infinite at radius 0.
        # No variance among the active samples: they are ties, and share by the base measure.
        spread = deviation > 0
        slope = torch.where(spread, slack / torch.where(spread, deviation, 1.0), 0.0)
        weights = _proportional(active, slope)

        # eta + (1 + 2 radius) sum(q relu(f - eta)), simplified: eta may be huge and would cancel.
        value = samples.top + (mean + slack * deviation)
        eta = samples.top + (mean - torch.where(spread, deviation / slack, 0.0))
        return as_risk(samples, value=value, weights=weights, dual=eta)

    @property
    def dual_form(self) -> DualForm | None:
        if self.radius == 0:
            return None
        return DualForm(
            density=_density,
            generator=_generator,
            optimum=_optimal_dual_of_ball,
            variable=_eta,
            scale="learned",
            radius=self.radius,
        )


@dataclass(frozen=True, kw_only=True)
class ChiSquare:
    """Risk `max sum(p * losses) - strength sum(q (p/q - 1)^2) / 2` over distributions p.

    q is the base measure. The adversary is `q relu(losses - eta) / strength`, the projection of
    `q + q losses / strength` onto the distributions. While no weight is zero this is
    `mean + Var / (2 strength)`: variance regularisation. Large strengths give the mean, small
    ones the maximum. Exact to rounding, as the ball is. The dual variable is the threshold eta.

    Attributes:
        strength: the adversary's price for a unit of divergence, in units of loss; in
            [1e-30, 1e30].

    Source: docs/mathematics.md, "Chi-square penalty".
    """

    strength: float

    def __post_init__(self) -> None:
        check_price(self.strength, name="strength")

    def __call__(self, losses: LossRows, *, base_measure: BaseMeasure = None) -> Risk:
        samples = weigh(losses, base_measure)
        active = _active(samples, lambda moments: moments.mean - self.strength / moments.share)
        share, rest, mean, variance = active.moments
        share = torch.where(share > 0, share, 1.0)
        weights = _proportional(active, share / self.strength)

        # eta + strength / 2 + sum(q relu(f - eta)^2) / (2 strength), simplified as for the ball.
        spread = share * variance / (2 * self.strength)
        value = samples.top + (mean + spread - self.strength * (rest / share) / 2)
        eta = samples.top + (mean - self.strength / share)
        return as_risk(samples, value=value, weights=weights, dual=eta)

    @property
    def dual_form(self) -> DualForm:
        return DualForm(
            density=_density,
            generator=_generator,
            optimum=lambda at: Dual(
                at.dual + self.strength, torch.full_like(at.value, self.strength)
            ),
            variable=_eta,
            scale="price",
        )


class _Moments(NamedTuple):
    """Moments of sets of samples: one set for each row, or one for each prefix of a row."""

    share: Float64[Tensor, "*sets"]  # of the base measure
    rest: Float64[Tensor, "*sets"]  # one minus the share
    mean: Float64[Tensor, "*sets"]
    variance: Float64[Tensor, "*sets"]


# The threshold eta that would follow if these samples were the ones above it.
_Threshold = Callable[[_Moments], Tensor]


class _Active(NamedTuple):
    """The samples above eta, whose moments are relative to the largest loss."""

    mass: Float64[Tensor, "*batch n"]  # unnormalised; zero where the loss is not above eta
    moment: Float64[Tensor, "*batch n"]  # mass * (losses - mean)
    moments: _Moments


def _active(samples: Samples, threshold: _Threshold) -> _Active:
    """Find the samples above eta, by the quicker of two ways."""
    below = samples.below
    if below.shape[-1] < FEWEST_FOR_ELIMINATION or not may_read_values(below):
        return _by_sorting(samples, threshold)
    # Elimination would leave out a loss of minus infinity, and the risk would not show it.
    if not bool(below.sum().isfinite()):
        return _by_sorting(samples, threshold)
    return _by_elimination(samples, threshold)


def _by_elimination(samples: Samples, threshold: _Threshold) -> _Active:
    """Drop samples below the eta of those that are left, until nothing changes.

    An eta below the solution's rises, and never passes it; one above it falls. So it does not
    matter where the search begins, and it ends.
    """
    below, mass = samples.below[..., ::STRIDE].contiguous(), samples.mass[..., ::STRIDE]
    active = _active(samples._replace(below=below, mass=mass), threshold)
    # Fresh memory takes longer than a pass over it, and a mask of float64 is quicker than a bool.
    mass, moment = torch.empty_like(samples.below), torch.empty_like(samples.below)
    count = None
    for _ in range(ROUNDS):
        eta = threshold(active.moments).clamp_max(-SMALLEST_GAP)
        torch.gt(samples.below, eta[..., None], out=mass)
        count_before, count = count, mass.sum(dim=-1)
        if not samples.alike:
            mass *= samples.mass
        if count_before is not None and torch.equal(count, count_before):
            return active
        active = _restricted(samples, mass, out=moment)
    return _by_sorting(samples, threshold)


def _by_sorting(samples: Samples, threshold: _Threshold) -> _Active:
    """Sort the losses, largest first, and accumulate: no search, and no value is read.

    Whether eta is below the k-th loss depends on the moments of the k largest alone.
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
    variance = increments.cumsum(dim=-1) / divisor
    moments = _moments(cumulative, cumulative[..., -1:], mean, variance)

    is_active = ordered > threshold(moments)
    # None is above an eta that is the largest loss itself, nor above NaN.
    last = (is_active.sum(dim=-1, keepdim=True) - 1).clamp_min(0)
    smallest = ordered.gather(-1, last)
    return _restricted(samples, torch.where(samples.below >= smallest, samples.mass, 0.0))


def _restricted(
    samples: Samples,
    mass: Float64[Tensor, "*batch n"],
    *,
    out: Float64[Tensor, "*batch n"] | None = None,
) -> _Active:
    """Restrict the samples to a mass, the base measure's or zero; `out` takes the moment."""
    sum_of_mass = mass.sum(dim=-1)
    divisor = torch.where(sum_of_mass > 0, sum_of_mass, 1.0)
    mean = dot(mass, samples.below) / divisor
    moment = torch.sub(samples.below, mean[..., None], out=out).mul_(mass)
    # Masses of zero and one are their own squares.
    centred = moment if samples.alike else samples.below - mean[..., None]
    variance = dot(moment, centred) / divisor
    return _Active(mass, moment, _moments(sum_of_mass, samples.total, mean, variance))


def _proportional(active: _Active, slope: Float64[Tensor, "*batch"]) -> Tensor:
    """Weights proportional to `mass * (1 + slope * (losses - mean))`; overwrites the moment."""
    weights = active.moment.mul_(slope[..., None]).add_(active.mass).clamp_min_(0)
    total = weights.sum(dim=-1, keepdim=True)
    return weights.div_(torch.where(total > 0, total, 1.0))


def _moments(part: Tensor, total: Tensor, mean: Tensor, variance: Tensor) -> _Moments:
    whole = torch.where(total > 0, total, 1.0)
    return _Moments(part / whole, (total - part) / whole, mean, variance)


def _density(above: Tensor, scale: Tensor) -> Tensor:
    return (1 + above / scale).clamp_min(0)


def _generator(density: Tensor) -> Tensor:
    return (density - 1).square() / 2


def _eta(dual: Dual) -> Tensor:
    return dual.location - dual.scale


def _optimal_dual_of_ball(at: Solved) -> Dual:
    _, eta, f, q, *_ = at
    scale = (q * (f - eta).clamp_min(0)).sum().clamp(at.smallest_scale, at.largest_scale)
    location = torch.where(eta.isfinite(), eta + scale, (q * f).sum())
    # All weight on the largest: their common density is one over their share.
    share = torch.where(f >= eta, q, 0.0).sum()
    at_maximum = (q * (f > eta)).sum() == 0
    return Dual(torch.where(at_maximum, eta - scale * (1 / share - 1), location), scale)
