"""What the parameters of penalties and balls may be; the errors and warnings that say so."""

import math
import warnings

import torch

# Beyond these a float32 quotient loss / temperature overflows or vanishes for ordinary losses.
SMALLEST_TEMPERATURE = 1e-30
LARGEST_TEMPERATURE = 1e30


def check_temperature(temperature: float) -> None:
    """Raise ValueError unless `temperature` is positive and within float32's reach."""
    if not SMALLEST_TEMPERATURE <= temperature <= LARGEST_TEMPERATURE:
        raise ValueError(
            f"temperature must be between {SMALLEST_TEMPERATURE} and {LARGEST_TEMPERATURE}, got "
            f"{temperature}; its limits are risks of their own: Mean() at infinity, and at zero "
            "the maximum, CVaR with a fraction of at most 1/n"
        )


def check_radius(radius: float) -> None:
    """Raise ValueError unless `radius` is a finite number, not negative."""
    if not 0 <= radius < math.inf:
        raise ValueError(f"radius must be finite and not negative, got {radius}")


def warn_if_ball_holds_every_distribution(radius: float, *, num_samples: int, reach: float) -> None:
    """Warn that a ball of this radius constrains nothing, and the risk is the largest loss.

    Args:
        radius: the ball's.
        num_samples: n, at least 2.
        reach: the divergence of a single sample from the uniform distribution on n.
    """
    if radius >= reach and not torch.compiler.is_compiling():
        warnings.warn(
            f"radius {radius:g} is at least {reach:g}, which no distribution on {num_samples} "
            "samples exceeds: the risk is the largest loss. Use a smaller radius, or more "
            "samples.",
            stacklevel=3,
        )
