"""The mean: the risk without an adversary, and a limit of every other risk."""

from dataclasses import dataclass

from drrho.risk.base import BaseMeasure, LossRows, Risk
from drrho.risk.samples import as_risk, weigh


@dataclass(frozen=True, kw_only=True)
class Mean:
    """Risk `sum(q * losses)`, q the base measure: ordinary empirical risk minimisation.

    The weights are q, and there is no dual variable.
    """

    def __call__(self, losses: LossRows, *, base_measure: BaseMeasure = None) -> Risk:
        samples = weigh(losses, base_measure)
        weights = samples.measure
        value = samples.top + (weights * samples.below).sum(dim=-1)
        return as_risk(samples, value=value, weights=weights, dual=None)
