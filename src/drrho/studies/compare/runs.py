"""The runs of a comparison, one after another or several processes at once on one folder.

Every piece of work is claimed by a lock that the operating system ends with its process, so that
no two processes do the same, and a killed one leaves nothing that is taken. What a run needs,
references and choices of settings, is waited for; a run that another process has is left to it.
"""

import os
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

import torch

from drrho.models.build import Model
from drrho.recipe.document import RESULTS_FILE, RunResults, read_run_results
from drrho.recipe.recipe import MAY_CHANGE, Recipe
from drrho.recipe.train import train_recipe
from drrho.reference.build import PrecomputeConfig, precompute_reference
from drrho.runtime.errors import NotFiniteError
from drrho.runtime.files import write_json
from drrho.runtime.locks import exclusive
from drrho.runtime.progress import StudyProgress
from drrho.runtime.provenance import config_differences
from drrho.runtime.records import from_json, read_json_object, to_json
from drrho.studies.compare.guard import require_unseen
from drrho.studies.compare.results import PrecomputeCost
from drrho.studies.compare.scores import Tests, open_tests, score
from drrho.studies.compare.spec import (
    Comparison,
    Part,
    Stored,
    model_of_run,
    references_of,
    stored_of,
)

FAILURE_FILE, PRECOMPUTE_FILE = "failure.json", "precompute.json"


class PartFailed(RuntimeError):
    """A run, or what it needs, cannot be finished."""


def run_parts(
    comparison: Comparison, parts: Iterable[Part], *, progress: StudyProgress | None = None
) -> None:
    """Trains and scores runs that are not finished; a failure is noted, and the others continue.

    Args:
        progress: count of the runs of a whole study, of which these are some; None counts these.

    Raises:
        FileNotFoundError: a test set is not there; found before anything is trained.
        ValueError: a test set has nothing to evaluate, or holds samples that a method or its
            reference is trained or validated on; found before anything is trained.
        TrainingInterrupted: a signal came; what was finished is kept, and the run continues.
    """
    tests, parts = open_tests(comparison.tests), tuple(parts)
    require_unseen(comparison, dict.fromkeys(part.method for part in parts), tests)
    if comparison.threads is not None:
        torch.set_num_threads(comparison.threads)
    progress = StudyProgress(len(parts)) if progress is None else progress
    for part in parts:
        folder = Path(comparison.run_recipe(part).output)
        is_new = not (folder / RESULTS_FILE).is_file()
        claim = _claimed(comparison, f"{part.method}-seed{part.seed}")
        # A failure is noted in its folder; a blocked part is another process's.
        noted = progress.run(str(part), is_new=is_new)
        with noted, suppress(PartFailed, BlockingIOError), claim, _failures_noted(folder):
            _run_part(comparison, part, tests)


class Chosen(NamedTuple):
    """The place of a method's chosen setting, and the scores of all."""

    setting: int
    scores: tuple[float | None, ...]


def chosen_setting(comparison: Comparison, method: str) -> Chosen | None:
    """Chooses by the finished tuning runs; None before all of them are finished."""
    if comparison.tuning is None:
        return Chosen(0, ())
    metric = comparison.tuning.metric
    scores = []
    for setting in range(len(comparison.settings(method))):
        recipes = _tuning_recipes(comparison, method, setting)
        runs = [finished(recipe) for recipe in recipes]
        failures = [reason_of_failure(recipe) for recipe in recipes]
        if (None, None) in zip(runs, failures, strict=True):
            return None
        values = [
            None if run is None else _judged_by(run, it, metric)
            for run, it in zip(runs, recipes, strict=True)
        ]
        known = [value for value in values if value is not None]
        scores.append(fmean(known) if len(known) == len(values) else None)
    judged = [(value, -place) for place, value in enumerate(scores) if value is not None]
    return Chosen(-max(judged)[1], tuple(scores)) if judged else None


def _judged_by(run: RunResults, recipe: Recipe, metric: str) -> float | None:
    """The metric of the model that is scored: the best one's, where the run keeps that by it."""
    if recipe.training.keep_best == metric:
        path = Path(recipe.output) / "best" / "best.json"
        return from_json(Best, read_json_object(path), where=str(path)).value
    return run.metrics.get(metric)


@dataclass(frozen=True, kw_only=True)
class Best:
    """Contents of `best.json`: the evaluation whose model a run has kept."""

    metric: str
    step: int
    value: float


def _tuning_recipes(comparison: Comparison, method: str, setting: int) -> list[Recipe]:
    return [
        recipe for judge in comparison.judges for recipe in judge.tuning_recipes(method, setting)
    ]


def finished(recipe: Recipe) -> RunResults | None:
    """The results of a recipe's run; None if it is not finished, or the folder has another's."""
    results = read_run_results(Path(recipe.output))
    if results is None:
        return None
    may_change = {*MAY_CHANGE}
    if recipe.training.steps is None:  # the run's own follow from the epochs
        may_change = may_change - {"training.epochs"} | {"training.steps"}
    start = _start_of(recipe)
    if start is not None and start == _start_of(results.recipe):
        may_change = {*may_change, "model.name"}
    saved, wanted = to_json(results.recipe), to_json(recipe)
    return None if config_differences(saved, wanted, may_change=may_change) else results


def _start_of(recipe: Recipe) -> str | None:
    """The run that a model starts from, from the run's own folder, so that a study can be moved."""
    schema, _, place = recipe.model.name.partition(":")
    return os.path.relpath(place, recipe.output) if schema == "run" else None


@dataclass(frozen=True, kw_only=True)
class Failure:
    """The reason why a run failed, and whether its numbers stopped being finite."""

    reason: str
    diverged: bool


def failure(folder: Path) -> Failure | None:
    """Reads why a run failed; None if it did not."""
    path = folder / FAILURE_FILE
    if not path.is_file():
        return None
    return from_json(Failure, read_json_object(path), where=str(path))


def reason_of_failure(recipe: Recipe) -> str | None:
    """Reads why a recipe's run failed; None if it did not."""
    found = failure(Path(recipe.output))
    return None if found is None else found.reason


def _run_part(comparison: Comparison, part: Part, tests: Tests) -> None:
    setting = _choose_setting(comparison, part.method)
    recipe = comparison.run_recipe(part, setting=setting)
    named = comparison.settings(part.method)[setting]
    _prepare_references(comparison, named)
    train_recipe(recipe)
    _score(model_of_run(recipe), Path(recipe.output), recipe, tests)
    # References last, when all that use them are at work. Stored embeddings alone cannot be scored.
    for name in references_of(named):
        model = comparison.reference_model(name)
        if model is not None:
            with _claimed(comparison, f"scores-of-{name}", wait=True):
                _score(model, comparison.reference_folder(name), recipe, tests)


def _score(model: Model, folder: Path, like: Recipe, tests: Tests) -> None:
    score(model, folder, tests, batch_size=like.evaluation.batch_size, device=like.device)


def _choose_setting(comparison: Comparison, method: str) -> int:
    """Trains the tuning runs that are missing; processes share them out."""
    settings = range(len(comparison.settings(method)))
    choice = chosen_setting(comparison, method)
    for wait in (False, True) if choice is None else ():
        for setting in settings:
            for judge in comparison.judges:
                for recipe in judge.tuning_recipes(method, setting):
                    _tune(judge, method, setting, recipe, wait=wait)
    choice = chosen_setting(comparison, method)
    if choice is None:
        recipes = [
            it for setting in settings for it in _tuning_recipes(comparison, method, setting)
        ]
        raise PartFailed(
            f"no setting of {method} could be chosen by {comparison.tuning}: "
            f"{[reason_of_failure(recipe) for recipe in recipes]}"
        )
    return choice.setting


def _tune(comparison: Comparison, method: str, setting: int, recipe: Recipe, *, wait: bool) -> None:
    if finished(recipe) is not None:
        return
    claim = _claimed(comparison, f"tuning-{Path(recipe.output).name}", wait=wait)
    with suppress(PartFailed, BlockingIOError), claim, _failures_noted(Path(recipe.output)):
        _prepare_references(comparison, comparison.settings(method)[setting])
        train_recipe(recipe)


def _prepare_references(comparison: Comparison, recipe: Recipe) -> None:
    """Trains the references that a recipe names and stores their embeddings of its data."""
    for name in references_of(recipe):
        with _claimed(comparison, f"reference-{name}", wait=True):
            wanted = comparison.reference_recipe(name)
            if wanted is not None and finished(wanted) is None:
                with _failures_noted(Path(wanted.output), what=f"reference {name}"):
                    reference = comparison.references[name]
                    assert isinstance(reference, Recipe)
                    _prepare_references(comparison, reference)
                    train_recipe(wanted)
            for stored in stored_of(recipe):
                if stored.reference == name:
                    _store_embeddings(comparison, stored, recipe)


def _store_embeddings(comparison: Comparison, stored: Stored, like: Recipe) -> None:
    folder = comparison.embeddings(stored)
    cost = read_precompute_cost(folder)
    model, views = comparison.reference_model(stored.reference), stored.views
    if model is None or (cost is not None and cost.samples is not None):
        return
    with timed(folder) as noted:
        report = precompute_reference(
            PrecomputeConfig(
                model=model.name,
                pretrained=model.pretrained,
                data=stored.data,
                output=str(folder),
                batch_size=like.evaluation.batch_size,
                workers=like.loading.workers,
                views=None if views is None else views.count,
                views_seed=None if views is None else views.seed,
                views_scale=None if views is None else views.scale,
                views_captions=None if views is None else views.captions,
                device=like.device,
            )
        )
        noted |= {"samples": report.num_encoded, "without_embeddings": sum(report.absent.values())}


def _claimed(comparison: Comparison, name: str, *, wait: bool = False):
    return exclusive(Path(comparison.output) / "claims" / name, wait=wait)


@contextmanager
def _failures_noted(folder: Path, *, what: str = "") -> Iterator[None]:
    """Records why the block failed, and raises PartFailed.

    A run whose numbers stopped being finite would do so again: it is not repeated until its
    folder is removed. Other failures (a full disk, a missing file) are tried again.
    """
    path, before = folder / FAILURE_FILE, failure(folder)
    if before is not None and before.diverged:
        raise PartFailed(before.reason)
    try:
        yield
    except BlockingIOError:
        raise
    except (RuntimeError, ValueError, OSError) as error:
        reason = str(error) if isinstance(error, PartFailed | NotFiniteError) else repr(error)
        reason = f"{what}: {reason}" if what else reason
        found = Failure(reason=reason, diverged=isinstance(error, NotFiniteError))
        write_json(path, to_json(found))
        raise PartFailed(reason) from error
    path.unlink(missing_ok=True)


@contextmanager
def timed(folder: Path) -> Iterator[dict[str, Any]]:
    """Adds the seconds of the block, and what it notes, to the folder's `precompute.json`.

    Parts of an interrupted precomputation add up.
    """
    found = read_precompute_cost(folder) or PrecomputeCost()
    started = time.perf_counter()
    noted: dict[str, Any] = {}
    try:
        yield noted
    finally:
        seconds = found.seconds + time.perf_counter() - started
        write_json(folder / PRECOMPUTE_FILE, noted | {"seconds": seconds})


def read_precompute_cost(folder: Path) -> PrecomputeCost | None:
    """The cost that `timed` noted, model building included; None if it has not begun."""
    path = folder / PRECOMPUTE_FILE
    if not path.is_file():
        return None
    return from_json(PrecomputeCost, read_json_object(path), where=str(path))
