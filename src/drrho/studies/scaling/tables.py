"""Scaling laws and data efficiency as tables and in words."""

import math
from collections.abc import Sequence

from drrho.contrastive.objectives.algorithms import method_title
from drrho.plotting.table import markdown_table
from drrho.studies.scaling.efficiency import mean_score
from drrho.studies.scaling.laws import TIMES_CHANCE, Curvature
from drrho.studies.scaling.results import ComputeRatio, EfficiencyResults, ScalingResults


def scaling_in_words(results: ScalingResults) -> str:
    """The laws as a table, then differences of exponents and compute at equal error."""
    config = results.config
    assert config is not None
    with_floor = config.floor
    header = ["", "a", "95 %", "b", "95 %", *(["E0", "95 %"] if with_floor else [])]
    names = ["scale", "exponent", *(["floor"] if with_floor else [])]
    rows = []
    for method, found in results.methods.items():
        cells = [
            cell
            for name in names
            for cell in (_number(getattr(found.law, name)), _range(found.intervals[name]))
        ]
        used = sum(point.used for point in found.points)
        bend = "" if found.curvature is None else _bend(found.curvature)
        rows.append([method_title(method), *cells, f"{used} of {len(found.points)}", bend])
    law = "E = E0 + a C^-b" if with_floor else "E = a C^-b"
    rule = {
        "all": "all runs entered",
        "pareto": "the runs entered that no run of their method beats with at most their compute",
    }[config.points] + (", but" if config.chance else "; none was")
    compute = {
        "target": "the references' own cost is not in it",
        "total": "the references' training and forward passes are in it, once for each run",
    }[config.compute]
    chance = (
        f"settings in which a method scores less than {TIMES_CHANCE * config.chance:.3g}, ten "
        "times chance, were left out of every method"
        if config.chance
        else "left out for being near chance (--chance)"
    )
    explanation = (
        f"{law}, fitted by least squares of log E; E is the error, C the forward GFLOP per sample "
        f"times the samples seen, {compute}; {rule} {chance}. Curvature: the quadratic term of "
        "log E in log C, by a t-test over the runs; a small p says that the runs follow no such "
        "line. Intervals: bootstrap over settings (model and samples), "
        f"{config.resamples:,} resamples, in which methods share what they have in common. They "
        "say how far other settings of the same kind could move the fit, not whether the law goes "
        "on beyond the runs."
    )
    paragraphs = [markdown_table([*header, "runs", "curvature"], rows), explanation]
    for row in results.exponent_differences:
        names = f"b of {method_title(row.method)} minus b of {method_title(row.minus)}"
        low, high = row.interval
        verdict = "" if low > 0 or high < 0 else ": the exponents cannot be told apart"
        paragraphs.append(f"{names}: {row.difference:+.4f} ({low:+.4f} to {high:+.4f}){verdict}.")
    if results.compute_ratios:
        paragraphs.append(_ratio_table(results.compute_ratios))
    elif results.exponent_differences:
        paragraphs.append(
            "No error was reached by both methods, so compute at equal error is not given; name "
            "errors with --at to have it from the lines beyond the runs."
        )
    return "\n\n".join(paragraphs)


def _ratio_table(ratios: Sequence[ComputeRatio]) -> str:
    rows = [
        [
            f"{method_title(row.method)} over {method_title(row.over)}",
            f"{row.error:.3f}",
            _number(row.ratio),
            _range(row.interval),
            _how_far(row),
        ]
        for row in ratios
    ]
    return markdown_table(["compute at equal error", "error", "ratio", "95 %", "note"], rows)


def _how_far(row: ComputeRatio) -> str:
    """What is extrapolated in a ratio: the error, or the compute at which a law is read."""
    notes = [
        f"{method_title(method)}'s law at {multiple:.2g} times its "
        f"{'largest' if multiple > 1 else 'smallest'} run"
        for method, multiple in row.beyond.items()
    ]
    in_compute = f"extrapolated in compute: {', '.join(notes)}" if notes else ""
    in_error = "extrapolated in error" if row.extrapolated else ""
    return "; ".join(note for note in (in_error, in_compute) if note)


def _bend(curvature: Curvature) -> str:
    return f"t = {curvature.t:+.1f}, p = {curvature.p:.2g}"


def efficiency_in_words(results: EfficiencyResults) -> str:
    """Scores by number of samples and the sample ratio of each, with what is not known."""
    config, scores = results.config, results.scores
    method, baseline = config.method, config.baseline
    rows = []
    for ratio in results.ratios:
        of_baseline = scores[baseline].get(ratio.samples)
        rows.append(
            [
                f"{ratio.samples:,}",
                f"{ratio.score:.3f}",
                "" if of_baseline is None else f"{mean_score(of_baseline):.3f}",
                {"exact": "", "at_least": "> ", "at_most": "< "}[ratio.bound]
                + f"{ratio.ratio:.2f}",
                _measured_range([ratio.low, ratio.high]),
            ]
        )
    header = ["training data", method_title(method), method_title(baseline), "sample ratio"]
    seeds = len(next(iter(scores[method].values())))
    explanation = (
        f"The scores are {config.metric}, means over {seeds} seeds, after equally many samples "
        f"seen ({results.samples_seen:,.0f}): where they are few, optimisation and not data "
        "is what limits both methods, and the ratio is no saving of data in training to the end. "
        "The sample ratio says how many times the data "
        f"{method_title(baseline)} needs to equal the score, by a curve through its "
        f"{len(scores[baseline])} measured scores that never falls and is linear in the logarithm "
        "of the data. `>` and `<`: it lies beyond what was measured, and the number is the end of "
        "that. Intervals: bootstrap over the seeds, drawn together for both methods; an end that "
        "is not known is left open, and an interval that lies wholly beyond is called so."
    )
    return f"{markdown_table([*header, '95 %'], rows)}\n\n{explanation}"


def _number(value: float) -> str:
    return "none" if not math.isfinite(value) else f"{value:.4g}"


def _range(ends: Sequence[float]) -> str:
    return "-".join(_number(end) if math.isfinite(end) else "" for end in ends)


def _measured_range(ends: Sequence[float]) -> str:
    low, high = ends
    if math.isinf(low) or high == 0:
        return "beyond"
    return f"{'' if low == 0 else f'{low:.2f}'}-{'' if math.isinf(high) else f'{high:.2f}'}"
