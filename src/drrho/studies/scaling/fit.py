"""`drrho scaling`: laws and sample ratios of finished runs, as JSON, Markdown and a plot."""

import itertools
import math
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from drrho.runtime.files import write_atomically
from drrho.runtime.records import write_record
from drrho.studies.scaling.efficiency import Scores, sample_ratios
from drrho.studies.scaling.laws import (
    PointRule,
    PowerLaw,
    RunPoints,
    bootstrap_laws,
    curvature_test,
    fit_runs,
    interval_of,
    log_compute_ratio,
    near_chance,
    pareto_front,
)
from drrho.studies.scaling.plots import draw_efficiency, draw_laws
from drrho.studies.scaling.points import SAMPLES_SEEN, Run, by_method, read_runs
from drrho.studies.scaling.results import (
    EFFICIENCY_FILE,
    LAWS_FILE,
    ComputeRatio,
    EfficiencyConfig,
    EfficiencyResults,
    ExponentDifference,
    FitConfig,
    FittedMethod,
    Point,
    ScalingResults,
)
from drrho.studies.scaling.tables import efficiency_in_words, scaling_in_words

# Methods were given equal numbers of samples if theirs differ by less: pairs are skipped.
EQUAL_SAMPLES = 0.01


def fit_scaling(config: FitConfig) -> ScalingResults:
    """Fits laws to finished runs, and writes them as JSON, Markdown and a plot.

    Raises:
        FileNotFoundError: a file is not there.
        ValueError: a file is not what it should be, or a method has too few runs.
    """
    every = _points(config)
    chance_settings = near_chance(every, chance=config.chance)
    points = {
        method: runs.rows_of(
            [it for it in dict.fromkeys(runs.setting) if it not in chance_settings]
        )
        for method, runs in every.items()
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
    results = ScalingResults(
        config=config,
        methods={
            method: _described(
                every[method], points[method], law, drawn[method], rule=config.points
            )
            for method, law in laws.items()
        },
        exponent_differences=tuple(
            ExponentDifference(
                method=method,
                minus=other,
                difference=laws[method].exponent - laws[other].exponent,
                interval=interval_of(
                    [
                        a.exponent - b.exponent
                        for a, b in zip(drawn[method], drawn[other], strict=True)
                    ]
                ),
            )
            for method, other in pairs
        ),
        compute_ratios=tuple(
            row
            for method, other in pairs
            for row in _compute_ratios(method, other, points, laws, drawn, at=config.at)
        ),
    )
    _write(results, Path(config.output, LAWS_FILE), scaling_in_words(results), draw_laws)
    return results


def _points(config: FitConfig) -> dict[str, RunPoints]:
    total = config.compute == "total"
    return {
        method: RunPoints(
            compute=_tensor([run.total_compute() if total else run.compute() for run in runs]),
            error=_tensor([run.error(config.metric) for run in runs]),
            setting=tuple(run.setting for run in runs),
        )
        for method, runs in by_method(read_runs(config.results)).items()
    }


def measure_efficiency(config: EfficiencyConfig) -> EfficiencyResults:
    """Measures sample ratios, and writes them as JSON, Markdown and a plot.

    Raises:
        FileNotFoundError: a file is not there.
        ValueError: a file is not what it should be, a method is missing, or the runs did not see
            equally many samples.
    """
    methods, compared = by_method(read_runs(config.results)), (config.method, config.baseline)
    for name in compared:
        if name not in methods:
            raise ValueError(f"no run of {name!r} in the results; there are {sorted(methods)}")
    seen = [run.value(SAMPLES_SEEN) for name in compared for run in methods[name]]
    if max(seen) > (1 + EQUAL_SAMPLES) * min(seen):
        raise ValueError(
            f"data efficiency compares runs that saw equally many samples, got {min(seen):,.0f} "
            f"to {max(seen):,.0f}; give comparisons with the same steps and batch size"
        )
    scores = {name: _scores(methods[name], config.metric) for name in compared}
    ratios = sample_ratios(
        *scores.values(),
        generator=torch.Generator().manual_seed(config.seed),
        resamples=config.resamples,
    )
    results = EfficiencyResults(
        config=config,
        samples_seen=sum(seen) / len(seen),
        scores=scores,
        ratios=tuple(ratios),
    )
    _write(
        results, Path(config.output, EFFICIENCY_FILE), efficiency_in_words(results), draw_efficiency
    )
    return results


def _described(
    points: RunPoints, fitted: RunPoints, law: PowerLaw, drawn: list[PowerLaw], *, rule: PointRule
) -> FittedMethod:
    """Describes a law and all runs of its method; `fitted` are the runs clearly above chance."""
    used = torch.tensor([setting in fitted.setting for setting in points.setting])
    if rule == "pareto":
        used[used.clone()] = pareto_front(points.compute[used], points.error[used])
    curvature = None
    if not law.floor:
        curvature = curvature_test(points.compute[used], points.error[used])
    columns = (points.setting, points.compute.tolist(), points.error.tolist(), used.tolist())
    return FittedMethod(
        law=law,
        intervals={name: interval_of([asdict(one)[name] for one in drawn]) for name in asdict(law)},
        curvature=curvature,
        points=tuple(
            Point(setting=setting, compute=compute, error=error, used=is_used)
            for setting, compute, error, is_used in zip(*columns, strict=True)
        ),
    )


def _compute_ratios(
    method: str,
    other: str,
    points: dict[str, RunPoints],
    laws: dict[str, PowerLaw],
    drawn: dict[str, list[PowerLaw]],
    *,
    at: tuple[float, ...],
) -> list[ComputeRatio]:
    """Compute of `method` divided by `other`'s, at errors that both reached, or that are given."""
    ranges = [points[name].error for name in (method, other)]
    low = max(float(errors.min()) for errors in ranges)
    high = min(float(errors.max()) for errors in ranges)
    errors = at or ((high, math.sqrt(low * high), low) if low < high else ())
    rows = []
    for error in errors:
        beyond = {
            name: multiple
            for name in (method, other)
            if (multiple := _beyond(points[name], laws[name], error)) is not None
        }
        ratio = log_compute_ratio(laws[method], laws[other], error=error)
        ends = interval_of(
            [
                log_compute_ratio(a, b, error=error)
                for a, b in zip(drawn[method], drawn[other], strict=True)
            ]
        )
        rows.append(
            ComputeRatio(
                method=method,
                over=other,
                error=error,
                ratio=_exp(ratio),
                interval=(_exp(ends[0]), _exp(ends[1])),
                extrapolated=not low <= error <= high,
                beyond=beyond,
            )
        )
    return rows


def _beyond(points: RunPoints, law: PowerLaw, error: float) -> float | None:
    """The compute that a law gives for an error in multiples of the nearest run's, if beyond it."""
    wanted = law.log_compute(error)
    ends = math.log(float(points.compute.min())), math.log(float(points.compute.max()))
    nearest = min(max(wanted, ends[0]), ends[1])
    return None if math.isclose(wanted, nearest, abs_tol=1e-6) else _exp(wanted - nearest)


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


def _write(results: Any, path: Path, words: str, draw: Callable[[Any, Path], None]) -> None:
    write_record(path, results)
    write_atomically(path.with_suffix(".md"), f"{words}\n".encode())
    draw(results, path.with_suffix(".png"))


def run_scaling_fit(config: FitConfig) -> str:
    """Fit error against compute, E = a C^-b, with intervals."""
    return _report(scaling_in_words(fit_scaling(config)), config.output, "scaling")


def run_scaling_efficiency(config: EfficiencyConfig) -> str:
    """Estimate how many times the samples the baseline needs for an equal score."""
    return _report(efficiency_in_words(measure_efficiency(config)), config.output, "efficiency")


def _report(words: str, output: str, name: str) -> str:
    return f"\n{words}\n\nThe numbers are in {output}/{name}.json, the plot in {output}/{name}.png."
