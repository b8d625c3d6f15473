"""The mean: the risk without an adversary, and a limit of every other risk."""

from dataclasses import dataclass

from jaxtyping import Float, Shaped
from torch import Tensor

from drrho.risk.base import Risk
from drrho.risk.samples import as_risk, weigh


def mean_risk(
    losses: Float[Tensor, "*batch n"],
    *,
    base_measure: Shaped[Tensor, "... n"] | None = None,
) -> Risk:
    """`sum(q * losses)`, q the base measure: ordinary empirical risk minimisation.

    Args:
        losses: shape (..., n); the last dimension is the samples.
        base_measure: mask or sample weights in place of 1/n; see `drrho.risk.samples.weigh`.

    Returns:
        Value of shape (...), weights q, and no dual variable.

    Raises:
        ValueError, TypeError: as `drrho.risk.samples.weigh`.
    """
    samples = weigh(losses, base_measure)
    weights = samples.measure
    value = samples.top + (weights * samples.below).sum(dim=-1)
    return as_risk(samples, value=value, weights=weights, dual=None)


@dataclass(frozen=True, kw_only=True)
class Mean:
    """`mean_risk` as a configuration."""

    def __call__(
        self,
        losses: Float[Tensor, "*batch n"],
        *,
        base_measure: Shaped[Tensor, "... n"] | None = None,
    ) -> Risk:
        return mean_risk(losses, base_measure=base_measure)
