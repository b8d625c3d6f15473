"""Results of scaling studies as typed data, and their files."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from drrho.studies.scaling.config import EfficiencyConfig, FitConfig
from drrho.studies.scaling.efficiency import SampleRatio, Scores
from drrho.studies.scaling.laws import PowerLaw

LAWS_FILE, EFFICIENCY_FILE = "scaling.json", "efficiency.json"
Interval = tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class Point:
    """A run: compute and error, and whether it entered the fit."""

    compute: float
    error: float
    setting: str = ""
    used: bool = True


@dataclass(frozen=True, kw_only=True)
class FittedMethod:
    """A method's law, the 95 % intervals of its parameters by name, and its runs."""

    law: PowerLaw
    points: tuple[Point, ...]
    intervals: Mapping[str, Interval] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class ExponentDifference:
    """The exponent of `method` less that of `minus`, with its 95 % interval."""

    method: str
    minus: str
    difference: float
    interval: Interval


@dataclass(frozen=True, kw_only=True)
class ComputeRatio:
    """Compute of `method` over that of `over` at which both reach an error.

    Attributes:
        ratio: infinite where `method` never reaches the error.
        interval: 95 %.
        extrapolated: whether the error lies beyond the runs of either.
    """

    method: str
    over: str
    error: float
    ratio: float
    interval: Interval
    extrapolated: bool


@dataclass(frozen=True, kw_only=True)
class ScalingResults:
    """Laws of several methods.

    Attributes:
        methods: name -> law.
        config: of the fit; None in files that do not say.
        exponent_differences, compute_ratios: of each method to each one before it.
    """

    version: ClassVar = 1
    methods: Mapping[str, FittedMethod]
    config: FitConfig | None = None
    exponent_differences: tuple[ExponentDifference, ...] = ()
    compute_ratios: tuple[ComputeRatio, ...] = ()


@dataclass(frozen=True, kw_only=True)
class EfficiencyResults:
    """Sample ratios of a method to a baseline.

    Attributes:
        config: of the comparison.
        samples_seen: in training, mean over the runs.
        scores: method -> samples -> seed -> score.
        ratios: one for each number of samples of the method.
    """

    version: ClassVar = 1
    config: EfficiencyConfig
    samples_seen: float
    scores: Mapping[str, Scores]
    ratios: tuple[SampleRatio, ...]
