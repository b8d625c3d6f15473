"""The dual form of a risk: a mean over samples, once one or two numbers are known.

A maximum over weights of a whole data set cannot be estimated from a mini-batch without bias; a
mean can. With w the density p/q that belongs to a location nu and a scale s, and phi the
divergence's generator,

    risk(f) = min over nu and s of  sum(q h),    h = nu + radius s + w (f - nu) - s phi(w)

(docs/mathematics.md, "Dual form"), so all that has to be remembered between batches is (nu, s).
"""

import math
from typing import NamedTuple

import torch
from jaxtyping import Float, Float64, Shaped
from torch import Tensor

from drrho.risk.base import RiskMeasure
from drrho.risk.chi_square import ChiSquare, ChiSquareBall
from drrho.risk.cvar import CVaR
from drrho.risk.kl import KL, KLBall
from drrho.risk.kl_cvar import KLCVaR
from drrho.risk.samples import normalised

# Where a ball's scale is zero or infinite (nothing or everything within reach), a number of
# standard deviations that acts like it and can still be learned away from.
SMALLEST_SCALE, LARGEST_SCALE = 1e-4, 1e4
SCALE_WITHOUT_SPREAD = 1e-8  # units of loss


class Dual(NamedTuple):
    """Location and scale, in units of loss; float64 scalars.

    Attributes:
        location: nu, at which the densities have mean one.
        scale: s. The price of a penalty, which is given; the temperature or lambda of a ball,
            which is learned; for CVaR, on which it has no influence, the standard deviation of
            the losses.
    """

    location: Float64[Tensor, ""]
    scale: Float64[Tensor, ""]


def has_dual_form(risk: RiskMeasure) -> bool:
    """Whether there is anything to learn: not for the mean, nor for a ball of radius zero."""
    match risk:
        case KLBall(radius=radius) | ChiSquareBall(radius=radius):
            return radius > 0
        case CVaR() | KL() | KLCVaR() | ChiSquare():
            return True
        case _:
            return False


def solve_dual(
    risk: RiskMeasure, losses: Float[Tensor, " n"], base_measure: Shaped[Tensor, " n"]
) -> Dual:
    """The optimal location and scale for these samples.

    Args:
        risk: one that `has_dual_form`.
        losses: excess losses.
        base_measure: mask or sample weights.
    """
    value, _, dual = risk(losses, base_measure=base_measure)
    value, dual = value.detach().double(), _known(dual).double()
    q = normalised(base_measure.double())
    f = torch.where(q > 0, losses.detach().double(), 0.0)
    spread = standard_deviation(f, q)
    # Equal losses have no spread, and every positive scale gives them equal weights.
    low = torch.where(spread > 0, SMALLEST_SCALE * spread, SCALE_WITHOUT_SPREAD)
    high = torch.where(spread > 0, LARGEST_SCALE * spread, SCALE_WITHOUT_SPREAD)
    match risk:
        case CVaR():
            return Dual(dual, spread)
        case KL(temperature=temperature):
            return Dual(value, torch.full_like(value, temperature))
        case KLCVaR(temperature=temperature):
            return Dual(dual, torch.full_like(value, temperature))
        case KLBall():
            temperature = dual.clamp(low, high)
            return Dual(temperature * (q.log() + f / temperature).logsumexp(dim=-1), temperature)
        case ChiSquare(strength=strength):
            return Dual(dual + strength, torch.full_like(value, strength))
        case ChiSquareBall():
            scale = (q * (f - dual).clamp_min(0)).sum().clamp(low, high)
            location = torch.where(dual.isfinite(), dual + scale, (q * f).sum())
            # All weight on the largest: their common density is one over their share.
            share = torch.where(f >= dual, q, 0.0).sum()
            at_maximum = (q * (f > dual)).sum() == 0
            return Dual(torch.where(at_maximum, dual - scale * (1 / share - 1), location), scale)
        case _:
            raise ValueError(f"{risk} has no dual variables")


def standard_deviation(
    losses: Float64[Tensor, " n"], base_measure: Float64[Tensor, " n"]
) -> Float64[Tensor, ""]:
    """Under a base measure that sums to one (divisor n)."""
    mean = (base_measure * losses).sum()
    return (base_measure * (losses - mean).square()).sum().sqrt()


def dual_variable(risk: RiskMeasure, dual: Dual) -> Float64[Tensor, ""]:
    """The one that `drrho.risk.Risk.dual` shows: threshold or temperature."""
    match risk:
        case KL() | KLBall():
            return dual.scale
        case ChiSquare() | ChiSquareBall():
            return dual.location - dual.scale
        case _:
            return dual.location


def density(risk: RiskMeasure, losses: Float[Tensor, " n"], dual: Dual) -> Float64[Tensor, " n"]:
    """W = p/q of each sample at a location and scale. Its mean is one only at the optimum."""
    above = losses.detach().double() - dual.location
    match risk:
        case CVaR(fraction=fraction):
            return (above > 0).double() / fraction
        case KL() | KLBall():
            return (above / dual.scale).exp()
        case KLCVaR(fraction=fraction):
            return (above / dual.scale).clamp(max=-math.log(fraction)).exp()
        case ChiSquare() | ChiSquareBall():
            return (1 + above / dual.scale).clamp_min(0)
        case _:
            raise ValueError(f"{risk} has no dual variables")


def divergence_generator(
    risk: RiskMeasure, density: Float64[Tensor, " n"]
) -> Float64[Tensor, " n"]:
    """phi(w), whose mean is the divergence that the adversary has spent."""
    match risk:
        case CVaR():
            return torch.zeros_like(density)
        case KL() | KLBall() | KLCVaR():
            return torch.special.xlogy(density, density) - density + 1
        case ChiSquare() | ChiSquareBall():
            return (density - 1).square() / 2
        case _:
            raise ValueError(f"{risk} has no dual variables")


def dual_values(
    risk: RiskMeasure, losses: Float[Tensor, " n"], dual: Dual
) -> Float64[Tensor, " n"]:
    """h, each sample's part of the dual objective. For every dual the mean is at least the risk."""
    w = density(risk, losses, dual)
    radius = risk.radius if isinstance(risk, KLBall | ChiSquareBall) else 0.0
    gained = w * (losses.detach().double() - dual.location)
    spent = dual.scale * (radius - divergence_generator(risk, w))
    return dual.location + gained + spent


def _known(dual: Tensor | None) -> Tensor:
    if dual is None:
        raise ValueError("the mean has no dual variables")
    return dual
