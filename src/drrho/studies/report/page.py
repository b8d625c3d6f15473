"""One HTML page about runs, which needs no other file.

Charts are inline SVG, drawn by matplotlib in the page's colours, and not an interactive library: a
page of hundreds of kilobytes opens on a phone, prints, follows dark mode, and has its numbers in
tables for those who cannot see charts. The script only filters the galleries.
"""

import json
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from drrho.plotting.palette import COLOURS, DARK
from drrho.runtime.errors import without_secrets
from drrho.runtime.provenance import versions
from drrho.studies.report.advice import draw_advice
from drrho.studies.report.alerts import TAIL, THRESHOLDS, Alert
from drrho.studies.report.charts import draw_histogram, draw_panels, draw_scaling
from drrho.studies.report.content import Group, Report, ReportedRun, group_runs
from drrho.studies.report.gallery import Gallery
from drrho.studies.report.outcome import Outcome, outcomes_of, validation_outcome
from drrho.studies.report.settings import facts_of, settings_of
from drrho.studies.report.summary import summarise_run
from drrho.training.metrics import METRICS

KINDS = {
    "learnable": (
        "Learnable",
        "The reference finds the partner and the target does not yet: these count most.",
    ),
    "mismatched": (
        "Mismatched",
        "The reference does not find the partner: the caption may belong to another image.",
    ),
    "redundant": (
        "Redundant",
        "Repeats of another pair, and pairs that both models know: there is little to learn.",
    ),
    "hardest": ("Hardest", "The target does not find the partner."),
}


class GroupedAlert(NamedTuple):
    """An alert of a group of runs, with the text of the first run that has it."""

    group: str
    alert: Alert
    runs: str


def render(report: Report) -> str:
    """Renders the page as HTML.

    Raises:
        ValueError: there is neither a run nor a comparison.
    """
    if not report.runs and not report.comparisons:
        raise ValueError("a report needs at least one run")
    environment = Environment(
        loader=PackageLoader("drrho.studies.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    groups = group_runs(report.runs)
    charts, constants = draw_panels(groups)
    galleries = [run.gallery for run in report.runs if run.gallery is not None]
    shown = [_group_of(gallery, groups) for gallery in galleries]
    return environment.get_template("page.html").render(
        report=report,
        groups=groups,
        outcomes=_outcomes(report, groups),
        colours=len(COLOURS),
        palette=list(zip(COLOURS, DARK, strict=True)),
        alerts=grouped_alerts(groups),
        thresholds=THRESHOLDS,
        tail=TAIL,
        limits=[metric.limit for metric in METRICS if metric.limit is not None],
        charts=charts,
        constants=constants,
        scaling={name: draw_scaling(found, name) for name, found in report.scaling.items()},
        advice={name: draw_advice(found, name) for name, found in report.advice.items()},
        galleries=galleries,
        shown_groups=shown,
        kinds=KINDS,
        histograms=[
            draw_histogram(gallery, number, group)
            for number, (gallery, group) in enumerate(zip(galleries, shown, strict=True))
        ],
        pictures=_pictures(galleries),
        summaries=[
            (group, summarise_run(run.name, run.folder)) for group in groups for run in group.runs
        ],
        settings=settings_of(groups),
        facts=facts_of(groups, versions()),
        missing=_missing(report.runs),
        factor=factor,
        plain=without_secrets,
    )


def _outcomes(report: Report, groups: Sequence[Group]) -> list[tuple[str, Outcome]]:
    """What is told first: comparisons on their test sets or, without any, the validation scores."""
    found = [
        (name, outcome)
        for name, results in report.comparisons.items()
        for outcome in outcomes_of(results, groups, report.chance.get(name, {}))
    ]
    if not found and (validation := validation_outcome(groups)) is not None:
        found = [("", validation)]
    return found


def grouped_alerts(groups: Sequence[Group]) -> list[GroupedAlert]:
    """Alerts once for each group, warnings first, with the number of runs that have them."""
    found = []
    for group in groups:
        counts = Counter(alert.name for run in group.runs for alert in run.alerts)
        first = {alert.name: alert for run in reversed(group.runs) for alert in run.alerts}
        number = len(group.runs)
        found += [
            GroupedAlert(
                group.name, first[name], "" if number == 1 else f"{count} of {number} runs"
            )
            for name, count in counts.items()
        ]
    return sorted(found, key=lambda one: one.alert.grade != "warning")


def factor(weight: float) -> str:
    """Formats a weight: 12, 0.3, 0.02, or 0.00."""
    if weight >= 9.95:
        return f"{weight:,.0f}"
    return f"{weight:.1f}" if weight >= 0.95 else f"{weight:.2f}" if weight >= 0.005 else "0.00"


def _group_of(gallery: Gallery, groups: Sequence[Group]) -> Group:
    return next(group for group in groups if any(run.gallery is gallery for run in group.runs))


def _missing(runs: Sequence[ReportedRun]) -> list[str]:
    """What is not shown and why; a reason that many runs share once."""
    by_reason: dict[str, list[str]] = {}
    for run in runs:
        for reason in run.missing:
            by_reason.setdefault(reason, []).append(run.name)
    return [
        f"{', '.join(names) if len(names) <= 3 else f'{len(names)} runs'}: {reason}"
        for reason, names in by_reason.items()
    ]


def _pictures(galleries: Sequence[Gallery]) -> Markup:
    """Each picture once, for the script to put where it is shown."""
    pictures = {
        f"{number}-{place}": sample.image
        for number, gallery in enumerate(galleries)
        for place, sample in gallery.samples.items()
    }
    # In a script element nothing is escaped but what would end it.
    return Markup(json.dumps(pictures).replace("<", "\\u003c"))
