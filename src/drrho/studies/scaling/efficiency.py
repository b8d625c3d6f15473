"""Data efficiency: how many times the samples one method needs to equal another."""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

from drrho.evaluation.metrics.bootstrap import draw_resamples
from drrho.studies.scaling.laws import interval_of

Bound = Literal["exact", "at_least", "at_most"]
# Scores of one method: number of training samples -> seed -> score.
Scores = Mapping[int, Mapping[int, float]]


@dataclass(frozen=True, kw_only=True)
class SampleRatio:
    """Samples of the baseline that equal a method's score, over the method's own samples.

    Attributes:
        samples: training samples of the method.
        score: its mean over seeds.
        ratio: where the baseline was not measured that far, the ratio at the end of what was
            measured.
        bound: "exact" inside the measured range; "at_least" where the score is above all of the
            baseline's, "at_most" where it is below all of them.
        low, high: ends of the bootstrap interval; 0 or infinite beyond the measured range.
    """

    samples: int
    score: float
    ratio: float
    bound: Bound
    low: float
    high: float

    def __post_init__(self) -> None:
        for name in ("low", "high"):
            if math.isnan(getattr(self, name)):  # what is infinite is null in a file
                object.__setattr__(self, name, math.inf)


def samples_at_equal_score(
    samples: Sequence[int], scores: Sequence[float], score: float
) -> tuple[float, Bound]:
    """Number of samples that gives a score, by a curve through measured scores.

    The curve is the isotonic regression of the scores (the closest that never falls with more
    samples), linear in the logarithm of the samples between them. Where it is flat, the fewest
    samples that reach the score are meant. Outside of the measured range the answer is its end,
    marked as a bound: nothing is extrapolated. Samples must increase.

    Raises:
        ValueError: fewer than two numbers of samples, not increasing, or a score not finite.
        ModuleNotFoundError: scipy is not installed.

    Source: docs/mathematics.md, "Data efficiency".
    """
    # Slow to import; comes with drrho[report].
    from scipy.optimize import isotonic_regression  # noqa: PLC0415

    if len(samples) != len(scores) or len(samples) < 2:
        raise ValueError(
            f"a curve needs a score at two numbers of samples or more, got {len(samples)} numbers "
            f"and {len(scores)} scores"
        )
    if samples[0] < 1 or any(b <= a for a, b in itertools.pairwise(samples)):
        raise ValueError(f"samples must be positive and increase, got {list(samples)}")
    if not all(map(math.isfinite, [*scores, score])):
        raise ValueError(f"scores must be finite, got {list(scores)} and {score}")
    curve = isotonic_regression(np.asarray(scores, dtype=np.float64)).x
    if score > curve[-1]:
        return float(samples[-1]), "at_least"
    if score < curve[0]:
        return float(samples[0]), "at_most"
    reached = int(np.searchsorted(curve, score, side="left"))
    if reached == 0:
        return float(samples[0]), "exact"
    below, above = curve[reached - 1], curve[reached]
    share = (score - below) / (above - below)
    logs = [math.log(samples[i]) for i in (reached - 1, reached)]
    return math.exp(logs[0] + share * (logs[1] - logs[0])), "exact"


def sample_ratios(
    method: Scores,
    baseline: Scores,
    *,
    generator: torch.Generator,
    resamples: int = 1000,
    level: float = 0.95,
) -> list[SampleRatio]:
    """The sample ratio at each number of samples of `method`, with an interval over seeds.

    A resample draws seeds with replacement, the same for both methods and all numbers of samples,
    and repeats the computation with their means. One that ends outside of the measured range counts
    as 0 or infinite, so that an interval has no end there. With few seeds it is too narrow.

    Raises:
        ValueError: the seeds are not the same everywhere, or fewer than two; as
            `samples_at_equal_score`.
    """
    seeds = _common_seeds(method, baseline)
    draws = draw_resamples(len(seeds), resamples=resamples, generator=generator).tolist()
    numbers = sorted(baseline)

    def compare(samples: int, chosen: list[int]) -> tuple[float, float, Bound]:
        score = mean_score(method[samples], chosen)
        curve = [mean_score(baseline[number], chosen) for number in numbers]
        equal, bound = samples_at_equal_score(numbers, curve, score)
        return score, equal / samples, bound

    rows = []
    for samples in sorted(method):
        score, ratio, bound = compare(samples, seeds)
        drawn = []
        for draw in draws:
            _, value, side = compare(samples, [seeds[i] for i in draw])
            drawn.append({"exact": value, "at_least": math.inf, "at_most": 0.0}[side])
        low, high = interval_of(drawn, level=level)
        rows.append(
            SampleRatio(samples=samples, score=score, ratio=ratio, bound=bound, low=low, high=high)
        )
    return rows


def _common_seeds(method: Scores, baseline: Scores) -> list[int]:
    sets = {tuple(sorted(runs)) for scores in (method, baseline) for runs in scores.values()}
    if len(sets) != 1:
        raise ValueError(f"all runs must have the same seeds, to be paired; got {sorted(sets)}")
    seeds = list(sets.pop())
    if len(seeds) < 2:
        raise ValueError(f"an interval over seeds needs two or more, got seeds {seeds}")
    return seeds


def mean_score(runs: Mapping[int, float], seeds: Sequence[int] | None = None) -> float:
    """The mean over some seeds, or over all."""
    scores = list(runs.values()) if seeds is None else [runs[seed] for seed in seeds]
    return sum(scores) / len(scores)
