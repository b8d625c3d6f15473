"""Value of a reference in a regular problem, to leading order.

Regular: the excess risk is a quadratic form near its minimum, the loss a well-specified
log-likelihood, and the target sees many samples for each parameter. Then a DRRho risk moves
the empirical minimiser along the straight line to the reference, and all of the theory is how far:

    w = (1 - x) w_ERM + x w_ref

The quantity that decides is `kappa`, the reference's excess risk divided by the excess risk
of empirical risk minimisation (ERM) on the target's samples. Where errors of the two are
independent, the expected excess risk of w is `(1 - x)^2 + kappa x^2` times ERM's, least at
`x = 1/(1 + kappa)`.

Source: docs/mathematics.md, "The regular regime".
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from drrho.risk.limits import check_not_negative


def parallel_sum(erm_risk: float, reference_risk: float) -> float:
    """`1 / (1 / R_ERM + 1 / R_ref)`: the excess risk of DRRho at its best strength.

    ERM on the samples of both would reach it as well: at its best, a reference replaces the data
    it was trained on. Arguments are expected excess risks, in units of loss, not negative.
    """
    check_not_negative(erm_risk=erm_risk, reference_risk=reference_risk)
    if erm_risk == 0 or reference_risk == 0:
        return 0.0
    return 1 / (1 / erm_risk + 1 / reference_risk)


def kl_law(kappa: float, *, temperature: float) -> float:
    """DRRho's excess risk over ERM's under the KL penalty: a ridge towards the reference.

    The step is `x = 1 / (1 + temperature)`, so the best temperature is kappa. The temperature is
    for losses that are negative log-likelihoods; for a squared loss `(y - f)^2 / 2` it is in units
    of the noise's variance.
    """
    check_not_negative(kappa=kappa)
    if not temperature > 0:
        raise ValueError(f"temperature must be positive, got {temperature}")
    return _combined(kappa, 1 / (1 + temperature))


def chi_square_law(kappa: float, *, strength: float) -> float:
    """DRRho's excess risk over ERM's in the chi-square ball: a soft threshold at the reference.

    With the strength `g = 2 rho / d`, of a ball of radius rho / n and d parameters, the step is
    `x = sqrt(g / (1 + kappa))`, and from `g = 1 + kappa` on the reference itself is returned. It
    is best at `g = 1 / (1 + kappa)`, and never worse than `1 + g`. Needs many parameters, besides
    many samples for each: the distance from ERM to the reference is taken to be its mean.
    """
    check_not_negative(kappa=kappa, strength=strength)
    return _combined(kappa, min(1.0, math.sqrt(strength / (1 + kappa))))


def best_rho(kappa: float, *, num_parameters: int) -> float:
    """`d / (2 (1 + kappa))`: the rho of the chi-square ball, of radius rho / n, that is best.

    The rho of the theorem, of the order of d log n, is larger and returns the reference.
    """
    check_not_negative(kappa=kappa)
    if num_parameters < 1:
        raise ValueError(f"num_parameters must be at least 1, got {num_parameters}")
    return num_parameters / (2 * (1 + kappa))


def soft_threshold(
    erm: Float[Tensor, "*batch d"],
    reference: Float[Tensor, "*batch d"],
    *,
    radius: float,
    hessian: Float[Tensor, "*batch d d"],
) -> Float[Tensor, "*batch d"]:
    """Minimiser of the chi-square ball's DRRho risk, from the two models' parameters alone.

        w = w_ref + (1 - sqrt(2 radius) / ||w_ERM - w_ref||)_+ (w_ERM - w_ref)

    the minimiser of `||w - w_ERM||^2 / 2 + sqrt(2 radius) ||w - w_ref||`, the empirical risk plus
    the deviation of the excess loss; radius is rho / n. The norm is given by the Hessian of the
    mean negative log-likelihood, by the information equality the covariance of its gradients.
    """
    check_not_negative(radius=radius)
    if erm.shape != reference.shape:
        raise ValueError(
            f"erm has shape {tuple(erm.shape)} and reference {tuple(reference.shape)}; both are "
            "parameters of the same models"
        )
    step = erm - reference
    squared = (step * (hessian @ step[..., None]).squeeze(-1)).sum(dim=-1, keepdim=True)
    distance = squared.clamp_min(0).sqrt()
    shrunk = (distance - math.sqrt(2 * radius)).clamp_min(0)
    return reference + step * torch.where(distance > 0, shrunk / distance, 0.0)


def _combined(kappa: float, x: float) -> float:
    return (1 - x) ** 2 + kappa * x**2
