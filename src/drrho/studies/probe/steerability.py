"""Steerability: how much of plain training's excess risk a reference would remove.

From the losses of two pilots, trained on disjoint halves of the target's data, and of candidate
references, all on the same held-out samples. Source: docs/mathematics.md, "Steerability".
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from jaxtyping import Float64
from torch import Tensor

from drrho.evaluation.metrics.bootstrap import draw_resamples, percentile_interval
from drrho.risk import effective_sample_size
from drrho.runtime.records import OPTIONAL

# A temperature of 0.05 where 0 is right costs (0.05 / 1.05)^2 = 0.2 % of plain training's excess
# risk; a temperature of 0 would give everything to one sample.
SMALLEST_KAPPA = 0.05
LEVEL = 0.95  # of every interval
FEWEST_SAMPLES = 10


class Moments(NamedTuple):
    """Second moments of pilots and references, for each set of sample weights.

    Attributes:
        pilots: `v_pp = Var(l_1 - l_2) / 2`, what one pilot's training adds to its losses.
        excess: `Cov(l_1 - b, l_2 - b)` of each reference.
        signal: `Cov(l_1, l_2)`, the same without a reference.
        shared: `Cov((l_1 + l_2) / 2, b)` of each reference.
        reference: `Var(b)` of each reference.
    """

    pilots: Float64[Tensor, " resamples"]
    excess: Float64[Tensor, "references resamples"]
    signal: Float64[Tensor, " resamples"]
    shared: Float64[Tensor, "references resamples"]
    reference: Float64[Tensor, "references resamples"]


class Estimate(NamedTuple):
    """A number from all samples, and the ends of its bootstrap interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class Steerability:
    """Steerability of one reference, and what it was computed from.

    Attributes:
        steerability: S in [0, 1], the predicted share of plain training's excess risk removed.
        kappa: variance of the reference's deviation divided by plain training's.
        too_close: whether the interval of kappa is below 0: the reference shares the noise of
            the pilots' training, so it has seen what they were trained on.
        scaled: S of `beta * b`, the reference brought to the pilots' scale.
        beta: slope of the pilots' losses on the reference's.
        scale_mismatch: whether the interval of beta excludes 1.
        variance_ratio: `Var(l_p - b) / Var(l_p)`, a baseline.
        resolved: whether the interval of S minus the next-ranked reference's S excludes 0;
            None for the last.
        temperature: suggested temperature of the KL penalty on negative log-likelihoods, in nats.
        radius: suggested radius of the chi-square ball.
    """

    steerability: Estimate
    kappa: Estimate
    too_close: bool
    scaled: Estimate
    beta: Estimate
    scale_mismatch: bool
    variance_ratio: float
    resolved: bool | None
    temperature: float | None = field(default=None, metadata=OPTIONAL)
    radius: float | None = field(default=None, metadata=OPTIONAL)


def bootstrap_weights(
    num_samples: int, *, resamples: int, generator: torch.Generator
) -> Float64[Tensor, "resamples samples"]:
    """Sample weights that sum to one: all equal in row 0, then bootstrap resamples.

    Every reference is judged with the same weights, so differences between them are paired.

    Raises:
        ValueError: fewer than 10 samples, or no resamples.
    """
    if num_samples < FEWEST_SAMPLES:
        raise ValueError(
            f"a probe needs at least {FEWEST_SAMPLES} held-out samples, got {num_samples}"
        )
    drawn = draw_resamples(num_samples, resamples=resamples, generator=generator)
    counts = torch.zeros(resamples + 1, num_samples, dtype=torch.float64)
    counts[1:].scatter_add_(1, drawn, torch.ones_like(drawn, dtype=torch.float64))
    counts[0] = 1.0
    return counts / num_samples


def loss_moments(
    pilots: Float64[Tensor, "2 samples"],
    references: Float64[Tensor, "references samples"],
    *,
    weights: Float64[Tensor, "resamples samples"],
) -> Moments:
    """Computes the moments of losses l of two pilots and b of references, on the same samples.

    Raises:
        ValueError: a loss is not finite.
    """
    for name, losses in (("pilots", pilots), ("references", references)):
        if not losses.isfinite().all():
            raise ValueError(f"{name} have losses that are not finite; leave those samples out")

    def covariance(x: Tensor, y: Tensor) -> Tensor:
        # Moving both to mean zero changes nothing but rounding.
        x, y = x - x.mean(), y - y.mean()
        return weights @ (x * y) - (weights @ x) * (weights @ y)

    return moments_of(covariance, pilots, references)


def moments_of(
    covariance: Callable[[Tensor, Tensor], Tensor],
    pilots: Iterable[Tensor],
    references: Iterable[Tensor],
) -> Moments:
    """The moments of two pilots and references by a covariance with a value for each resample."""
    first, second = pilots
    middle, difference = (first + second) / 2, first - second
    return Moments(
        pilots=covariance(difference, difference) / 2,
        excess=torch.stack([covariance(first - b, second - b) for b in references]),
        signal=covariance(first, second),
        shared=torch.stack([covariance(middle, b) for b in references]),
        reference=torch.stack([covariance(b, b) for b in references]),
    )


def rank_references(
    moments: Moments,
    names: Sequence[str],
    *,
    pilot_share: float = 0.5,
) -> dict[str, Steerability]:
    """Ranks references by descending steerability.

    Args:
        moments: moments of all samples in row 0, then of bootstrap resamples.
        names: names of the references, in the order of the moments.
        pilot_share: h / n, the share of the target's samples that a pilot was trained on.

    Raises:
        ValueError: names do not fit, a share out of (0, 1], or pilots that are identical.
    """
    if len(names) != len(moments.excess) or len(set(names)) < len(names):
        raise ValueError(f"{len(moments.excess)} references need as many names, got {list(names)}")
    if not 0 < pilot_share <= 1:
        raise ValueError(f"pilot_share must be in (0, 1], got {pilot_share}")
    # Rounding leaves 1e-16 of the losses' variance where the pilots differ by a constant.
    if not moments.pilots[0] > 1e-12 * moments.signal[0].abs():
        raise ValueError(
            "the pilots' losses differ by a constant only: they must be trained apart, on "
            "disjoint halves of the data"
        )
    # A resample of one sample alone has no variance to divide by.
    tiny = torch.finfo(torch.float64).tiny
    plain = (moments.pilots * pilot_share).clamp_min(tiny)
    kappa = moments.excess / plain
    scores = _score(kappa)
    beta = moments.shared / moments.reference.clamp_min(tiny)
    scaled = _score(
        (moments.signal - moments.shared**2 / moments.reference.clamp_min(tiny)) / plain
    )
    raw = (moments.excess + moments.pilots) / (moments.signal + moments.pilots)
    order = scores[:, 0].argsort(descending=True, stable=True).tolist()
    ranked = {}
    for place, k in enumerate(order):
        following = order[place + 1] if place + 1 < len(order) else None
        slope, deviation = interval(beta[k]), interval(kappa[k])
        excess = float(moments.excess[k, 0].clamp_min(0))
        ranked[names[k]] = Steerability(
            steerability=interval(scores[k]),
            kappa=deviation,
            too_close=deviation.high < 0,
            scaled=interval(scaled[k]),
            beta=slope,
            scale_mismatch=not slope.low <= 1 <= slope.high,
            variance_ratio=float(raw[k, 0]),
            temperature=suggested_temperature(kappa[k]),
            radius=float(plain[0]) ** 2 / (2 * (float(plain[0]) + excess)),
            resolved=None if following is None else _differ(scores[k], scores[following]),
        )
    return ranked


def suggested_temperature(kappa: Float64[Tensor, " resamples"]) -> float:
    """The geometric mean of kappa over all weights, none counted below 0.05.

    The best temperature of the KL penalty on negative log-likelihoods is kappa. The mean is
    geometric because a temperature wrong by a factor costs the same in either direction.
    """
    return math.exp(float(kappa.clamp_min(SMALLEST_KAPPA).log().mean()))


def interval(values: Float64[Tensor, " resamples"]) -> Estimate:
    """Row 0 as the estimate, the percentiles of the others as its interval."""
    return Estimate(float(values[0]), *percentile_interval(values[1:], level=LEVEL))


def effective_share(excess: Float64[Tensor, " samples"], temperature: float) -> float:
    """Effective sample size of the KL penalty's weights, as a share of the samples.

    Source: docs/mathematics.md, "Effective sample size".
    """
    weights = torch.softmax(excess / temperature, dim=0)
    return float(effective_sample_size(weights) / len(excess))


def _score(kappa: Tensor) -> Tensor:
    return 1 / (1 + kappa.clamp_min(0))


def _differ(one: Tensor, other: Tensor) -> bool:
    difference = interval(one - other)
    return difference.low > 0 or difference.high < 0
