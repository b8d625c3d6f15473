"""A mean over queries or images with its interval, however that was computed."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A mean with the ends of its 95 % interval."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.mean:.3f} ({self.low:.3f} to {self.high:.3f})"
