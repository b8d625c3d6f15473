"""`drrho compare`: train every method, write results, tables and plots."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from tyro.conf import Positional

from drrho.data.indexing import open_manifest
from drrho.data.subset import split_at_random
from drrho.models.program import trusting
from drrho.recipe.recipe import load_recipe
from drrho.runtime.files import expand_paths, write_atomically
from drrho.runtime.launch import require_one_process
from drrho.runtime.locks import exclusive
from drrho.studies.compare.collect import comparison_results
from drrho.studies.compare.curves import Row
from drrho.studies.compare.plots import draw_costs, draw_curves, draw_differences
from drrho.studies.compare.replicates import Replicates, replicated_results, run_replicates
from drrho.studies.compare.results import FILE_NAME, Results, write_results
from drrho.studies.compare.runs import chosen_setting, finished, run_parts
from drrho.studies.compare.spec import Comparison, Part
from drrho.training.log import read_metrics

FEWEST_PAIRS = 20  # for a tenth of them to be a test set


Study = Comparison | Replicates


def compare(comparison: Study, parts: Sequence[Part] | None = None) -> Results:
    """Runs what is missing of some parts, or of all, and writes the tables of what is finished.

    Raises:
        TrainingInterrupted: a signal came; the same call continues.
    """
    if isinstance(comparison, Replicates):
        with trusting(*comparison.of(comparison.numbers[0]).model_names):
            run_replicates(comparison, comparison.parts if parts is None else parts)
        return write_tables(comparison)
    comparison = with_test_set(comparison)
    with trusting(*comparison.model_names):  # its runs' folders name the programs again
        run_parts(comparison, comparison.parts if parts is None else parts)
    return write_tables(comparison)


def write_tables(comparison: Study) -> Results:
    """Writes `results.json`, `results.md` and the plots of what is finished; trains nothing.

    Of several processes that end together the last one to write sees what all have finished.
    """
    if isinstance(comparison, Comparison):
        comparison = with_test_set(comparison)
    folder = Path(comparison.output)
    with exclusive(folder / "claims" / "tables", wait=True):
        if isinstance(comparison, Comparison):
            results, parts = comparison_results(comparison), [comparison]
        else:
            results, parts = replicated_results(comparison), comparison.begun
        write_results(folder / FILE_NAME, results)
        write_atomically(folder / "results.md", f"{results}\n".encode())
        logs = _logs(parts)
        if logs:
            draw_curves(logs, folder / "curves.png", levels=_levels(parts[0]))
        if results.differences:
            draw_differences(results, folder / "differences.png")
        if any(method.tests for method in results.methods.values()):
            draw_costs(results, folder / "costs.png")
    return replace(results, folder=str(folder))


def with_test_set(comparison: Comparison) -> Comparison:
    """The comparison with a tenth of its data held out as the test set, where it names none.

    Both parts are written as manifests into its folder.

    Raises:
        ValueError: the methods have different data, or fewer than 20 pairs.
    """
    if comparison.tests:
        return comparison
    settings = {method: comparison.settings(method) for method in comparison.methods}
    sources = {recipe.data for recipes in settings.values() for recipe in recipes}
    if len(sources) > 1:
        raise ValueError(f"methods are trained on different data, {sorted(sources)}: give test")
    manifest = open_manifest(sources.pop())
    usable = len(manifest.usable_ids())
    if usable < FEWEST_PAIRS:
        raise ValueError(f"{usable} pairs are too few to hold out a tenth: give test")
    generator = torch.Generator().manual_seed(0)
    parts = split_at_random(manifest, usable // 10, generator=generator, reason="in the other part")
    paths = [Path(comparison.output) / "data" / f"{name}.json" for name in ("test", "train")]
    for part, path in zip(parts, paths, strict=True):
        path.parent.mkdir(parents=True, exist_ok=True)
        part.save(path)
    test, train = map(str, paths)
    methods = {
        method: tuple(replace(recipe, data=train) for recipe in recipes)
        for method, recipes in settings.items()
    }
    return replace(comparison, methods=methods, test=test)


def _logs(comparisons: Sequence[Comparison]) -> dict[str, list[list[Row]]]:
    """The logs of all finished runs, by method."""
    logs: dict[str, list[list[Row]]] = {}
    for comparison, part in ((it, part) for it in comparisons for part in it.parts):
        choice = chosen_setting(comparison, part.method)
        recipe = choice and comparison.run_recipe(part, setting=choice.setting)
        if recipe is not None and finished(recipe) is not None:
            logs.setdefault(part.method, []).append([*read_metrics(Path(recipe.output))])
    return logs


def _levels(comparison: Comparison) -> dict[str, float]:
    """Evaluation scores of the references that were evaluated on the data of the first method."""
    levels = {}
    first = comparison.settings(next(iter(comparison.methods)))[0]
    for name in comparison.references:
        recipe = comparison.reference_recipe(name)
        if recipe is not None and recipe.evaluation.data == first.evaluation.data:
            results = finished(recipe)
            if results is not None and "evaluation/mrr" in results.metrics:
                levels[name] = results.metrics["evaluation/mrr"]
    return levels


@dataclass(frozen=True, kw_only=True)
class CompareConfig:
    """Train references and every method, evaluate on the test sets, write table and plots.

    What is finished is kept. Several processes may work on one folder: no run is done twice.

    Attributes:
        seeds: random seeds; each method is trained once with each. For replicates, their numbers.
            None takes the recipe's.
        output: folder of all runs and tables; None takes the recipe's.
        only: runs to train, as METHOD:SEED (METHOD:REPLICATE of replicates); none given means all.
        tasks: number of tasks that share the runs; this call does the runs of one task.
        task: number of this task, from 0; None takes SLURM_ARRAY_TASK_ID.
        table_only: write the table of the finished runs, and train nothing.
        trust: run the programs that the folders of references name; needed for runs of
            "python:FILE.py" that are not of this comparison.
    """

    seeds: tuple[int, ...] | None = None
    output: str | None = None
    only: tuple[str, ...] = ()
    tasks: int | None = None
    task: int | None = None
    table_only: bool = False
    trust: bool = False

    def __post_init__(self):
        if sum((bool(self.only), self.tasks is not None, self.table_only)) > 1:
            raise ValueError("only, tasks and table_only exclude each other")
        if self.task is not None and self.tasks is None:
            raise ValueError(f"task = {self.task} has no effect without tasks, their number")

    def applied_to(self, comparison: Study) -> Study:
        """The comparison with the seeds and the output that are given here."""
        if isinstance(comparison, Replicates):
            return replace(
                comparison,
                replicates=comparison.numbers if self.seeds is None else self.seeds,
                output=comparison.output if self.output is None else self.output,
            )
        return replace(
            comparison,
            seeds=comparison.all_seeds if self.seeds is None else self.seeds,
            output=comparison.output if self.output is None else self.output,
        )

    def parts(self, comparison: Study) -> tuple[Part, ...]:
        """The runs to do.

        Raises:
            ValueError: there is no such run or task.
        """
        parts = comparison.parts
        if self.only:
            named = {str(part): part for part in parts}
            if unknown := [name for name in self.only if name not in named]:
                raise ValueError(f"only = {unknown[0]!r} is no METHOD:SEED of {', '.join(named)}")
            return tuple(named[name] for name in self.only)
        if self.tasks is None:
            return parts
        task = os.environ.get("SLURM_ARRAY_TASK_ID") if self.task is None else self.task
        if task is None:
            raise ValueError("tasks needs task, where no SLURM_ARRAY_TASK_ID is set")
        if int(task) not in range(self.tasks):
            raise ValueError(f"task must be from 0 to {self.tasks - 1}, got {task}")
        return parts[int(task) :: self.tasks]


@dataclass(frozen=True, kw_only=True)
class CompareCommand(CompareConfig):
    """Train references and every method, evaluate on the test sets, write table and plots.

    What is finished is kept. Several processes may work on one folder: no run is done twice.

    Attributes:
        recipe: Python file that defines `recipe = Comparison(...)` or `recipe = Replicates(...)`.
    """

    recipe: Positional[str]

    def __post_init__(self) -> None:
        expand_paths(self, "recipe")


def run_compare(config: CompareCommand) -> tuple[str, int]:
    """Train several methods over several seeds and compare them in one table."""
    require_one_process("drrho compare")
    return run_comparison(load_recipe(config.recipe, Comparison, Replicates), config)


def run_comparison(comparison: Study, config: CompareConfig) -> tuple[str, int]:
    """Runs the parts that the options name; returns the tables, and 1 where a run failed."""
    comparison = config.applied_to(comparison)
    if config.table_only:
        results = write_tables(comparison)
    else:
        with trusting(everything=config.trust):
            results = compare(comparison, config.parts(comparison))
    failed = any(method.failed for method in results.methods.values())
    return comparison_report(comparison.output), int(failed)


def comparison_report(output: str) -> str:
    """The tables of a finished comparison, and where its other files are."""
    written = (Path(output) / "results.md").read_text(encoding="utf-8")
    return f"\n{written}\nThe numbers are in {output}/results.json, the plots beside it."
