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
    """The interval that holds the middle `level` of a statistic's values on resamples.

    Args:
        values: one per resample.
        level: share of the values inside, between 0 and 1.
        ends: between two values, the nearer value, or the value farther out; the latter two
            also where values are infinite.

    Raises:
        ValueError: no values, or a level out of range.
    """
    if len(values) == 0 or not 0 < level < 1:
        raise ValueError(
            f"level must lie between 0 and 1 and values be given, got {level}, {values}"
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
    """Percentile bootstrap interval of the mean of independent values.

    The values of one data set are drawn again with replacement, as many as there are, and the
    interval holds the middle `level` of the means. It speaks of other queries from the same
    source, not of other training runs.

    Args:
        values: one per query, for example reciprocal ranks or hits (0 or 1).
        generator: on any device; the draws are made there.
        level: share of resamples inside, between 0 and 1.
        resamples: number of repetitions; memory is that of the values whatever their number.

    Returns:
        Lower and upper end, in the unit of the values.

    Raises:
        ValueError: no values, one that is not finite, or an option out of range.

    Source: B. Efron, "Bootstrap methods: another look at the jackknife", Ann. Statist. 1979.
    """
    if len(values) == 0 or not bool(values.isfinite().all()):
        raise ValueError(f"values must be finite and at least one, got {values}")
    require_at_least(1, resamples=resamples)
    values = values.to(generator.device).double()
    means = [values[draw_rows(len(values), generator=generator)].mean() for _ in range(resamples)]
    return percentile_interval(torch.stack(means), level=level)
