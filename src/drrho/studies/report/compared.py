"""A comparison on the page: its scores on each test set, and who is ahead."""

from dataclasses import dataclass

from drrho.studies.compare.results import Results
from drrho.studies.compare.tables import DIRECTIONS, score_table


@dataclass(frozen=True, kw_only=True)
class ComparedTable:
    """The scores of all models on a test set, in print."""

    title: str
    header: list[str]
    rows: list[list[str]]


def compared_tables(results: Results) -> list[ComparedTable]:
    """A table for each test set; models without a score on it are left out."""
    models = [*results.references.values(), *results.methods.values()]
    found = []
    for test in dict.fromkeys(test for model in models for test in model.tests):
        table = score_table(test, results)
        rows = [row for row in table.cells(" to ") if any(row[1:])]
        rows = [[_title(row[0], results), *row[1:]] for row in rows]
        found.append(ComparedTable(title=test, header=table.header(DIRECTIONS), rows=rows))
    return found


def _title(name: str, results: Results) -> str:
    is_reference = name in results.references and not name.startswith("reference")
    return f"reference {name}" if is_reference else name
