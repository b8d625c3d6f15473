"""Checks of arguments; a number that is None stands for an option that is not taken."""

import math
from typing import Any, get_args


def require_at_least(least: int, **values: float | None) -> None:
    """Raise ValueError, which names argument and value, unless all are at least so large."""
    for name, value in values.items():
        if value is not None and not value >= least:
            bound = f"be at least {least}" if least else "not be negative"
            raise ValueError(f"{name} must {bound}, got {value}")


def require_positive(**values: float | None) -> None:
    """Raise ValueError, which names argument and value, unless all are positive and finite."""
    for name, value in values.items():
        if value is not None and not 0 < value < math.inf:
            raise ValueError(f"{name} must be positive and finite, got {value}")


def require_choice(name: str, value: object, choices: Any) -> None:
    """Raise ValueError, which names argument and value, unless a Literal type allows it."""
    allowed = get_args(choices)
    if value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(allowed)}, got {value!r}")
