"""Settings of the runs on a page: in what they differ, and what they have in common."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from drrho.recipe.document import RunResults
from drrho.runtime.errors import without_secrets
from drrho.runtime.provenance import flat
from drrho.runtime.records import to_json
from drrho.studies.report.content import Group

OWN = ("output", "seed")  # of every run its own


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Settings by name.

    Attributes:
        header: names of the groups.
        differing: name, and the value of each group.
        common: name and value.
    """

    header: tuple[str, ...]
    differing: tuple[tuple[str, ...], ...]
    common: tuple[tuple[str, str], ...]


def settings_of(groups: Sequence[Group]) -> Settings:
    """Compares the recipes of the first run of each group."""
    recipes = [flat(to_json(group.runs[0].folder.recipe)) for group in groups]
    names = dict.fromkeys(name for recipe in recipes for name in recipe if name not in OWN)
    differing, common = [], []
    for name in names:
        values = [recipe.get(name, "") for recipe in recipes]
        if all(value == values[0] for value in values):
            common.append((name, _text(values[0])))
        else:
            differing.append((name, *map(_text, values)))
    return Settings(
        header=tuple(group.name for group in groups),
        differing=tuple(differing),
        common=tuple((name, value) for name, value in common if value != "none"),
    )


def _text(value: Any) -> str:
    if value is None or value in ({}, []):
        return "none"
    return without_secrets(str(value))


def facts_of(groups: Sequence[Group], versions: dict[str, str | None]) -> list[tuple[str, str]]:
    """What a reader needs to know of where the numbers come from, by name."""
    runs = [run.folder for group in groups for run in group.runs]
    results = [run.results for run in runs if run.results is not None]
    found = results[-1].versions if results else versions
    facts = [
        ("training data", _each(without_secrets(run.recipe.data) for run in runs)),
        ("validation data", _each(run.recipe.evaluation.data or "" for run in runs)),
        ("reference", _each(_text(run.recipe.reference) for run in runs if run.recipe.reference)),
        ("time of training", _seconds(results)),
        ("time of live models", _live_seconds(results)),
        ("versions", ", ".join(f"{name} {value}" for name, value in found.items() if value)),
    ]
    return [(name, without_secrets(value)) for name, value in facts if value]


def _each(values: Any) -> str:
    different = list(dict.fromkeys(value for value in values if value))
    shown = ", ".join(different[:3])
    return shown if len(different) <= 3 else f"{shown}, and {len(different) - 3} more"


def _live_seconds(results: Sequence[RunResults]) -> str:
    costs = [found.live for found in results if found.live is not None]
    if not costs:
        return ""
    pairs = sum(cost.pairs for cost in costs)
    return f"{sum(cost.seconds for cost in costs):.0f} seconds of it, for {pairs:,} pairs"


def _seconds(results: Sequence[RunResults]) -> str:
    if not results:
        return ""
    total = sum(found.seconds for found in results)
    words = f"{total / 60:.1f} minutes" if total >= 90 else f"{total:.0f} seconds"
    return f"{words}, {len(results)} run{'s' if len(results) > 1 else ''} together"
