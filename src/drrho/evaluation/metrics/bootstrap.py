"""How far a mean over queries can be trusted."""

import torch
from jaxtyping import Float
from torch import Tensor


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
        resamples: number of repetitions; memory is O(n) whatever their number.

    Returns:
        Lower and upper end, in the unit of the values.

    Raises:
        ValueError: no values, one that is not finite, or an option out of range.

    Source: B. Efron, "Bootstrap methods: another look at the jackknife", Ann. Statist. 1979.
    """
    if len(values) == 0 or not bool(values.isfinite().all()):
        raise ValueError(f"values must be finite and at least one, got {values}")
    if not 0 < level < 1:
        raise ValueError(f"level must lie between 0 and 1, got {level}")
    if resamples < 1:
        raise ValueError(f"resamples must be at least 1, got {resamples}")
    device = generator.device
    values = values.to(device).double()
    means = torch.empty(resamples, dtype=torch.float64, device=device)
    for index in range(resamples):
        drawn = torch.randint(len(values), (len(values),), generator=generator, device=device)
        means[index] = values[drawn].mean()
    tail = (1 - level) / 2
    ends = torch.tensor([tail, 1 - tail], dtype=torch.float64, device=device)
    low, high = means.quantile(ends).tolist()
    return low, high
