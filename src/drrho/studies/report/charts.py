"""Charts of the page, each with a description in words and its numbers in a table."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from drrho.contrastive.objectives.algorithms import method_title
from drrho.plotting.chart import Chart, Series
from drrho.plotting.palette import places
from drrho.plotting.svg import draw_svg
from drrho.studies.compare.curves import STYLES, Row, curve_chart, styles_in_words
from drrho.studies.report.gallery import Gallery, ShownStage
from drrho.studies.scaling.plots import laws_chart
from drrho.studies.scaling.results import ScalingResults
from drrho.training.metrics import PANELS, metrics_of

TABLE_ROWS = 12  # of the table behind a chart; metrics.jsonl has them all


@dataclass(frozen=True, kw_only=True)
class DrawnChart:
    """A chart with its text and its table.

    Attributes:
        title, meaning: heading and explanation.
        svg: `<svg>` element.
        header, rows: cells of the table.
        places: place in the palette of each row's subject; empty where rows have no colour.
    """

    title: str
    meaning: str
    svg: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    places: Sequence[int] = ()


def draw_panels(runs: Mapping[str, Sequence[Row]]) -> list[DrawnChart]:
    """Draws each panel of which any run has a number; runs map a name to the rows of its log."""
    drawn = []
    for number, panel in enumerate(PANELS):
        metrics = metrics_of(panel)
        logs = {name: [rows] for name, rows in runs.items()}
        chart = curve_chart(panel, metrics, logs, labelled=True)
        if not chart.series:
            continue
        several = any("," in line.name for line in chart.series)
        styles = [f"{styles_in_words(metrics)}."] if several and len(metrics) > 1 else []
        header, rows = _table(chart.series)
        drawn.append(
            DrawnChart(
                title=panel.title,
                meaning=" ".join([panel.meaning, *styles]),
                svg=draw_svg(chart, name=f"curve-{number}", description=_describe(chart.series)),
                header=header,
                rows=rows,
            )
        )
    return drawn


def draw_histogram(gallery: Gallery, number: int) -> DrawnChart:
    """Weights of the negatives at each stage of a run, with the numbers in a table."""
    series = [
        Series(
            name=stage.title,
            x=gallery.edges,
            y=stage.histogram,
            colour=place,
            style=STYLES[place % len(STYLES)],
            steps=True,
        )
        for place, stage in enumerate(gallery.stages)
    ]
    chart = Chart(
        title=f"Weights of negatives, {gallery.run}",
        x_label="log10 of the weight (0 is an even share)",
        y_label="share of the negatives",
        series=series,
    )
    words = "; ".join(_in_words(stage, gallery.edges) for stage in gallery.stages)
    return DrawnChart(
        title=chart.title,
        meaning="Each anchor spreads its weight over its negatives. Left of 0 are those that count "
        "less than an even share, right of it those that count more.",
        svg=draw_svg(chart, name=f"weights-{number}", description=words),
        header=["log10 of the weight", *(stage.title for stage in gallery.stages)],
        rows=[
            [f"{low:g} to {high:g}", *(f"{stage.histogram[i]:.4f}" for stage in gallery.stages)]
            for i, (low, high) in enumerate(zip(gallery.edges, gallery.edges[1:], strict=False))
            if any(stage.histogram[i] >= 5e-5 for stage in gallery.stages)
        ],
    )


def draw_scaling(results: ScalingResults, name: str) -> DrawnChart:
    """Runs as points and laws as lines, on logarithmic axes, with a table of the exponents."""
    rows, words = [], []
    for method, found in results.methods.items():
        interval = found.intervals.get("exponent")
        ends = "" if interval is None else "{:.3f} to {:.3f}".format(*interval)
        exponent = f"{found.law.exponent:.3f}"
        rows.append([method_title(method), f"{len(found.points)}", exponent, ends])
        words.append(f"{method}: error falls with compute to the power -{exponent}")
    chart = laws_chart(results, f"Scaling law, {name}")
    identifier = "".join(letter if letter.isalnum() else "-" for letter in name)
    return DrawnChart(
        title=chart.title,
        meaning="Points are runs, lines the fitted laws: the steeper, the more compute buys.",
        svg=draw_svg(chart, name=f"scaling-{identifier}", description="; ".join(words)),
        header=["method", "runs", "exponent", "95 % interval"],
        rows=rows,
        places=list(places(results.methods).values()),
    )


def _describe(series: Sequence[Series]) -> str:
    """Where each line begins and ends, in words."""
    return "; ".join(
        f"{line.name} from {line.y[0]:.3g} to {line.y[-1]:.3g}, between {min(line.y):.3g} and "
        f"{max(line.y):.3g}"
        for line in series
    )


def _table(series: Sequence[Series]) -> tuple[list[str], list[list[str]]]:
    """At most TABLE_ROWS of the samples at which any line has a point, the last among them."""
    points = [dict(zip(line.x, line.y, strict=True)) for line in series]
    places = sorted({x for line in points for x in line})
    if len(places) > TABLE_ROWS:
        last = len(places) - 1
        places = [places[round(i * last / (TABLE_ROWS - 1))] for i in range(TABLE_ROWS)]
    rows = [
        [f"{x:,.0f}", *(f"{line[x]:.4g}" if x in line else "" for line in points)] for x in places
    ]
    return ["samples", *(line.name for line in series)], rows


def _in_words(stage: ShownStage, edges: Sequence[float]) -> str:
    shares = list(zip(edges, stage.histogram, strict=False))
    above = sum(share for low, share in shares if low >= 0)
    tenfold = sum(share for low, share in shares if low >= 1)
    return (
        f"{stage.title}: {above:.1%} of the negatives count more than an even share, "
        f"{tenfold:.2%} more than ten times"
    )
