"""KL penalty and CVaR ball at once: weights that are smooth, and none above a limit."""

import math
from dataclasses import dataclass

import torch

from drrho.risk.base import BaseMeasure, LossRows, Risk
from drrho.risk.duality import Dual, DualForm
from drrho.risk.kl import kl_generator, tilt
from drrho.risk.limits import check_fraction, check_price
from drrho.risk.samples import as_risk, normalised, weigh


@dataclass(frozen=True, kw_only=True)
class KLCVaR:
    """Risk `max sum(p * losses) - temperature KL(p || q)` over `p <= q / fraction`.

    q is the base measure. The adversary is `q min(exp((losses - nu) / temperature), 1 / fraction)`:
    data weighting in which no sample counts more than 1 / fraction times its share, so that one
    outlier cannot take the batch. Fraction 1 is the mean; fractions of at most 1/n leave the
    KL penalty alone, small temperatures CVaR alone. Exact: one sort and two prefix sums. The dual
    variable is nu.

    Attributes:
        temperature: the adversary's price per nat, in units of loss; in [1e-30, 1e30].
        fraction: the smallest share of the base measure that may have all weight, in (0, 1].

    Source: Levy, Carmon, Duchi and Sidford, "Large-scale methods for distributionally robust
        optimization", 2020, who smooth CVaR so; docs/mathematics.md, "KL penalty within a CVaR
        ball".
    """

    temperature: float
    fraction: float

    def __post_init__(self) -> None:
        check_price(self.temperature, name="temperature")
        check_fraction(self.fraction)

    def __call__(self, losses: LossRows, *, base_measure: BaseMeasure = None) -> Risk:
        temperature, fraction = self.temperature, self.fraction
        samples = weigh(losses, base_measure)
        measure = samples.measure
        z = samples.below / temperature
        log_cap = -math.log(fraction)

        # With the k largest at the cap, the others are exp(z + log_scale(k)) for the mass that is
        # left. The smallest k at which they respect the cap is the solution.
        ordered, index = z.sort(dim=-1, descending=True)
        sorted_measure = measure.gather(-1, index)
        capped = sorted_measure.cumsum(dim=-1) - sorted_measure  # share of those before each
        log_rest = (sorted_measure.log() + ordered).flip(-1).logcumsumexp(dim=-1).flip(-1)
        log_scale = ((fraction - capped).clamp_min(0) / fraction).log() - log_rest
        respected = log_scale + ordered <= log_cap
        first = (~respected).cumprod(dim=-1).sum(dim=-1, keepdim=True).clamp(max=z.shape[-1] - 1)

        # Nobody at the cap is the KL penalty alone; its log-mean keeps its digits when small.
        uncapped = tilt(z, samples)
        none_capped = first.squeeze(-1) == 0
        # The smallest at the cap reaches it. That counts where those have all, and the log is of 0.
        smallest_capped = ordered.gather(-1, (first - 1).clamp_min(0))
        log_scale = torch.maximum(log_scale.gather(-1, first), log_cap - smallest_capped)
        log_scale = torch.where(none_capped, -uncapped.log_mean, log_scale.squeeze(-1))
        log_density = log_scale[..., None] + z
        at_cap = log_density > log_cap
        weights = normalised(measure * log_density.clamp(max=log_cap).exp())

        share_capped = torch.where(at_cap, weights, 0.0)
        gained = (share_capped * (z - log_cap)).sum(dim=-1)
        rest = 1 - share_capped.sum(dim=-1)
        nu = samples.top - temperature * log_scale
        value = samples.top + temperature * (gained - rest * log_scale)
        return as_risk(samples, value=value, weights=weights, dual=nu)

    @property
    def dual_form(self) -> DualForm:
        log_cap = -math.log(self.fraction)
        return DualForm(
            density=lambda above, scale: (above / scale).clamp(max=log_cap).exp(),
            generator=kl_generator,
            optimum=lambda at: Dual(at.dual, torch.full_like(at.value, self.temperature)),
            variable=lambda dual: dual.location,
            scale="price",
            cap=1 / self.fraction,
        )
