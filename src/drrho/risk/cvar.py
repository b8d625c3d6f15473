"""Conditional value at risk: the mean of the worst fraction of the losses (data selection)."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from drrho.risk.base import BaseMeasure, LossRows, Risk
from drrho.risk.duality import Dual, DualForm
from drrho.risk.limits import check_fraction
from drrho.risk.samples import Samples, as_risk, dot, weigh

# 0.07 * 100 is 7.000000000000001 in binary. Without a margin an eighth sample would enter, with
# no weight, and the threshold would be its loss. Relative, above float64 sums' rounding.
ROUNDING = 1e-12


@dataclass(frozen=True, kw_only=True)
class CVaR:
    """Risk `max sum(p * losses)` over distributions with `p <= q / fraction`, q the base measure.

    Equal to `min over nu of nu + sum(q * relu(losses - nu)) / fraction`. The adversary gives
    q / fraction to the samples above the threshold nu, and what remains to the samples at it,
    in proportion to q: ties share, so the weights do not depend on the order of the samples.
    Fraction 1 is the mean; a fraction of at most 1/n is the maximum. The dual variable is nu, the
    smallest loss that takes part.

    Attributes:
        fraction: share of the base measure that is kept, in (0, 1]; alpha in the literature.

    Source: Rockafellar and Uryasev, "Optimization of conditional value-at-risk", 2000;
        docs/mathematics.md, "CVaR ball".
    """

    fraction: float

    def __post_init__(self) -> None:
        check_fraction(self.fraction)

    def __call__(self, losses: LossRows, *, base_measure: BaseMeasure = None) -> Risk:
        samples = weigh(losses, base_measure)
        # The losses themselves: only their order counts, and the threshold is one of them.
        losses = samples.losses.detach()
        kept = self.fraction * samples.total[..., None]
        threshold = _threshold(samples, self.fraction)

        weights = samples.times_mass((losses > threshold).double())
        tied = samples.times_mass((losses == threshold).double())
        remainder = kept - weights.sum(dim=-1, keepdim=True)
        # The clamp absorbs the rounding of the two sums; the sum of the weights is then restored.
        share = (remainder / tied.sum(dim=-1, keepdim=True)).clamp(0, 1)
        weights.add_(tied.mul_(share))
        total = weights.sum(dim=-1, keepdim=True)
        weights.div_(torch.where(total > 0, total, 1.0))

        above_nu = tied.copy_(losses).sub_(threshold)  # in the same memory
        nu = threshold.squeeze(-1)
        return as_risk(samples, value=nu + dot(weights, above_nu), weights=weights, dual=nu)

    @property
    def dual_form(self) -> DualForm:
        return DualForm(
            density=lambda above, scale: (above > 0).double() / self.fraction,  # noqa: ARG005
            generator=torch.zeros_like,
            optimum=lambda at: Dual(at.dual, at.spread),
            variable=lambda dual: dual.location,
            scale="spread",
            cap=1 / self.fraction,
        )


def _threshold(samples: Samples, fraction: float) -> Float[Tensor, "*batch 1"]:
    """The largest loss with at least `fraction` of the base measure at or above it."""
    losses = samples.losses.detach()
    num_samples = losses.shape[-1]
    if not samples.alike:
        ordered, index = losses.sort(dim=-1, descending=True)
        kept = fraction * samples.total[..., None]
        reached = samples.mass.gather(-1, index).cumsum(dim=-1) >= kept * (1 - ROUNDING)
        last = (~reached).sum(dim=-1, keepdim=True).clamp(max=num_samples - 1)
        return ordered.gather(-1, last)
    k = max(1, math.ceil(fraction * num_samples * (1 - ROUNDING)))
    return losses.kthvalue(num_samples - k + 1, dim=-1, keepdim=True).values
