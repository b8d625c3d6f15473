"""Options and results of scaling studies, and their files."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Literal

from tyro.conf import Positional

from drrho.runtime.checks import require_at_least
from drrho.runtime.files import expand_paths
from drrho.studies.scaling.efficiency import SampleRatio, Scores
from drrho.studies.scaling.laws import TIMES_CHANCE, Curvature, Interval, PointRule, PowerLaw

CountedCompute = Literal["target", "total"]
LAWS_FILE, EFFICIENCY_FILE = "scaling.json", "efficiency.json"


@dataclass(frozen=True, kw_only=True)
class FitConfig:
    """Fit E = a C^-b to runs: error against compute.

    Attributes:
        results: results.json of `drrho compare`, with methods called METHOD+SETTING, or tables of
            points, csv or json with method, compute, error and perhaps setting, seed.
        output: folder for scaling.json, scaling.md and scaling.png.
        metric: score whose difference from 1 is the error; TEST/METRIC where there are several test
            sets. Tables have errors.
        points: runs that the fit uses: "all", or those on the "pareto" front of their method.
        chance: score of guessing, such as 0.0075 for the mean reciprocal rank among 1,000 pairs:
            settings in which a method scores less than ten times it are left out of every method's
            fit. 0 leaves out none.
        compute: compute C of a run: "target" counts its own training, "total" also the training of
            its references and their forward passes over its data.
        floor: fit an irreducible error E0 as well.
        at: errors at which compute is compared; none given means the ends and the middle of the
            range that both methods reached.
        resamples: number of bootstrap resamples.
        seed: random seed of the bootstrap.
    """

    results: Positional[tuple[str, ...]]
    output: str = "runs/scaling"
    metric: str = "mrr"
    points: PointRule = "all"
    chance: float = 0.0
    compute: CountedCompute = "target"
    floor: bool = False
    at: tuple[float, ...] = ()
    resamples: int = 1000
    seed: int = 0

    def __post_init__(self):
        expand_paths(self, "results")
        if any(not 0 < error <= 1 for error in self.at):
            raise ValueError(f"at must be errors, fractions in (0, 1], got {self.at}")
        if not 0 <= self.chance < 1 / TIMES_CHANCE:
            raise ValueError(
                "chance must be at least 0, and ten times chance below 1: from 0 to below "
                f"{1 / TIMES_CHANCE}, got {self.chance}"
            )
        require_at_least(100, resamples=self.resamples)


@dataclass(frozen=True, kw_only=True)
class EfficiencyConfig:
    """Estimate how many times the samples the baseline needs for an equal score.

    Attributes:
        results: results.json of `drrho compare`, with methods called METHOD+NUMBER, where NUMBER is
            the number of pairs, or of parts of the data, that they were trained on.
        method: method to compare with the baseline.
        baseline: method that needs more samples for an equal score.
        output: folder for efficiency.json, efficiency.md and efficiency.png.
        metric: score to compare; higher is better.
        resamples: number of bootstrap resamples, over seeds.
        seed: random seed of the bootstrap.
    """

    results: Positional[tuple[str, ...]]
    method: str = "drrho_clip"
    baseline: str = "fastclip"
    output: str = "runs/efficiency"
    metric: str = "mrr"
    resamples: int = 1000
    seed: int = 0

    def __post_init__(self):
        expand_paths(self, "results")
        if self.method == self.baseline:
            raise ValueError(f"method and baseline are both {self.method!r}")
        require_at_least(100, resamples=self.resamples)


@dataclass(frozen=True, kw_only=True)
class Point:
    """A run: compute and error, and whether it entered the fit."""

    compute: float
    error: float
    setting: str = ""
    used: bool = True


@dataclass(frozen=True, kw_only=True)
class FittedMethod:
    """A method's law, the 95 % intervals of its parameters by name, and its runs.

    `curvature` tests the line; None for a law with a floor, too few runs, and in older files.
    """

    law: PowerLaw
    points: tuple[Point, ...]
    intervals: Mapping[str, Interval] = field(default_factory=dict)
    curvature: Curvature | None = None


@dataclass(frozen=True, kw_only=True)
class ExponentDifference:
    """The exponent of `method` minus the exponent of `minus`, with the 95 % interval."""

    method: str
    minus: str
    difference: float
    interval: Interval


@dataclass(frozen=True, kw_only=True)
class ComputeRatio:
    """Ratio of the compute with which `method` and `over` reach an error, with its 95 % interval.

    The ratio is infinite where `method` never reaches the error; it is extrapolated where the error
    is beyond the runs of either.

    Attributes:
        beyond: method -> compute that its law gives for the error, in multiples of its largest run
            (above 1) or its smallest (below 1); without those whose runs reach so far.
    """

    method: str
    over: str
    error: float
    ratio: float
    interval: Interval
    extrapolated: bool
    beyond: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class ScalingResults:
    """Laws by method, and differences and ratios of each method to each one before it.

    `config` is the configuration of the fit; None in files that do not say.
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
        samples_seen: samples seen in training, mean over the runs.
        scores: method -> samples -> seed -> score.
        ratios: a ratio for each number of samples of the method.
    """

    version: ClassVar = 1
    config: EfficiencyConfig
    samples_seen: float
    scores: Mapping[str, Scores]
    ratios: tuple[SampleRatio, ...]
