"""One HTML page about runs, which needs no other file.

Charts are inline SVG, drawn by matplotlib in the page's colours, and not an interactive library: a
page of hundreds of kilobytes opens on a phone, prints, follows dark mode, and has its numbers in
tables for those who cannot see charts. The script only filters the galleries.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from drrho.plotting.chart import Chart, Series
from drrho.plotting.palette import COLOURS, places
from drrho.plotting.svg import draw_svg
from drrho.recipe.document import RunResults
from drrho.recipe.recipe import Recipe
from drrho.runtime.records import to_json
from drrho.studies.compare.curves import STYLES, Row
from drrho.studies.compare.results import Results
from drrho.studies.compare.tables import differences_in_words
from drrho.studies.report.alerts import Alert, Thresholds
from drrho.studies.report.compared import compared_tables
from drrho.studies.report.gallery import Gallery, ShownStage
from drrho.studies.report.run_charts import DrawnChart, draw_panels
from drrho.studies.report.scaling_chart import draw_scaling
from drrho.studies.report.summary import summarise_run
from drrho.studies.scaling.results import ScalingResults
from drrho.training.metrics import METRICS


@dataclass(frozen=True, kw_only=True)
class ReportedRun:
    """A run on the page.

    Attributes:
        name: in print; different for different runs.
        recipe: what was trained.
        rows: of its metrics log.
        results: what its `results.json` says; None while it is not finished.
        gallery: what steering sees; None where it could not be made.
        alerts: what to look at twice.
        missing: what the page does not show of it, and why.
    """

    name: str
    recipe: Recipe
    rows: Sequence[Row]
    results: RunResults | None
    gallery: Gallery | None
    alerts: Sequence[Alert]
    missing: Sequence[str]


@dataclass(frozen=True, kw_only=True)
class Report:
    """Contents of the page.

    Attributes:
        title: of the page.
        runs: in the order of their colours.
        comparisons: folder -> results of the comparison in it.
        scaling: fitted scaling laws, by folder.
        version: of drrho.
    """

    title: str
    runs: Sequence[ReportedRun]
    comparisons: Mapping[str, Results]
    scaling: Mapping[str, ScalingResults]
    version: str


def render(report: Report) -> str:
    """Renders the page as HTML.

    Raises:
        ValueError: there is no run.
    """
    if not report.runs:
        raise ValueError("a report needs at least one run")
    environment = Environment(
        loader=PackageLoader("drrho.studies.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["plain"] = to_json
    rows = {run.name: run.rows for run in report.runs}
    galleries = [run.gallery for run in report.runs if run.gallery is not None]
    return environment.get_template("page.html").render(
        report=report,
        colours=len(COLOURS),
        places=places(rows),
        summaries=[summarise_run(r.name, r.recipe, r.rows, r.results) for r in report.runs],
        alerts=[alert for run in report.runs for alert in run.alerts],
        thresholds=vars(Thresholds()),
        limits=[metric.limit for metric in METRICS if metric.limit is not None],
        charts=draw_panels(rows),
        comparisons={name: _comparison(results) for name, results in report.comparisons.items()},
        scaling={name: draw_scaling(found, name) for name, found in report.scaling.items()},
        galleries=galleries,
        histograms=[_histogram(g, number) for number, g in enumerate(galleries)],
        pictures=_pictures(galleries),
        factor=factor,
    )


def factor(weight: float) -> str:
    """Formats a weight: 12, 0.3, 0.02, or 0.00."""
    if weight >= 9.95:
        return f"{weight:,.0f}"
    return f"{weight:.1f}" if weight >= 0.95 else f"{weight:.2f}" if weight >= 0.005 else "0.00"


def _comparison(results: Results) -> dict[str, Any]:
    return {"tables": compared_tables(results), "words": differences_in_words(results)}


def _histogram(gallery: Gallery, number: int) -> DrawnChart:
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


def _in_words(stage: ShownStage, edges: Sequence[float]) -> str:
    shares = list(zip(edges, stage.histogram, strict=False))
    above = sum(share for low, share in shares if low >= 0)
    tenfold = sum(share for low, share in shares if low >= 1)
    return (
        f"{stage.title}: {above:.1%} of the negatives count more than an even share, "
        f"{tenfold:.2%} more than ten times"
    )


def _pictures(galleries: Sequence[Gallery]) -> Markup:
    """Each picture once, for the script to put where it is shown."""
    pictures = {
        f"{number}-{place}": sample.image
        for number, gallery in enumerate(galleries)
        for place, sample in gallery.samples.items()
    }
    # In a script element nothing is escaped but what would end it.
    return Markup(json.dumps(pictures).replace("<", "\\u003c"))
