"""Contents of the page as plain data: runs, their groups by method, and studies."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from drrho.contrastive.objectives.algorithms import method_title
from drrho.plotting.palette import places
from drrho.recipe.folder import RunFolder
from drrho.studies.advise.results import AdviceResults
from drrho.studies.compare.results import Metrics, Results
from drrho.studies.report.alerts import Alert
from drrho.studies.report.gallery import Gallery
from drrho.studies.scaling.results import ScalingResults

OF_A_COMPARISON = re.compile(r"(?P<method>.+)-seed\d+")
REPLICATE = "replicate-"


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
    """Contents of the page: runs in their order, and studies by folder.

    Attributes:
        chance: comparison -> test set -> metric -> what guessing reaches.
        command: command that writes the page again; empty where it is not known.
        conclusion: sentence that the page begins with; empty for none.
        written: time of writing, for people; empty for none.
    """

    title: str
    runs: Sequence[ReportedRun]
    comparisons: Mapping[str, Results]
    scaling: Mapping[str, ScalingResults]
    version: str
    chance: Mapping[str, Mapping[str, Metrics]]
    advice: Mapping[str, AdviceResults] = field(default_factory=dict)
    command: str = ""
    conclusion: str = ""
    written: str = ""


@dataclass(frozen=True, kw_only=True)
class Group:
    """Runs of one method with several seeds, or a single run: one name, one colour, one score.

    Attributes:
        method: name of the method in its comparison, or of the objective.
        name: name on the page.
        place: place in the palette.
    """

    method: str
    name: str
    place: int
    runs: tuple[ReportedRun, ...]

    @property
    def validation(self) -> float | None:
        """Mean over the runs of the last mean reciprocal rank on the evaluation set."""
        scores = [score for run in self.runs if (score := last_score(run.folder)) is not None]
        return sum(scores) / len(scores) if scores else None


def last_score(run: RunFolder) -> float | None:
    """The last mean reciprocal rank on the evaluation set in a run's log."""
    values = (row.get("evaluation/mrr") for row in reversed(run.rows))
    return next((value for value in values if value is not None), None)


def study_of(run: RunFolder) -> Path:
    """The folder of the study that a run is a part of, or that it would be a part of."""
    parent = run.path.resolve().parent
    return parent.parent if parent.name.startswith(REPLICATE) else parent


def group_runs(runs: Sequence[ReportedRun]) -> list[Group]:
    """Groups the runs of a comparison by method; every other run is a group of its own."""
    found: dict[tuple[Path, str], list[ReportedRun]] = {}
    methods: dict[tuple[Path, str], str] = {}
    for run in runs:
        match = OF_A_COMPARISON.fullmatch(run.folder.path.resolve().name)
        key = (study_of(run.folder), match["method"] if match else run.name)
        found.setdefault(key, []).append(run)
        methods[key] = match["method"] if match else run.folder.recipe.objective.method
    names = _names(methods)
    colours = places([f"{names[key]}/{methods[key]}" for key in found])
    return [
        Group(
            method=methods[key],
            name=names[key],
            place=colours[f"{names[key]}/{methods[key]}"],
            runs=tuple(members),
        )
        for key, members in found.items()
    ]


def _names(methods: Mapping[tuple[Path, str], str]) -> dict[tuple[Path, str], str]:
    """A title for each group: its method's, with as much of its place as tells it apart."""
    titles = {key: method_title(method) for key, method in methods.items()}
    names = {}
    for key, title in titles.items():
        alike = [other for other, its in titles.items() if its == title]
        if len(alike) == 1:
            names[key] = title
        elif len({other[1] for other in alike}) == len(alike):
            names[key] = f"{title} ({key[1]})"
        else:
            names[key] = f"{title} ({key[0].name}/{key[1]})"
    return names
