"""Metrics of runs as charts, each with what it shows in words and the numbers in a table."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from drrho.plotting.curves import Row
from drrho.plotting.svg import Chart, Series, draw_svg

TABLE_ROWS = 12  # of the table behind a chart; metrics.jsonl has them all


@dataclass(frozen=True, kw_only=True)
class Panel:
    """A chart of the page: metrics against the samples seen.

    Attributes:
        title: of the chart.
        unit: of its vertical axis.
        meaning: what the metric says, in a sentence.
        metrics: metric -> name beside the run's, empty if there is but one.
        logarithmic: whether the vertical axis is.
    """

    title: str
    unit: str
    meaning: str
    metrics: Mapping[str, str]
    logarithmic: bool = False


PANELS = (
    Panel(
        title="Quality",
        unit="mean reciprocal rank",
        meaning="How high the right partner ranks on the evaluation set; 1 is always first.",
        metrics={"evaluation/mrr": ""},
    ),
    Panel(
        title="Loss",
        unit="loss, in the method's unit",
        meaning="What is minimised. Methods have losses in different units.",
        metrics={"loss": ""},
    ),
    Panel(
        title="Mean gaps",
        unit="cosine",
        meaning="Mean over all negatives of the loss, and of its excess over the reference.",
        metrics={"excess_loss_mean": "excess loss", "loss_mean": "loss"},
    ),
    Panel(
        title="Variance of gaps",
        unit="squared cosine",
        meaning="The theory's bound is small where the variance of the excess loss is.",
        metrics={"excess_loss_variance": "excess loss", "loss_variance": "loss"},
        logarithmic=True,
    ),
    Panel(
        title="Effective sample size",
        unit="share of the negatives",
        meaning="How many of an anchor's negatives count: 1 is all of them alike.",
        metrics={"effective_sample_size": ""},
    ),
    Panel(
        title="Divergence of the weights from uniform",
        unit="KL, nats",
        meaning="How far the adversary has moved the weights of an anchor's negatives.",
        metrics={"weights_kl": ""},
    ),
    Panel(
        title="Temperature",
        unit="cosine",
        meaning="Similarities are divided by it: the lower, the more hard negatives count.",
        metrics={
            "temperature": "",
            "temperature_image": "image anchors",
            "temperature_text": "text anchors",
        },
    ),
    Panel(
        title="Saturated anchors",
        unit="share of the anchors",
        meaning="Anchors whose negatives are all far away: they have given up half their gradient.",
        metrics={"saturated_anchors": ""},
    ),
)


@dataclass(frozen=True, kw_only=True)
class DrawnChart:
    """A chart with its text and its table.

    Attributes:
        title, meaning: in print.
        svg: the element.
        header, rows: of the table, in print.
    """

    title: str
    meaning: str
    svg: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]


def draw_panels(runs: Mapping[str, Sequence[Row]]) -> list[DrawnChart]:
    """A chart for each panel of which any run has a number.

    Args:
        runs: name -> rows of its metrics log, in the order of the colours.
    """
    drawn = []
    for number, panel in enumerate(PANELS):
        series = [
            Series(
                name=f"{run}, {kind}" if kind else run,
                x=[float(row["samples"] or 0) for row in rows if row.get(metric) is not None],
                y=[value for row in rows if (value := row.get(metric)) is not None],
                colour=colour,
                dash=dash,
            )
            for colour, (run, rows) in enumerate(runs.items())
            for dash, (metric, kind) in enumerate(panel.metrics.items())
        ]
        series = [line for line in series if line.y]
        if not series:
            continue
        logarithmic = panel.logarithmic and all(min(line.y) > 0 for line in series)
        chart = Chart(
            title=panel.title,
            x_label="samples seen",
            y_label=panel.unit,
            series=series,
            log_y=logarithmic,
        )
        header, rows = _table(series)
        svg = draw_svg(chart, name=f"curve-{number}", description=describe(series))
        dashed = len(panel.metrics) > 1 and any("," in line.name for line in series)
        kinds = list(panel.metrics.values()) if dashed else []
        drawn.append(
            DrawnChart(
                title=panel.title,
                meaning=" ".join([panel.meaning, *_dash_legend(kinds)]),
                svg=svg,
                header=header,
                rows=rows,
            )
        )
    return drawn


def describe(series: Sequence[Series]) -> str:
    """Where each line begins and ends, in words."""
    return "; ".join(
        f"{line.name} from {line.y[0]:.3g} to {line.y[-1]:.3g}, between {min(line.y):.3g} and "
        f"{max(line.y):.3g}"
        for line in series
    )


def _dash_legend(kinds: Sequence[str]) -> list[str]:
    styles = ("Solid", "dashed", "dotted")
    named = [f"{style}: {kind}" for style, kind in zip(styles, kinds, strict=False) if kind]
    return [f"{', '.join(named)}."] if named else []


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
