"""`drrho scaling`: laws and sample ratios of finished runs, as JSON, Markdown and a plot."""

import itertools
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from tyro.conf import Positional

from drrho.runtime.files import write_atomically, write_json
from drrho.studies.scaling.efficiency import Scores, sample_ratios
from drrho.studies.scaling.laws import (
    PointRule,
    PowerLaw,
    RunPoints,
    bootstrap_laws,
    fit_runs,
    interval_of,
    log_compute_ratio,
    pareto_front,
)
from drrho.studies.scaling.points import SAMPLES_SEEN, Run, by_method, read_runs
from drrho.studies.scaling.tables import (
    draw_efficiency,
    draw_laws,
    efficiency_in_words,
    scaling_in_words,
)

# Methods were given equal numbers of samples if theirs differ by less: pairs are skipped.
EQUAL_SAMPLES = 0.01


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


def fit_scaling(config: FitConfig) -> dict[str, Any]:
    """Fits, writes, and returns what `scaling.json` holds.

    Returns:
        `config`, `methods` (name -> law, intervals, points, which of them were used),
        `exponent_differences` and `compute_ratios` (of each method to each one before it).

    Raises:
        FileNotFoundError: a file is not there.
        ValueError: a file is not what it should be, or a method has too few runs.
    """
    points = {
        method: RunPoints(
            compute=_tensor([run.compute() for run in runs]),
            error=_tensor([run.error(config.metric) for run in runs]),
            setting=tuple(run.setting for run in runs),
        )
        for method, runs in by_method(read_runs(config.results)).items()
    }
    laws = {}
    for method, runs in points.items():
        try:
            laws[method] = fit_runs(runs, rule=config.points, with_floor=config.floor)
        except ValueError as error:
            raise ValueError(f"method {method!r}: {error}") from error
    drawn = bootstrap_laws(
        points,
        generator=torch.Generator().manual_seed(config.seed),
        rule=config.points,
        with_floor=config.floor,
        resamples=config.resamples,
    )
    pairs = [(b, a) for a, b in itertools.combinations(laws, 2)]
    results = {
        "config": asdict(config),
        "methods": {
            method: _described(points[method], law, drawn[method], rule=config.points)
            for method, law in laws.items()
        },
        "exponent_differences": [
            {
                "method": method,
                "minus": other,
                "difference": laws[method].exponent - laws[other].exponent,
                "interval": interval_of(
                    [
                        a.exponent - b.exponent
                        for a, b in zip(drawn[method], drawn[other], strict=True)
                    ]
                ),
            }
            for method, other in pairs
        ],
        "compute_ratios": [
            row
            for method, other in pairs
            for row in _compute_ratios(method, other, points, laws, drawn, at=config.at)
        ],
    }
    folder = Path(config.output)
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "scaling.json", _finite(results))
    write_atomically(folder / "scaling.md", f"{scaling_in_words(results)}\n".encode())
    draw_laws(results, folder / "scaling.png")
    return results


def measure_efficiency(config: EfficiencyConfig) -> dict[str, Any]:
    """Compares, writes, and returns what `efficiency.json` holds.

    Returns:
        `config`, `scores` (method -> samples -> seed -> score), `samples_seen` and `ratios`, a
        `SampleRatio` for each number of samples of the method.

    Raises:
        FileNotFoundError: a file is not there.
        ValueError: a file is not what it should be, a method is missing, or the runs did not see
            equally many samples.
    """
    methods = by_method(read_runs(config.results))
    for name in (config.method, config.baseline):
        if name not in methods:
            raise ValueError(f"no run of {name!r} in the results; there are {sorted(methods)}")
    compared = [*methods[config.method], *methods[config.baseline]]
    seen = [run.value(SAMPLES_SEEN) for run in compared]
    if max(seen) > (1 + EQUAL_SAMPLES) * min(seen):
        raise ValueError(
            f"data efficiency compares runs that saw equally many samples, got {min(seen):,.0f} "
            f"to {max(seen):,.0f}; give comparisons with the same steps and batch size"
        )
    scores = {
        name: _scores(methods[name], config.metric) for name in (config.method, config.baseline)
    }
    ratios = sample_ratios(
        scores[config.method],
        scores[config.baseline],
        generator=torch.Generator().manual_seed(config.seed),
        resamples=config.resamples,
    )
    results = {
        "config": asdict(config),
        "samples_seen": sum(seen) / len(seen),
        "scores": scores,
        "ratios": [asdict(ratio) for ratio in ratios],
    }
    folder = Path(config.output)
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "efficiency.json", _finite(results))
    write_atomically(folder / "efficiency.md", f"{efficiency_in_words(results)}\n".encode())
    draw_efficiency(results, folder / "efficiency.png")
    return results


def _described(
    points: RunPoints, law: PowerLaw, drawn: list[PowerLaw], *, rule: PointRule
) -> dict[str, Any]:
    used = torch.ones(len(points.error), dtype=torch.bool)
    if rule == "pareto":
        used = pareto_front(points.compute, points.error)
    return {
        "law": asdict(law),
        "intervals": {
            name: interval_of([asdict(one)[name] for one in drawn]) for name in asdict(law)
        },
        "points": [
            {"setting": setting, "compute": compute, "error": error, "used": is_used}
            for setting, compute, error, is_used in zip(
                points.setting,
                points.compute.tolist(),
                points.error.tolist(),
                used.tolist(),
                strict=True,
            )
        ],
    }


def _compute_ratios(
    method: str,
    other: str,
    points: dict[str, RunPoints],
    laws: dict[str, PowerLaw],
    drawn: dict[str, list[PowerLaw]],
    *,
    at: tuple[float, ...],
) -> list[dict[str, Any]]:
    """Compute of `method` over that of `other` at errors that both reached, or that are given."""
    ranges = [points[name].error for name in (method, other)]
    low = max(float(errors.min()) for errors in ranges)
    high = min(float(errors.max()) for errors in ranges)
    errors = at or ((high, math.sqrt(low * high), low) if low < high else ())
    rows = []
    for error in errors:
        ratio = log_compute_ratio(laws[method], laws[other], error=error)
        ends = interval_of(
            [
                log_compute_ratio(a, b, error=error)
                for a, b in zip(drawn[method], drawn[other], strict=True)
            ]
        )
        rows.append(
            {
                "method": method,
                "over": other,
                "error": error,
                "ratio": _exp(ratio),
                "interval": [_exp(end) for end in ends],
                "extrapolated": not low <= error <= high,
            }
        )
    return rows


def _scores(runs: list[Run], metric: str) -> Scores:
    scores: dict[int, dict[int, float]] = {}
    for run in runs:
        if run.amount is None or run.seed is None:
            raise ValueError(
                f"{run.source} does not say how much data {run.method} was trained on and its "
                "seed; call methods of a comparison METHOD+NUMBER, as in 'fastclip+2000'"
            )
        of_seeds = scores.setdefault(run.amount, {})
        if run.seed in of_seeds:
            raise ValueError(
                f"{run.method}+{run.amount} of seed {run.seed} is there twice, "
                f"once in {run.source}; give each comparison once"
            )
        of_seeds[run.seed] = run.value(metric)
    return scores


def _tensor(values: list[float]) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def _exp(value: float) -> float:
    try:
        return math.exp(value)
    except OverflowError:
        return math.inf


def _finite(content: Any) -> Any:
    """The same with null for what JSON has no number for."""
    match content:
        case dict():
            return {str(name): _finite(value) for name, value in content.items()}
        case list() | tuple():
            return [_finite(value) for value in content]
        case float() if not math.isfinite(content):
            return None
        case _:
            return content


def run_scaling_fit(config: FitConfig) -> str:
    """Fit error against compute, E = a C^-b, with intervals."""
    fit_scaling(config)
    return _written(config.output, "scaling")


def run_scaling_efficiency(config: EfficiencyConfig) -> str:
    """Estimate how many times the samples the baseline needs for an equal score."""
    measure_efficiency(config)
    return _written(config.output, "efficiency")


def _written(output: str, name: str) -> str:
    text = (Path(output) / f"{name}.md").read_text()
    return f"\n{text}\nThe numbers are in {output}/{name}.json, the plot in {output}/{name}.png."
