"""Checks of arguments: ValueError names argument and value; a number that is None passes."""

import math
from typing import Any, get_args


def require_at_least(least: int, **values: float | None) -> None:
    """Require every value to be at least `least`."""
    for name, value in values.items():
        if value is not None and not value >= least:
            bound = f"be at least {least}" if least else "not be negative"
            raise ValueError(f"{name} must {bound}, got {value}")


def require_positive(**values: float | None) -> None:
    """Require every value to be positive and finite."""
    for name, value in values.items():
        if value is not None and not 0 < value < math.inf:
            raise ValueError(f"{name} must be positive and finite, got {value}")


def require_finite(**values: float | None) -> None:
    """Require every value to be finite."""
    for name, value in values.items():
        if value is not None and not math.isfinite(value):
            raise ValueError(f"{name} must be finite, got {value}")


def require_share(**values: float | None) -> None:
    """Raise ValueError, which names argument and value, unless all are in (0, 1]."""
    for name, value in values.items():
        if value is not None and not 0 < value <= 1:
            raise ValueError(f"{name} must be in (0, 1], got {value}")


def require_choice(name: str, value: object, choices: Any) -> None:
    """Require a value that a Literal type allows."""
    allowed = get_args(choices)
    if value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(allowed)}, got {value!r}")
