"""The dual form of a risk: a mean over samples, once one or two numbers are known.

A maximum over weights of a whole data set cannot be estimated from a mini-batch without bias; a
mean can. With w the density p/q that belongs to a location nu and a scale s, and phi the
divergence's generator,

    risk(f) = min over nu and s of  sum(q h),    h = nu + radius s + w (f - nu) - s phi(w)

(docs/mathematics.md, "Dual form"), so all that has to be remembered between batches is (nu, s).
Each risk that has such a form carries it, as `dual_form`; None where its parameters leave nothing
to learn.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float, Float64, Shaped
from torch import Tensor

from drrho.risk.base import RiskMeasure
from drrho.risk.samples import normalised

# Where a ball's scale is zero or infinite (nothing or everything within reach), a number of
# standard deviations that acts like it and can still be learned away from.
SMALLEST_SCALE, LARGEST_SCALE = 1e-4, 1e4
SCALE_WITHOUT_SPREAD = 1e-8  # units of loss


class Dual(NamedTuple):
    """Location nu, at which the densities have mean one, and scale s, both in units of loss."""

    location: Float64[Tensor, ""]
    scale: Float64[Tensor, ""]


class Solved(NamedTuple):
    """Samples whose risk and dual variable are known, from which location and scale follow."""

    value: Float64[Tensor, ""]
    dual: Float64[Tensor, ""]
    losses: Float64[Tensor, " n"]  # zero where the base measure is
    measure: Float64[Tensor, " n"]  # sums to one
    spread: Float64[Tensor, ""]  # standard deviation of the losses under the measure
    smallest_scale: Float64[Tensor, ""]  # limits of a scale that is learned
    largest_scale: Float64[Tensor, ""]


@dataclass(frozen=True, kw_only=True)
class DualForm:
    """Dual form of one risk: its densities, its divergence, and its solution.

    Attributes:
        density: w, from the distances `losses - nu` and the scale.
        generator: phi(w), whose mean is the divergence that the adversary has spent.
        optimum: from samples whose risk is known to the best location and scale.
        variable: from location and scale to `drrho.risk.Risk.dual`, a threshold or temperature.
        scale: "price" of a penalty, which is given; "learned", the temperature or lambda of a
            ball; "spread" where it has no influence (CVaR): the losses' standard deviation.
        radius: a ball's; zero without one.
        cap: the largest density; infinite without a limit.
    """

    density: Callable[[Tensor, Tensor], Tensor]
    generator: Callable[[Tensor], Tensor]
    optimum: Callable[[Solved], Dual]
    variable: Callable[[Dual], Tensor]
    scale: Literal["price", "learned", "spread"]
    radius: float = 0.0
    cap: float = math.inf

    def densities(self, losses: Float[Tensor, " n"], dual: Dual) -> Float64[Tensor, " n"]:
        """Compute `p / q` of each sample; their mean is one at the optimum only."""
        return self.density(losses.detach().double() - dual.location, dual.scale)

    def values(self, losses: Float[Tensor, " n"], dual: Dual) -> Float64[Tensor, " n"]:
        """Compute h, each sample's part of the dual objective, whose mean is at least the risk."""
        w = self.densities(losses, dual)
        gained = w * (losses.detach().double() - dual.location)
        spent = dual.scale * (self.radius - self.generator(w))
        return dual.location + gained + spent


def dual_form(risk: RiskMeasure) -> DualForm:
    """Return a risk's dual form; raise ValueError for the mean or a ball of radius zero."""
    form: DualForm | None = getattr(risk, "dual_form", None)
    if form is None:
        raise ValueError(
            f"{risk} has no dual variables to solve for or to learn; BatchEstimator needs none"
        )
    return form


def solve_dual(
    risk: RiskMeasure, losses: Float[Tensor, " n"], base_measure: Shaped[Tensor, " n"]
) -> Dual:
    """Solve for the optimal location and scale of excess losses under a mask or sample weights."""
    form = dual_form(risk)
    value, _, dual = risk(losses, base_measure=base_measure)
    assert dual is not None  # every dual form has a variable
    q = normalised(base_measure.double())
    f = torch.where(q > 0, losses.detach().double(), 0.0)
    spread = standard_deviation(f, q)
    # Equal losses have no spread, and every positive scale gives them equal weights.
    low = torch.where(spread > 0, SMALLEST_SCALE * spread, SCALE_WITHOUT_SPREAD)
    high = torch.where(spread > 0, LARGEST_SCALE * spread, SCALE_WITHOUT_SPREAD)
    value, dual = value.detach().double(), dual.double()
    return form.optimum(Solved(value, dual, f, q, spread, low, high))


def standard_deviation(
    losses: Float64[Tensor, " n"], base_measure: Float64[Tensor, " n"]
) -> Float64[Tensor, ""]:
    """Standard deviation under a base measure that sums to one (divisor n)."""
    mean = (base_measure * losses).sum()
    return (base_measure * (losses - mean).square()).sum().sqrt()
