"""Input and output of every risk: precision, masks and sample weights, translation, gradient.

A risk solves for its weights on losses that this module has prepared: every row moved so that
its largest loss is zero, dropped samples out of the way. Translation invariance, masks and
Danskin's gradient are therefore written once, and hold for all risks.
"""

import math
from typing import NamedTuple

import torch
from jaxtyping import Float, Float64, Shaped
from torch import Tensor
from torch.nn.functional import pad

from drrho.risk.base import Risk


class Samples(NamedTuple):
    """Losses ready to be weighed. Only `losses` is attached to the graph.

    Attributes:
        losses: in float32 or float64. A sample that the base measure drops holds the smallest
            loss that is kept (zero in an empty row), without gradient.
        top: the largest loss that is kept.
        below: `losses - top`, never positive; in float64, where the difference of two float32
            numbers of similar size is exact and prefix sums are safe.
        mass: the base measure as given, unnormalised, so that sums over a mask are exact.
        alike: whether every mass is one, as without a base measure; one number, expanded.
        num_given: n as the caller knows it. An empty row is held as one dropped sample.
    """

    losses: Float[Tensor, "*batch n"]
    top: Float[Tensor, "*batch"]
    below: Float64[Tensor, "*batch n"]
    mass: Float64[Tensor, "*batch n"]
    alike: bool
    num_given: int

    @property
    def total(self) -> Float64[Tensor, "*batch"]:
        """The mass of a whole row; zero if there is nothing to weigh."""
        return self.mass.sum(dim=-1)

    @property
    def measure(self) -> Float64[Tensor, "*batch n"]:
        """The base measure q, summing to one; all zero in an empty row."""
        return normalised(self.mass)

    def times_mass(self, numbers: Float64[Tensor, "*batch n"]) -> Float64[Tensor, "*batch n"]:
        """`mass * numbers`; the numbers themselves where that is the same."""
        return numbers if self.alike else self.mass * numbers


def may_read_values(numbers: Tensor) -> bool:
    """Whether a step may depend on the values of a tensor.

    On the CPU reading them costs nothing, and saves the steps that are not needed. On other devices
    it would wait for all that has been queued, and it cannot be compiled (nor mapped by vmap).
    """
    return numbers.device.type == "cpu" and not torch.compiler.is_compiling()


def dot(a: Float[Tensor, "*batch n"], b: Float[Tensor, "*batch n"]) -> Float[Tensor, "*batch"]:
    """Compute scalar products over the last dimension; in float64 without an array of the terms."""
    # In float32 autocast would round vecdot to half precision.
    return torch.linalg.vecdot(a, b) if a.dtype == torch.float64 else (a * b).sum(dim=-1)


def normalised(weights: Float[Tensor, "*batch n"]) -> Float[Tensor, "*batch n"]:
    """Divide weights by their sum; all-zero rows stay zero."""
    total = weights.sum(dim=-1, keepdim=True)
    return weights / torch.where(total == 0, 1.0, total)


def weigh(
    losses: Float[Tensor, "*batch n"], base_measure: Shaped[Tensor, "... n"] | None
) -> Samples:
    """Prepare losses for a risk.

    Args:
        losses: in any floating type; float16 and bfloat16 become float32 before anything is
            subtracted.
        base_measure: a mask or non-negative sample weights that replace 1/n, of the shape of the
            losses or its last dimensions. Zero drops the sample, whatever its loss; only ratios
            matter. None: all samples alike. Negative entries are not looked for, which would wait
            for the device.

    The solution is in float64, which costs nothing beside a model; a device without it (Apple's
    MPS) has to hand its n losses over to the CPU.

    Raises:
        ValueError: `losses` has no dimension, or `base_measure` does not fit its shape.
        TypeError: `losses` is not floating point.
    """
    _check_shapes(losses, base_measure)
    losses = losses.to(torch.promote_types(losses.dtype, torch.float32))
    num_given = losses.shape[-1]
    if base_measure is None:
        mass = torch.ones((), dtype=torch.float64, device=losses.device).expand(losses.shape)
    else:
        mass = base_measure.detach().to(torch.float64).expand(losses.shape)
    if num_given == 0:
        losses, mass = pad(losses, (0, 1)), pad(mass, (0, 1))
    alike = base_measure is None and num_given > 0
    if not alike:
        dropped = mass == 0
        lowest = losses.detach().masked_fill(dropped, math.inf).amin(dim=-1, keepdim=True)
        lowest = torch.where(dropped.all(dim=-1, keepdim=True), 0.0, lowest)
        losses = torch.where(dropped, lowest, losses)
    top = losses.detach().amax(dim=-1)
    below = losses.detach() - top.double()[..., None]
    return Samples(losses, top, below, mass, alike, num_given)


def as_risk(
    samples: Samples,
    *,
    value: Float[Tensor, "*batch"],
    weights: Float[Tensor, "*batch m"],
    dual: Float[Tensor, "*batch"] | None,
) -> Risk:
    """Assemble a solved risk in the precision of the losses, with the weights as its gradient.

    The term that carries the gradient is exactly zero as a number.
    """
    losses = samples.losses
    if not samples.alike:
        empty = samples.total == 0
        weights = torch.where(empty[..., None], 0.0, weights)
        value = torch.where(empty, 0.0, value)
        dual = None if dual is None else torch.where(empty, math.nan, dual)
    weights, value = weights.to(losses.dtype), value.to(losses.dtype)
    attached = dot(weights, losses)
    value = value + (attached - attached.detach())
    if dual is not None:
        dual = dual.to(losses.dtype)
    return Risk(value, weights[..., : samples.num_given], dual)


def _check_shapes(losses: Tensor, base_measure: Tensor | None) -> None:
    if not losses.is_floating_point():
        raise TypeError(f"losses must be floating point, got {losses.dtype}")
    if losses.ndim == 0:
        raise ValueError("losses must have the samples as their last dimension, got one number")
    if base_measure is None:
        return
    last_dimensions = losses.shape[losses.ndim - base_measure.ndim :]
    if not 1 <= base_measure.ndim <= losses.ndim or base_measure.shape != last_dimensions:
        raise ValueError(
            f"base_measure has shape {tuple(base_measure.shape)}; it must be the shape of "
            f"losses, {tuple(losses.shape)}, or its last dimensions"
        )
