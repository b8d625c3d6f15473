"""A comparison -> its runs, its table and its plots."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from drrho.plotting.curves import Row, draw_curves
from drrho.plotting.table import method_title
from drrho.runtime.files import exclusive, write_atomically, write_json
from drrho.studies.compare.plots import draw_costs, draw_differences
from drrho.studies.compare.results import comparison_results
from drrho.studies.compare.runs import chosen_setting, finished, run_parts
from drrho.studies.compare.spec import Comparison, Part
from drrho.studies.compare.tables import comparison_table, explain
from drrho.training.log import read_metrics


def compare(comparison: Comparison, parts: Sequence[Part] | None = None) -> dict[str, Any]:
    """Runs what is missing of some parts, None is all, and writes the tables of what is finished.

    Returns:
        The contents of `results.json`; see `comparison_results`.

    Raises:
        TrainingInterrupted: a signal came; the same call continues.
    """
    run_parts(comparison, comparison.parts if parts is None else parts)
    return write_tables(comparison)


def write_tables(comparison: Comparison) -> dict[str, Any]:
    """Writes `results.json`, `results.md` and the plots of what is finished; trains nothing.

    Of several processes that end together the last one to write sees what all have finished.
    """
    folder = Path(comparison.output)
    with exclusive(folder / "claims" / "tables", wait=True):
        results = comparison_results(comparison)
        write_json(folder / "results.json", results)
        text = f"{comparison_table(results)}\n\n{explain(results)}\n"
        write_atomically(folder / "results.md", text.encode())
        logs = _logs(comparison)
        if logs:
            draw_curves(logs, folder / "curves.png", levels=_levels(comparison))
        if results["differences"]:
            draw_differences(results, folder / "differences.png")
        if any(method["tests"] for method in results["methods"].values()):
            draw_costs(results, folder / "costs.png")
    return results


def _logs(comparison: Comparison) -> dict[str, list[list[Row]]]:
    """Method -> metrics of its finished runs."""
    logs: dict[str, list[list[Row]]] = {}
    for part in comparison.parts:
        choice = chosen_setting(comparison, part.method)
        if choice is None:
            continue
        recipe = comparison.recipe(part, setting=choice["setting"])
        if finished(recipe) is not None:
            rows: list[Row] = [*read_metrics(Path(recipe.output))]
            logs.setdefault(method_title(part.method), []).append(rows)
    return logs


def _levels(comparison: Comparison) -> dict[str, float]:
    """What the references reached on the data they were validated on, where all share it."""
    levels = {}
    first = comparison.settings(next(iter(comparison.methods)))[0]
    for name in comparison.references:
        recipe = comparison.reference_recipe(name)
        results = None if recipe is None else finished(recipe)
        if recipe is None or results is None or recipe.evaluation.data != first.evaluation.data:
            continue
        if "evaluation/mrr" in results["metrics"]:
            levels[name] = results["metrics"]["evaluation/mrr"]
    return levels
