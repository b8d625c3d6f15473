"""Files of a run that describe it: `recipe.json`, also of earlier versions, and `results.json`."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from drrho.recipe.filtering import FilterReport
from drrho.recipe.recipe import Recipe
from drrho.runtime.files import require_on_this_machine, write_json
from drrho.runtime.records import (
    FORMAT,
    OPTIONAL,
    from_json,
    read_json_object,
    read_versioned,
    to_json,
)
from drrho.training.optimizer import Optimizer
from drrho.training.tracking.tracker import TENSORBOARD

RECIPE_FILE, RESULTS_FILE = "recipe.json", "results.json"
CONTENTS = "contents"  # identities of what a recipe names, recorded beside its own fields


@dataclass(frozen=True, kw_only=True)
class Part:
    """A part of a run, before it was extended.

    Attributes:
        steps: steps that it ended after.
        optimizer: rates and schedules that it was trained under, made for a run of so many steps.
    """

    steps: int
    optimizer: Optimizer


@dataclass(frozen=True, kw_only=True)
class LiveCost:
    """Cost of the models that embedded in training.

    Attributes:
        pairs: forward passes of pairs, without a backward pass; a pair that two models embed is
            two.
        seconds: wall time of these passes in the first process, by the log; the images that were
            read for them are not in it.
    """

    pairs: int
    seconds: float


@dataclass(frozen=True, kw_only=True)
class RunResults:
    """Results of a finished run; what it did without (reference, filter) is None.

    Attributes:
        contents: identities of the data, of the stored embeddings and of the filtered pairs.
        metrics: metrics of the last step and of the last evaluation, by name.
        samples_seen: pairs that the model was trained on.
        epochs: passes over the pairs.
        seconds: wall time of training, evaluations included.
        skipped: reason -> number of samples left out of their batches.
        skipped_steps: steps left out because a number was not finite.
        processes: number of processes.
        parts: parts of the run before it was extended; none of a run trained in one.
        live: cost of the live models.
        reference, teachers: identities of their stores.
        versions: library -> version.
    """

    version: ClassVar = 1
    recipe: Recipe
    contents: Mapping[str, Any] = field(default_factory=dict)
    metrics: Mapping[str, float]
    samples_seen: int
    epochs: float = float("nan")
    seconds: float
    skipped: Mapping[str, int] = field(default_factory=dict)
    skipped_steps: int = 0
    samples_without_reference: int | None = None
    filtering: FilterReport | None = None
    processes: int = 1
    parts: tuple[Part, ...] = field(default=(), metadata=OPTIONAL)
    live: LiveCost | None = field(default=None, metadata=OPTIONAL)
    reference: Mapping[str, Any] | None = None
    teachers: tuple[Mapping[str, Any], ...] = ()
    versions: Mapping[str, str | None] = field(default_factory=dict)

    @property
    def config(self) -> dict[str, Any]:
        """Recipe with its contents, as `recipe.json` has it."""
        return to_json(self.recipe) | {CONTENTS: self.contents}


def write_run_results(folder: Path, results: RunResults) -> None:
    """Write a run's `results.json`, in which the contents are a part of the recipe."""
    content = to_json(results) | {"recipe": results.config}
    del content[CONTENTS]
    write_json(folder / RESULTS_FILE, {FORMAT: results.version, **content})


def read_run_results(folder: Path, *, name: str = RESULTS_FILE) -> RunResults | None:
    """Read `results.json` of a run or of an earlier part of it; None if it is not finished.

    Raises:
        ValueError: the file is damaged, or of a later version.
    """
    path = folder / name
    if not path.is_file():
        return None
    content = read_versioned(path, RunResults)
    recipe = content.get("recipe")
    if isinstance(recipe, Mapping):
        contents = recipe.get(CONTENTS, {})
        content |= {"recipe": read_recipe(recipe, where=f"{path}: recipe"), CONTENTS: contents}
    return from_json(RunResults, content, where=str(path))


def read_recipe_file(folder: Path) -> dict[str, Any]:
    """Read a run's `recipe.json` as today's version would write it, contents included.

    Raises:
        FileNotFoundError: the folder holds no run.
        ValueError: the file is damaged.
    """
    require_on_this_machine(folder, "run")
    path = folder / RECIPE_FILE
    if not path.is_file():
        raise FileNotFoundError(
            f"{folder} holds no run: it has no {RECIPE_FILE}. Give a folder that `drrho train` or "
            "`drrho compare` wrote"
        )
    document = read_json_object(path)
    try:
        return upgraded(document)
    except ValueError as error:
        raise ValueError(f"{path} is damaged: {error}") from error


def read_recipe(document: Mapping[str, Any], *, where: str = "recipe") -> Recipe:
    """Build a recipe from what `to_json` made of it, in this version or an earlier one.

    Raises:
        ValueError: it is no recipe.
    """
    own = {name: value for name, value in document.items() if name != CONTENTS}
    if isinstance(own.get("objective"), Mapping):
        own["objective"] = _upgraded_objective(own["objective"])
    if isinstance(own.get("training"), Mapping):
        own["training"] = _upgraded_training(own["training"])
    return from_json(Recipe, own, where=where, strict=True)


def upgraded(document: Mapping[str, Any]) -> dict[str, Any]:
    """Convert a recorded recipe, with its contents, to what today's version would write.

    Raises:
        ValueError: it is no recipe.
    """
    kept = {CONTENTS: document[CONTENTS]} if CONTENTS in document else {}
    return to_json(read_recipe(document)) | kept


def _upgraded_training(document: Mapping[str, Any]) -> dict[str, Any]:
    """Convert settings of training of a version whose only tracker with a name was wandb."""
    found = dict(document)
    project = found.pop("wandb_project", None)
    if isinstance(project, str):
        found.setdefault("trackers", [TENSORBOARD, f"wandb:{project}"])
    return found


def _upgraded_objective(document: Mapping[str, Any]) -> dict[str, Any]:
    """Convert an objective that the version of 2026-11-30 wrote, one class for all methods."""
    found = dict(document)
    temperature = found.get("temperature")
    if isinstance(temperature, Mapping) and temperature.get("kind") != "per_sample":
        if "learning_rate" in temperature:  # one class for all: this one's had no limit to give
            temperature = {name: temperature[name] for name in temperature if name != "maximum"}
        if temperature.get("kind") == "per_direction":
            temperature = {**temperature, "kind": "learned", "per_direction": True}
        found["temperature"] = temperature
    if found.get("method") not in ("fastclip", "drrho_clip"):
        found.pop("gamma_schedule", None)
    if found.get("method") == "distillation" and isinstance(found.get("distillation"), Mapping):
        found["teacher_temperatures"] = found.pop("distillation")["teacher_temperatures"]
    return found
