"""The dual variables of any risk, learned beside the model by stochastic approximation."""

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor, nn

from drrho.risk import ChiSquareBall, CVaR, KLBall, KLPenalizedCVaR, RiskMeasure
from drrho.risk.duality import (
    Dual,
    density,
    divergence_generator,
    dual_values,
    dual_variable,
    has_dual_form,
    solve_dual,
)
from drrho.risk.samples import normalised
from drrho.steering.estimate import Estimate

# A batch whose densities average more than this (or than the risk's cap, if that is higher) comes
# from other losses than the dual was learned on, and it is solved anew.
LARGEST_MEAN_DENSITY = 10.0


class LearnedDual(nn.Module):
    """Gradient descent on the risk's dual variables: the location nu, and a ball's scale s.

        weight_i = q_i w_i,    w_i = density(f_i; nu, s)
        nu    <- nu + rate s (sum(q w) - 1)
        log s <- log s + rate (sum(q phi(w)) - radius) / (2 radius)         balls only

    The weights use the dual before its step, which is independent of the batch. So the
    gradient is that of a mean over samples, unbiased for the objective at the present dual;
    what remains is how far the dual is from its optimum. Under the KL penalty even that averages
    out: for losses that stand still the gradient's bias is exactly zero, since the steps of nu
    average to zero only where the densities average to one. Where losses move, the dual follows
    within about 1 / rate steps. The variance is that of a mean of densities, larger than the batch
    estimator's ratio: the weights sum to one on average only.

    The dual starts at the first batch's optimum, and is solved anew when the densities average
    more than ten. A step moves nu by at most s, and s by at most a factor e.

    Args:
        rate: of the steps, in (0, 1]. The variance of nu is about
            rate / (2 - rate) s^2 Var(sum(q w)) for the KL penalty.

    Source: docs/mathematics.md, "Estimators". For CVaR this is Rockafellar and Uryasev's joint
        minimisation over nu, for the KL ball Hu and Hong's over the temperature, by steps.
    """

    location: Float64[Tensor, ""]
    scale: Float64[Tensor, ""]
    started: Tensor

    def __init__(self, *, rate: float = 0.1) -> None:
        super().__init__()
        if not 0 < rate <= 1:
            raise ValueError(f"rate must be in (0, 1], got {rate}")
        self.rate = rate
        self.register_buffer("location", torch.zeros((), dtype=torch.float64))
        self.register_buffer("scale", torch.ones((), dtype=torch.float64))
        self.register_buffer("started", torch.zeros((), dtype=torch.bool))

    def check(self, risk: RiskMeasure) -> None:
        """The mean, and a ball of radius zero, have nothing to learn."""
        if not has_dual_form(risk):
            raise ValueError(f"{risk} has no dual variable to learn; use BatchEstimator")

    def forward(
        self,
        risk: RiskMeasure,
        excess: Float[Tensor, " n"],
        *,
        base_measure: Float64[Tensor, " n"],
        index: Int64[Tensor, " n"] | None,  # noqa: ARG002 - nothing is remembered by sample
    ) -> Estimate:
        q = normalised(base_measure)
        excess = torch.where(q > 0, excess.detach().double(), 0.0)
        solved = solve_dual(risk, excess, base_measure)
        present = Dual(self.location, self.scale)
        mean_density = (q * density(risk, excess, present)).sum()
        # Negated, so that an overflow counts as lost as well.
        lost = ~self.started | ~(mean_density <= _largest_mean_density(risk))
        dual = Dual(*(torch.where(lost, *pair) for pair in zip(solved, present, strict=True)))

        w = density(risk, excess, dual)
        mean_density = (q * w).sum()
        spent = (q * divergence_generator(risk, w)).sum()
        value = (q * dual_values(risk, excess, dual)).sum()

        location = dual.location + dual.scale * (self.rate * (mean_density - 1)).clamp(max=1)
        match risk:
            case KLBall(radius=radius) | ChiSquareBall(radius=radius):
                step = self.rate * (spent - radius) / (2 * radius)
                scale = dual.scale * step.clamp(max=1).exp()
            case _:  # a penalty's price, or for CVaR the recent standard deviation
                scale = dual.scale + self.rate * (solved.scale - dual.scale)
        empty = base_measure.sum() == 0
        self.location.copy_(torch.where(empty, self.location, location))
        self.scale.copy_(torch.where(empty, self.scale, scale))
        self.started.logical_or_(~empty)
        return Estimate(torch.where(empty, 0.0, value), q * w, dual_variable(risk, dual))


def _largest_mean_density(risk: RiskMeasure) -> float:
    match risk:
        case CVaR(fraction=fraction) | KLPenalizedCVaR(fraction=fraction):
            return max(LARGEST_MEAN_DENSITY, 1 / fraction)
        case _:
            return LARGEST_MEAN_DENSITY
