"""Pictures of scaling laws and of data efficiency."""

import math
from pathlib import Path

from drrho.contrastive.objectives.algorithms import method_title
from drrho.plotting.chart import Chart, Series
from drrho.plotting.palette import places
from drrho.plotting.png import draw_png
from drrho.studies.scaling.efficiency import mean_score
from drrho.studies.scaling.laws import PowerLaw
from drrho.studies.scaling.results import EfficiencyResults, ScalingResults

CURVE_POINTS = 101


def laws_chart(results: ScalingResults, title: str = "") -> Chart:
    """Runs and laws, both axes logarithmic; runs that did not enter are hollow."""
    series, colours = [], places(results.methods)
    for method, found in results.methods.items():
        if not found.points:
            continue
        for used in (True, False):
            points = [point for point in found.points if point.used == used]
            if points:
                series.append(
                    Series(
                        name="",
                        x=[point.compute for point in points],
                        y=[point.error for point in points],
                        style="o",
                        colour=colours[method],
                        hollow=not used,
                    )
                )
        ends = [math.log(pick(point.compute for point in found.points)) for pick in (min, max)]
        steps = [k / (CURVE_POINTS - 1) for k in range(CURVE_POINTS)]
        x = [math.exp(ends[0] + step * (ends[1] - ends[0])) for step in steps]
        series.append(
            Series(
                name=f"{method_title(method)}: {_formula(found.law)}",
                x=x,
                y=[found.law.error(c) for c in x],
                style="-",
                colour=colours[method],
            )
        )
    if any(not point.used for found in results.methods.values() for point in found.points):
        series.append(
            Series(
                name="hollow: not used by the fit", x=[], y=[], style="o", colour=None, hollow=True
            )
        )
    return Chart(
        title=title,
        x_label="C: forward GFLOP per sample x samples seen",
        y_label="E: error on the test set",
        series=series,
        x_scale="log",
        y_scale="log",
    )


def draw_laws(results: ScalingResults, path: Path) -> None:
    """Writes the chart of the laws as a PNG."""
    draw_png([laws_chart(results)], path, size=(7, 4.6))


def draw_efficiency(results: EfficiencyResults, path: Path) -> None:
    """Draws scores of every seed and their means against the training data. Writes a PNG."""
    series, colours = [], places(results.scores)
    for method, scores in results.scores.items():
        runs = [(number, score) for number in sorted(scores) for score in scores[number].values()]
        x, y = zip(*runs, strict=True)
        series.append(Series(name="", x=x, y=y, style="o", colour=colours[method], hollow=True))
        means = [mean_score(scores[number]) for number in sorted(scores)]
        series.append(
            Series(name=method_title(method), x=sorted(scores), y=means, colour=colours[method])
        )
    chart = Chart(
        title="",
        x_label="training data",
        y_label=results.config.metric,
        series=series,
        x_scale="log",
        x_ticks=sorted({number for scores in results.scores.values() for number in scores}),
    )
    draw_png([chart], path, size=(7, 4.6))


def _formula(law: PowerLaw) -> str:
    floor = f"{law.floor:.3g} + " if law.floor else ""
    return f"{floor}{law.scale:.3g} C^-{law.exponent:.3f}"
