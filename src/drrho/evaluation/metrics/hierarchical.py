"""Confidence intervals of means over training runs and test queries, and of their differences.

A score has two sources of chance: the seed of the run (initial weights and order of the data) and
the queries of the test set. Every run answers every query, so whole runs and whole queries are
drawn again, independently.
"""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from drrho.evaluation.metrics.bootstrap import draw_rows, percentile_interval
from drrho.runtime.checks import require_at_least

Statistic = Callable[[Float[Tensor, "resamples tables"]], Float[Tensor, " resamples"]]


def resampled_means(
    tables: Sequence[Float[Tensor, "_seeds queries"]],
    *,
    generator: torch.Generator,
    resamples: int = 1000,
) -> Float[Tensor, "resamples tables"]:
    """Compute means of several tables of values under the same draws of seeds and queries.

    In each repetition queries and seeds are drawn with replacement, as many as there are, and a
    table's mean is taken over them,

        m = 1/(S n) sum_s sum_i  a_s b_i v_si,     a, b: how often seed s and query i were drawn.

    With one seed the queries alone are drawn, as `bootstrap_interval` does. A table of one row
    beside others of S rows (a model that was trained once) is a constant over the seeds.

    Args:
        tables: one per model; rows are seeds and columns are queries, the same in every table;
            all values finite.
        generator: on the CPU.

    Returns:
        Means in float64.

    Source: A. B. Owen, "The pigeonhole bootstrap", Ann. Appl. Statist. 2007.
    """
    values = _aligned(tables)
    _, num_seeds, num_queries = values.shape
    require_at_least(1, resamples=resamples)
    means = torch.empty(resamples, len(values), dtype=torch.float64)
    for index in range(resamples):
        drawn = draw_rows(num_queries, generator=generator)
        counts = torch.bincount(drawn, minlength=num_queries).double()
        by_seed = values @ (counts / num_queries)
        if num_seeds > 1:
            by_seed = by_seed[:, draw_rows(num_seeds, generator=generator)]
        means[index] = by_seed.mean(dim=1)
    return means


def hierarchical_interval(
    tables: Sequence[Float[Tensor, "_seeds queries"]],
    statistic: Statistic,
    *,
    generator: torch.Generator,
    level: float = 0.95,
    resamples: int = 1000,
) -> tuple[float, float]:
    """Compute the percentile interval of a statistic of the means of `resampled_means`.

    With few seeds it is too narrow: the draws have (S - 1)/S of the variance over S seeds.

    Args:
        statistic: the means of the tables, in columns, into one number per row; a repetition
            in which it is not finite (a quotient whose denominator vanishes) counts as infinite.
        level: share of the repetitions inside, between 0 and 1.
    """
    means = resampled_means(tables, generator=generator, resamples=resamples)
    values = statistic(means).double()
    values = torch.where(values.isnan(), torch.inf, values)
    return percentile_interval(values, level=level, ends="nearest")


def mean_of_first(means: Float[Tensor, "resamples tables"]) -> Float[Tensor, " resamples"]:
    """Take the score of a model."""
    return means[:, 0]


def first_minus_second(means: Float[Tensor, "resamples tables"]) -> Float[Tensor, " resamples"]:
    """Take the paired difference of two models."""
    return means[:, 0] - means[:, 1]


def recovered_gap(means: Float[Tensor, "resamples 3"]) -> Float[Tensor, " resamples"]:
    """The performance gap recovered, (method - weak) / (ceiling - weak).

    0 is as good as the weak reference, 1 as the strong model's ceiling; nan where the ceiling is
    not above the weak reference, so that there is no gap.

    Args:
        means: of method, weak reference and ceiling.

    Source: C. Burns et al., "Weak-to-strong generalization", arXiv 2312.09390, section 3.
    """
    method, weak, ceiling = means.unbind(dim=1)
    gap = ceiling - weak
    return torch.where(gap > 0, (method - weak) / gap, torch.nan)


def _aligned(
    tables: Sequence[Float[Tensor, "_seeds queries"]],
) -> Float[Tensor, "tables seeds queries"]:
    if not tables:
        raise ValueError("there must be at least one table of values")
    num_seeds = max(len(table) for table in tables)
    shapes = [tuple(table.shape) for table in tables]
    if any(len(table) not in (1, num_seeds) for table in tables) or 0 in shapes[0]:
        raise ValueError(f"tables must have the same seeds, at least one, got shapes {shapes}")
    if len({columns for _, columns in shapes}) > 1:
        raise ValueError(f"tables must have the same queries, got shapes {shapes}")
    values = torch.stack([table.double().expand(num_seeds, -1) for table in tables])
    if not bool(values.isfinite().all()):
        raise ValueError("values must be finite")
    return values
