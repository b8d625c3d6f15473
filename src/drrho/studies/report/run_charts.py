"""Charts of the page, each with what it shows in words and the numbers in a table."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from drrho.plotting.chart import Series
from drrho.plotting.svg import draw_svg
from drrho.studies.compare.curves import Row, curve_chart, styles_in_words
from drrho.training.metrics import PANELS, metrics_of

TABLE_ROWS = 12  # of the table behind a chart; metrics.jsonl has them all


@dataclass(frozen=True, kw_only=True)
class DrawnChart:
    """A chart with its text and its table.

    Attributes:
        title, meaning: in print.
        svg: the element.
        header, rows: of the table, in print.
        places: in the palette, of what each row is about; empty where rows have no colour.
    """

    title: str
    meaning: str
    svg: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    places: Sequence[int] = ()


def draw_panels(runs: Mapping[str, Sequence[Row]]) -> list[DrawnChart]:
    """A chart for each panel of which any run has a number.

    Args:
        runs: name -> rows of its metrics log, in the order of the colours.
    """
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
                svg=draw_svg(chart, name=f"curve-{number}", description=describe(chart.series)),
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
