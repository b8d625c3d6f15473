"""Checks of the parameters of penalties and balls, with their errors and warnings."""

import math
import warnings
from collections.abc import Callable

import torch
from torch import Tensor

# Beyond these a float32 quotient loss / price overflows or vanishes for ordinary losses.
LOWEST_PRICE = 1e-30
HIGHEST_PRICE = 1e30


RISKS_AT_LIMITS = (
    "risks of their own: Mean() at infinity, and at zero the maximum, CVaR with a fraction of at "
    "most 1/n"
)


def check_not_negative(**numbers: float) -> None:
    """Raise ValueError unless every number is finite, and zero or more."""
    for name, number in numbers.items():
        if not 0 <= number < math.inf:
            raise ValueError(f"{name} must be finite and not negative, got {number}")


def check_price(price: float, *, name: str, limits: str = RISKS_AT_LIMITS) -> None:
    """Raise ValueError unless a price is positive and within float32's reach; name its limits."""
    if not LOWEST_PRICE <= price <= HIGHEST_PRICE:
        raise ValueError(
            f"{name} must be between {LOWEST_PRICE} and {HIGHEST_PRICE}, got {price}; its limits "
            f"are {limits}"
        )


def check_fraction(fraction: float) -> None:
    """Raise ValueError unless `fraction` can be a share of the samples."""
    if not 0 < fraction <= 1:
        raise ValueError(
            f"fraction is the share of samples that is kept, in (0, 1]; got {fraction}"
        )


def warn_if_beyond_reach(
    radius: float, losses: Tensor, base_measure: Tensor | None, *, reach: Callable[[int], float]
) -> None:
    """Warn that a ball of this radius holds every distribution: the risk is the largest loss.

    Silent for a single sample, for sample weights, whose reach only the device knows, and while
    compiling, where a warning would break the graph.

    Args:
        radius: of the ball.
        losses, base_measure: as given to the risk.
        reach: divergence of one sample alone from equal weights on n samples. A mask keeps fewer
            samples, whose reach is smaller.
    """
    num_samples = losses.shape[-1]
    most = reach(max(num_samples, 1))
    equal_samples = base_measure is None or base_measure.dtype == torch.bool
    if radius < most or num_samples < 2 or not equal_samples or torch.compiler.is_compiling():
        return
    warnings.warn(
        f"radius {radius:g} is at least {most:g}, which no distribution on {num_samples} samples "
        "exceeds: the risk is the largest loss. Use a smaller radius, or more samples.",
        stacklevel=3,
    )
