"""Resampling with replacement, and percentile intervals of what was computed from the resamples."""

from typing import Literal

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from drrho.runtime.checks import require_at_least

# How torch's quantile interpolates at the lower and at the upper end.
ENDS = {
    "interpolated": ("linear", "linear"),
    "nearest": ("nearest", "nearest"),
    "outward": ("lower", "higher"),
}


def draw_rows(num_rows: int, *, generator: torch.Generator) -> Int64[Tensor, " rows"]:
    """Draw as many rows as there are, with replacement, on the generator's device."""
    return torch.randint(num_rows, (num_rows,), generator=generator, device=generator.device)


def draw_resamples(
    num_rows: int, *, resamples: int, generator: torch.Generator
) -> Int64[Tensor, "resamples rows"]:
    """Draw many resamples at once: memory is 8 bytes times their number times the rows."""
    require_at_least(1, resamples=resamples)
    return torch.stack([draw_rows(num_rows, generator=generator) for _ in range(resamples)])


def percentile_interval(
    values: Float[Tensor, " resamples"],
    *,
    level: float = 0.95,
    ends: Literal["interpolated", "nearest", "outward"] = "interpolated",
) -> tuple[float, float]:
    """Compute the interval that holds the middle `level` of a statistic's values on resamples.

    Args:
        values: one per resample.
        level: share of the values inside, between 0 and 1.
        ends: whether an end is interpolated between two values, the nearest value, or the next
            value outward; the last two also where values are infinite.
    """
    if len(values) == 0 or not 0 < level < 1:
        raise ValueError(
            f"level must be between 0 and 1, and values must be given; got {level}, {values}"
        )
    tail = (1 - level) / 2
    below, above = ENDS[ends]
    values = values.double()
    low = values.quantile(tail, interpolation=below)
    return float(low), float(values.quantile(1 - tail, interpolation=above))


def bootstrap_interval(
    values: Float[Tensor, " n"],
    *,
    generator: torch.Generator,
    level: float = 0.95,
    resamples: int = 1000,
) -> tuple[float, float]:
    """Compute the percentile bootstrap interval of the mean of independent values.

    It says how the mean would differ with other queries from the same source, and nothing about
    other training runs.

    Args:
        values: one per query, for example reciprocal ranks or hits (0 or 1); all finite.
        generator: on any device; the draws are made there.
        level: share of resampled means inside, between 0 and 1.

    Source: B. Efron, "Bootstrap methods: another look at the jackknife", Ann. Statist. 1979.
    """
    if len(values) == 0 or not bool(values.isfinite().all()):
        raise ValueError(f"values must be finite and at least one, got {values}")
    require_at_least(1, resamples=resamples)
    values = values.to(generator.device).double()
    means = [values[draw_rows(len(values), generator=generator)].mean() for _ in range(resamples)]
    return percentile_interval(torch.stack(means), level=level)
