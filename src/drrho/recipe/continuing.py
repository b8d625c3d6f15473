"""A run found in its folder: finished, to be continued, or to be extended to more steps."""

from collections.abc import Collection
from pathlib import Path
from typing import Any

from drrho.recipe.document import (
    RECIPE_FILE,
    RESULTS_FILE,
    Part,
    RunResults,
    read_run_results,
)
from drrho.recipe.folder import read_run
from drrho.recipe.recipe import MAY_CHANGE, Recipe
from drrho.runtime.errors import CheckpointError
from drrho.runtime.provenance import config_differences
from drrho.training.checkpoint import (
    latest_checkpoint,
    list_checkpoints,
    lost_message,
    recover_replaced,
)
from drrho.training.optimizer import learning_rate_schedule

# What an extension may have of its own beside what every continued run may.
_SCHEDULES = tuple(
    f"training.optimizer.{schedule}{field}"
    for schedule in ("schedule", "temperature_schedule")
    for field in ("", ".kind", ".minimum", ".steps", ".power", ".threshold", ".factor")
)
EXTENSION_MAY_CHANGE = (
    *MAY_CHANGE,
    *_SCHEDULES,
    "training.steps",
    "training.optimizer.learning_rate",
    "training.optimizer.warmup_steps",
    "training.optimizer.temperature_lr_scale",
)


def finished_results(recipe: Recipe, config: dict[str, Any]) -> RunResults | None:
    """Return the results of a finished run; None if there is something left to train.

    The results of a run that is to be extended are put aside, and are its first part from then on.

    Raises:
        CheckpointError: the folder has lost its checkpoints.
        ValueError: the folder holds a run of another recipe, or the recipe's `resume` forbids what
            is found.
    """
    folder = Path(recipe.output)
    results = read_run_results(folder)
    recover_replaced(folder / "checkpoints")
    found = results is not None or len(list_checkpoints(folder / "checkpoints")) > 0
    lost = not found and _reached_a_checkpoint(folder)
    _require_choice_of_resume(recipe, found=found or lost)
    if lost:
        raise CheckpointError(lost_message(folder / "checkpoints"))
    if results is None:
        return None
    if extends(recipe, results):
        require_extensible(recipe, config, results)
        (folder / RESULTS_FILE).replace(folder / _earlier(results.recipe.training.num_steps))
        return None
    changed = config_differences(results.config, config, may_change=MAY_CHANGE)
    if changed:
        longer = recipe.training.num_steps > results.recipe.training.num_steps
        raise ValueError(
            f"{folder} holds a finished run of another recipe; train in another folder, or remove "
            "it:\n  "
            + "\n  ".join(changed)
            + ("\nto train for more steps, extend it: --extend" if longer else "")
        )
    before, now = results.recipe.evaluation.data, recipe.evaluation.data
    if now is not None and before != now:
        done = "was not evaluated" if before is None else f"was evaluated on {before}"
        raise ValueError(
            f"{folder} is finished and {done}; for another set run "
            f"`drrho evaluate {folder} --data {now}`"
        )
    return results


def extends(recipe: Recipe, results: RunResults) -> bool:
    """Whether the recipe asks for more steps than a finished run has."""
    longer = recipe.training.num_steps > results.recipe.training.num_steps
    return recipe.resume == "extend" and longer


def require_extensible(recipe: Recipe, config: dict[str, Any], results: RunResults) -> None:
    """Raise unless a finished run can continue by this recipe.

    Raises:
        ValueError: the recipe differs in more than its length and its rates.
        CheckpointError: the last checkpoint is gone.
    """
    folder, steps = Path(recipe.output), results.recipe.training.num_steps
    changed = config_differences(results.config, config, may_change=EXTENSION_MAY_CHANGE)
    if changed:
        raise ValueError(
            f"{folder} cannot be extended by another recipe than its own, but for length, learning "
            "rate and schedules:\n  " + "\n  ".join(changed)
        )
    newest = latest_checkpoint(folder / "checkpoints")
    if newest is None or newest.name != f"step-{steps:08d}":
        raise CheckpointError(
            f"{folder} cannot be extended: its checkpoint of step {steps:,} is gone. Restore it, "
            f"or begin another run from the trained model: model.name = run:{folder}"
        )


def may_change(recipe: Recipe) -> Collection[str]:
    """Name the values that may differ from the newest checkpoint's.

    An extension may have its own until it has written a checkpoint.
    """
    parts = earlier_results(recipe)
    newest = latest_checkpoint(Path(recipe.output) / "checkpoints")
    at_its_start = (
        len(parts) > 0
        and newest is not None
        and newest.name == f"step-{part_of(parts[-1]).steps:08d}"
    )
    return EXTENSION_MAY_CHANGE if recipe.resume == "extend" and at_its_start else MAY_CHANGE


def earlier_results(recipe: Recipe) -> list[RunResults]:
    """Read the results of the parts that a run had before it was extended to the recipe's steps."""
    folder = Path(recipe.output)
    names = sorted(path.name for path in folder.glob(_earlier("*")))
    found = [it for name in names if (it := read_run_results(folder, name=name)) is not None]
    return [it for it in found if it.recipe.training.num_steps < recipe.training.num_steps]


def part_of(results: RunResults) -> Part:
    """Make the part that a finished run becomes when it is extended."""
    training = results.recipe.training
    return Part(steps=training.num_steps, optimizer=training.optimizer)


def describe_extension(recipe: Recipe, part: Part) -> str:
    """Describe the schedules of a run before and after its extension, with the rate between."""
    now, steps = recipe.training.optimizer, recipe.training.num_steps
    before = learning_rate_schedule(part.optimizer, steps=part.steps)
    after = learning_rate_schedule(now, steps=steps)
    return (
        f"steps 1 to {part.steps:,} were trained under the schedule of a run of {part.steps:,} "
        f"steps ({part.optimizer.schedule}), whose rate ended at {before(part.steps - 1):.3g}; "
        f"steps {part.steps + 1:,} to {steps:,} follow the schedule of a run of {steps:,} steps "
        f"({now.schedule}), whose rate is {after(part.steps):.3g} there"
    )


def _earlier(steps: int | str) -> str:
    number = steps if isinstance(steps, str) else f"{steps:08d}"
    return f"results-step-{number}.json"


def _reached_a_checkpoint(folder: Path) -> bool:
    """Whether the log of a run without a folder of checkpoints says that it has written one."""
    if (folder / "checkpoints").exists() or not (folder / RECIPE_FILE).is_file():
        return False
    run = read_run(folder)
    return run.step >= run.recipe.training.checkpoint_every


def _require_choice_of_resume(recipe: Recipe, *, found: bool) -> None:
    match recipe.resume:
        case "never" if found:
            raise ValueError(
                f"{recipe.output} holds a run, and resume = 'never': choose another output, remove "
                "it, or continue it with resume = 'latest'"
            )
        case "required" | "extend" if not found:
            raise ValueError(
                f"{recipe.output} holds no run to continue, and resume = {recipe.resume!r}; to "
                "begin one use resume = 'latest'"
            )
