"""One HTML page about runs, which needs no other file.

Charts are inline SVG, drawn by matplotlib in the page's colours, and not an interactive library: a
page of hundreds of kilobytes opens on a phone, prints, follows dark mode, and has its numbers in
tables for those who cannot see charts. The script only filters the galleries.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from drrho.plotting.palette import COLOURS, places
from drrho.recipe.folder import RunFolder
from drrho.runtime.errors import without_secrets
from drrho.runtime.records import to_json
from drrho.studies.advise.results import AdviceResults
from drrho.studies.compare.results import Results
from drrho.studies.compare.tables import DIRECTIONS, differences_in_words, score_table
from drrho.studies.report.advice import draw_advice
from drrho.studies.report.alerts import TAIL, THRESHOLDS, Alert
from drrho.studies.report.charts import draw_histogram, draw_panels, draw_scaling
from drrho.studies.report.gallery import Gallery
from drrho.studies.report.summary import summarise_run
from drrho.studies.scaling.results import ScalingResults
from drrho.training.metrics import METRICS


@dataclass(frozen=True, kw_only=True)
class ReportedRun:
    """A run on the page.

    Attributes:
        name: different for different runs.
        folder: recipe, log and results.
        gallery: weights of pairs; None where they could not be computed.
        alerts: findings.
        missing: sentences on what the page does not show of it, and why.
    """

    name: str
    folder: RunFolder
    gallery: Gallery | None
    alerts: Sequence[Alert]
    missing: Sequence[str]


@dataclass(frozen=True, kw_only=True)
class Report:
    """Contents of the page: runs in the order of their colours, and studies by folder."""

    title: str
    runs: Sequence[ReportedRun]
    comparisons: Mapping[str, Results]
    scaling: Mapping[str, ScalingResults]
    advice: Mapping[str, AdviceResults] = field(default_factory=dict)
    version: str


class ComparedTable(NamedTuple):
    """The scores of all models on a test set."""

    title: str
    header: list[str]
    rows: list[list[str]]


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
    environment.filters["plain"] = lambda recipe: _without_secrets(to_json(recipe))
    rows = {run.name: run.folder.rows for run in report.runs}
    galleries = [run.gallery for run in report.runs if run.gallery is not None]
    return environment.get_template("page.html").render(
        report=report,
        colours=len(COLOURS),
        places=places(rows),
        summaries=[summarise_run(run.name, run.folder) for run in report.runs],
        alerts=[(run.name, alert) for run in report.runs for alert in run.alerts],
        thresholds=THRESHOLDS,
        tail=TAIL,
        limits=[metric.limit for metric in METRICS if metric.limit is not None],
        charts=draw_panels(rows),
        comparisons={
            name: {"tables": compared_tables(results), "words": differences_in_words(results)}
            for name, results in report.comparisons.items()
        },
        scaling={name: draw_scaling(found, name) for name, found in report.scaling.items()},
        advice={name: draw_advice(found, name) for name, found in report.advice.items()},
        galleries=galleries,
        histograms=[draw_histogram(g, number) for number, g in enumerate(galleries)],
        pictures=_pictures(galleries),
        factor=factor,
    )


def factor(weight: float) -> str:
    """Formats a weight: 12, 0.3, 0.02, or 0.00."""
    if weight >= 9.95:
        return f"{weight:,.0f}"
    return f"{weight:.1f}" if weight >= 0.95 else f"{weight:.2f}" if weight >= 0.005 else "0.00"


def compared_tables(results: Results) -> list[ComparedTable]:
    """A table for each test set; models without a score on it are left out."""
    models = [*results.references.values(), *results.methods.values()]
    found = []
    for test in dict.fromkeys(test for model in models for test in model.tests):
        table = score_table(test, results)
        rows = [row for row in table.cells(" to ") if any(row[1:])]
        rows = [[_title(row[0], results), *row[1:]] for row in rows]
        found.append(ComparedTable(test, table.header(DIRECTIONS), rows))
    return found


def _title(name: str, results: Results) -> str:
    is_reference = name in results.references and not name.startswith("reference")
    return f"reference {name}" if is_reference else name


def _pictures(galleries: Sequence[Gallery]) -> Markup:
    """Each picture once, for the script to put where it is shown."""
    pictures = {
        f"{number}-{place}": sample.image
        for number, gallery in enumerate(galleries)
        for place, sample in gallery.samples.items()
    }
    # In a script element nothing is escaped but what would end it.
    return Markup(json.dumps(pictures).replace("<", "\\u003c"))


def _without_secrets(value: Any) -> Any:
    """Remove passwords and queries from the URLs in plain data."""
    match value:
        case str():
            return without_secrets(value)
        case dict():
            return {name: _without_secrets(content) for name, content in value.items()}
        case list():
            return [_without_secrets(content) for content in value]
    return value
