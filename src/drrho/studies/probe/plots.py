"""A probe of references as a picture."""

from pathlib import Path

from drrho.plotting.chart import Chart, Series
from drrho.plotting.png import draw_png
from drrho.studies.probe.results import ProbeResults

FINE, ALARM = 0, 5  # places in the palette: blue, and orange


def draw_probe(results: ProbeResults, path: Path) -> None:
    """Draws what references are ranked by, with its interval, best on top; orange is an alarm.

    Raises:
        OSError: the PNG cannot be written.
    """
    series = []
    for place, found in enumerate(results.references.values()):
        value, low, high = results.ranked_by(found)
        series.append(
            Series(
                name="",
                x=[value],
                y=[place],
                low=[low],
                high=[high],
                interval="along",
                style="o",
                colour=ALARM if found.alarm else FINE,
            )
        )
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
