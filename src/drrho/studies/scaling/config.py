"""Options of `drrho scaling`."""

from dataclasses import dataclass

from tyro.conf import Positional

from drrho.studies.scaling.laws import PointRule


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
    floor: bool = False
    at: tuple[float, ...] = ()
    resamples: int = 1000
    seed: int = 0

    def __post_init__(self):
        if any(not 0 < error <= 1 for error in self.at):
            raise ValueError(f"at must be errors, fractions in (0, 1], got {self.at}")
        if self.resamples < 100:
            raise ValueError(f"resamples must be at least 100, got {self.resamples}")


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
        if self.method == self.baseline:
            raise ValueError(f"method and baseline are both {self.method!r}")
        if self.resamples < 100:
            raise ValueError(f"resamples must be at least 100, got {self.resamples}")
