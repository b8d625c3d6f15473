"""The dual variables of any risk, learned beside the model by stochastic approximation."""

import math

import torch
from jaxtyping import Float64
from torch import Tensor, nn

from drrho.risk import RiskMeasure
from drrho.risk.duality import Dual, DualForm, dual_form, solve_dual, standard_deviation
from drrho.risk.samples import normalised
from drrho.runtime.checks import require_share
from drrho.steering.base import Estimate, ExcessLosses

LEAST_MEAN_DENSITY, LARGEST_MEAN_DENSITY = 0.1, 10.0


class LearnedDual(nn.Module):
    """Gradient descent on the risk's dual variables: the location nu, and a ball's scale s.

        weight_i = q_i w_i,    w_i = density(f_i; nu, s)
        nu    <- nu + rate s (sum(q w) - 1)
        log s <- log s + rate (sum(q phi(w)) - radius) / (2 radius)         balls only

    The weights use the dual before its step, which is independent of the batch. So the gradient is
    unbiased for the objective at the present dual; what remains is the dual's distance from its
    optimum. Under the KL penalty even that averages out, for losses that do not change, of equal
    weight, and batches that do not meet the limits below. The variance, of a mean of densities,
    usually exceeds the batch estimator's: the weights sum to one on average only.

    The dual starts at the first batch's optimum, and is solved anew by a batch whose densities
    average less than a tenth or more than ten (for capped densities: more than half-way to the
    cap), for which every call waits for the device. Otherwise nu follows falling losses by at most
    rate s per step. CVaR has no lower limit, as a small batch may rightly have no weight at all,
    and no scale: it moves by the standard deviation of the losses.

    Args:
        rate: step size, in (0, 1]. The variance of nu is about
            rate / (2 - rate) s^2 Var(sum(q w)) for the KL penalty.

    Source: docs/mathematics.md, "Estimators". For CVaR this is Rockafellar and Uryasev's joint
        minimisation over nu, for the KL ball Hu and Hong's over the temperature, by steps.
    """

    location: Float64[Tensor, ""]
    scale: Float64[Tensor, ""]
    started: Tensor

    def __init__(self, *, rate: float = 0.1) -> None:
        super().__init__()
        require_share(rate=rate)
        self.rate = rate
        self.register_buffer("location", torch.zeros((), dtype=torch.float64))
        self.register_buffer("scale", torch.ones((), dtype=torch.float64))
        self.register_buffer("started", torch.zeros((), dtype=torch.bool))

    def check(self, risk: RiskMeasure) -> None:
        """Raise ValueError for a risk without a dual form: the mean, a ball of radius zero."""
        dual_form(risk)

    def forward(self, risk: RiskMeasure, batch: ExcessLosses) -> Estimate:
        form = dual_form(risk)
        if not batch.base_measure.any():
            nothing = torch.zeros_like(batch.base_measure, dtype=torch.float64)
            return Estimate(nothing.sum(), nothing, form.variable(self._dual))
        q = normalised(batch.base_measure.double())
        excess = batch.excess.double()
        # A dropped sample's density could be infinite, and infinity times zero is NaN.
        lowest = excess.masked_fill(q == 0, math.inf).amin()
        excess = torch.where(q > 0, excess, lowest)
        dual = self._dual
        w = form.densities(excess, dual)
        least, most = _mean_densities(form)
        # Negated, so that an overflow counts as lost as well.
        if not self.started or not least <= (q * w).sum() <= most:
            dual = solve_dual(risk, excess, batch.base_measure)
            w = form.densities(excess, dual)
        value = (q * form.values(excess, dual)).sum()
        self._move(form, dual, excess=excess, q=q, w=w)
        return Estimate(value, q * w, form.variable(dual))

    @property
    def _dual(self) -> Dual:
        return Dual(self.location.clone(), self.scale.clone())

    def _move(
        self,
        form: DualForm,
        dual: Dual,
        *,
        excess: Float64[Tensor, " n"],
        q: Float64[Tensor, " n"],
        w: Float64[Tensor, " n"],
    ) -> None:
        """Take one step from `dual`."""
        too_dense = (q * w).sum() - 1
        self.location.copy_(dual.location + dual.scale * (self.rate * too_dense).clamp(max=1))
        match form.scale:
            case "learned":
                spent = (q * form.generator(w)).sum()
                step = self.rate * (spent - form.radius) / (2 * form.radius)
                self.scale.copy_(dual.scale * step.clamp(max=1).exp())
            case "spread":
                spread = standard_deviation(excess, q)
                self.scale.copy_(dual.scale + self.rate * (spread - dual.scale))
            case "price":
                self.scale.copy_(dual.scale)
        self.started.fill_(True)


def _mean_densities(form: DualForm) -> tuple[float, float]:
    """Limits of a batch's mean density (best: one), beyond which the dual is solved anew."""
    least = 0.0 if form.scale == "spread" else LEAST_MEAN_DENSITY  # "spread" is CVaR
    return least, LARGEST_MEAN_DENSITY if math.isinf(form.cap) else (1 + form.cap) / 2
