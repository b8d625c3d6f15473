"""Pictures of a comparison: curves, paired differences with intervals, quality against cost."""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path

from drrho.contrastive.objectives.algorithms import method_title
from drrho.plotting.chart import Chart, row_with_interval
from drrho.plotting.palette import places
from drrho.plotting.png import draw_png
from drrho.studies.compare.curves import Runs, curve_chart, styles_in_words
from drrho.studies.compare.results import Difference, Results
from drrho.studies.compare.statistics import mrr_interval, shown_differences, with_tests
from drrho.studies.compare.tables import interval_name, units_of
from drrho.training.metrics import PANELS, QUALITY, metrics_of

COSTS = (("training_gflop", 1e-3, "TFLOP of a run"), ("seconds", 1.0, "seconds of a run"))


def draw_curves(runs: Runs, path: Path, *, levels: Mapping[str, float] | None = None) -> None:
    """Writes a PNG with a panel per group of metrics, a colour per method.

    `levels` maps a name to the height of a horizontal line in the first panel, such as the
    reference's own score. ValueError if there is no run.
    """
    if not runs:
        raise ValueError("draw_curves needs at least one run")
    charts = []
    for panel in (panel for panel in PANELS if panel.compared):
        metrics = metrics_of(panel)
        chart = curve_chart(panel, metrics, runs, levels=levels if panel == QUALITY else None)
        if not chart.series:
            continue
        words = styles_in_words(metrics)
        charts.append(replace(chart, title=f"{panel.title} ({words.lower()})") if words else chart)
    if charts:
        draw_png(charts, path, size=(11, 3.6))


def draw_differences(results: Results, path: Path) -> None:
    """A forest plot for each test set: a row per pair, its difference of MRR and the interval.

    Differences that are told from zero (`Difference.is_clear`) have the colour of the method.
    """
    results = with_tests(results)
    what = interval_name(results)
    charts = [
        _forest(
            shown,
            f"Differences of MRR on {test}, {what}",
            units=units_of(results),
            methods=results.methods,
        )
        for test in results.setup.test
        if (shown := drawn_differences(results, test))
    ]
    if not charts:
        return
    rows = max(len(chart.rows) for chart in charts)
    draw_png(charts, path, columns=1, size=(8, 1.3 + 0.36 * rows))


def drawn_differences(results: Results, test: str) -> list[Difference]:
    """The differences on a test set that have an interval, of methods and from references."""
    rows = [*shown_differences(results, test), *results.from_references]
    return [row for row in rows if row.test == test and row.shown_interval is not None]


def _forest(rows: list[Difference], title: str, *, units: str, methods: Iterable[str]) -> Chart:
    colours = places(methods)
    series = [
        row_with_interval(
            place, row.mrr, *ends, colour=colours[row.method] if row.is_clear else None
        )
        for place, row in enumerate(rows)
        if (ends := row.shown_interval) is not None
    ]
    return Chart(
        title=title,
        x_label=f"difference of MRR (coloured: told from zero); on the right: {units} won",
        y_label="",
        series=series,
        upright=0.0,
        rows=[f"{method_title(row.method)} - {method_title(row.minus)}" for row in rows],
        row_notes=[f"{row.won}/{len(row.seeds)}" for row in rows],
    )


def draw_costs(results: Results, path: Path) -> None:
    """Draws a row for each method, the best on top: MRR on the first test set, and what it cost.

    The references' own training is not in the cost; a hollow mark says that there is a reference.
    """
    test = next(iter(results.setup.test))
    methods = {
        name: (method, method.cost, ends)
        for name, method in results.methods.items()
        if (ends := mrr_interval(results, method, test)) is not None
        if method.cost is not None and method.cost.training_gflop is not None
    }
    if not methods:
        return
    names = sorted(methods, key=lambda name: -methods[name][0].tests[test]["mrr"])
    colours = places(results.methods)

    def rows(values: Mapping[str, tuple[float, float, float]], x_label: str) -> Chart:
        found = [
            row_with_interval(
                place,
                *values[name],
                colour=colours[name],
                hollow=bool(methods[name][0].reference_cost),
            )
            for place, name in enumerate(names)
        ]
        titles = [method_title(name) for name in names]
        return Chart(
            title="", x_label=x_label, y_label="", series=found, rows=titles, x_range=(0, None)
        )

    scores = {
        name: (method.tests[test]["mrr"], *ends) for name, (method, _, ends) in methods.items()
    }
    charts = [rows(scores, f"MRR on {test}, {interval_name(results)}")]
    for attribute, scale, unit in COSTS:
        costs = {name: getattr(cost, attribute) * scale for name, (_, cost, _) in methods.items()}
        charts.append(rows({n: (cost, 0.0, cost) for n, cost in costs.items()}, unit))
    title = "Quality and cost of a run, references not counted (hollow: steered by a reference)"
    height = 1.1 + 0.3 * len(names)
    draw_png(charts, path, columns=3, size=(12, height), title=title, share_y=True)
