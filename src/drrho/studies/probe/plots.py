"""A probe of references as a picture."""

from pathlib import Path

from drrho.plotting.chart import Chart, row_with_interval
from drrho.plotting.png import draw_png
from drrho.studies.probe.results import ProbeResults

FINE, ALARM = 0, 5  # places in the palette: blue, and orange


def draw_probe(results: ProbeResults, path: Path) -> None:
    """Draws what references are ranked by, with its interval, best on top; orange is an alarm.

    Raises:
        OSError: the PNG cannot be written.
    """
    series = [
        row_with_interval(place, *results.ranked_by(found), colour=ALARM if found.alarm else FINE)
        for place, found in enumerate(results.references.values())
    ]
    score = "steerability S" if results.kind == "losses" else "mean reciprocal rank"
    chart = Chart(
        title="",
        x_label=f"{score}, with 95 % interval (orange: has seen the training data?)",
        y_label="",
        series=series,
        rows=list(results.references),
        x_range=(-0.02, 1.02),
    )
    draw_png([chart], path, size=(7, 1.2 + 0.35 * len(chart.rows)))
