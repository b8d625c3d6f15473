"""`drrho train` and `drrho recipes`: arguments into a recipe, and its results into text."""

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import tyro

from drrho.contrastive.objectives.algorithms import ALGORITHMS
from drrho.evaluation.evaluate import chance_on
from drrho.evaluation.metrics.chance import beside
from drrho.evaluation.sets import open_evaluation_set
from drrho.models.program import trusting
from drrho.plotting.table import in_brackets, metrics_table
from drrho.recipe.arguments.override import overridden
from drrho.recipe.continuing import describe_extension
from drrho.recipe.export import EMA_NAME
from drrho.recipe.named.finetune import FINETUNE, SUMMARY, FineTuningScale, finetune_recipe
from drrho.recipe.named.published import Scale, named_recipe
from drrho.recipe.plan import plan_run
from drrho.recipe.recipe import Recipe, load_recipe
from drrho.recipe.train import train_recipe
from drrho.runtime.errors import UsageError
from drrho.runtime.launch import is_follower

DRY_RUN, TRUST, SCALE, EXTEND = "--dry-run", "--trust", "--scale.", "--extend"
HELP = ("--help", "--")
# Short names of the options that are typed most.
ALIASES = {
    "--batch-size": "--loading.batch-size",
    "--workers": "--loading.workers",
    "--steps": "--training.steps",
    "--epochs": "--training.epochs",
    "--precision": "--training.precision",
    "--lr": "--training.optimizer.learning-rate",
    "--trackers": "--training.trackers",
}
# The steps and the warm-up of a recipe with a name follow from its batch size.
ALIASES_OF_PUBLISHED = ALIASES | {"--batch-size": "--scale.batch-size"}


@dataclass(frozen=True, kw_only=True)
class ScaleOptions:
    """Size of a published recipe, before other fields are changed.

    Attributes:
        scale: size of the run.
    """

    scale: Scale = field(default_factory=Scale)


@dataclass(frozen=True, kw_only=True)
class FineTuningOptions:
    """Size of a fine-tuning run, before other fields are changed.

    Attributes:
        scale: size of the run.
    """

    scale: FineTuningScale = field(default_factory=FineTuningScale)


@dataclass(frozen=True, kw_only=True)
class RecipesConfig:
    """List the published recipes, with how to train one."""


def run_recipes(_config: RecipesConfig) -> str:
    """List the published recipes."""
    return _list_of_recipes()


def run_train(arguments: list[str]) -> str | tuple[str, int]:
    """Train a model by a recipe: FILE.py, or the name of a published one.

    A run found in the recipe's output folder is continued. `--dry-run` checks and describes the
    run, and writes nothing. `--extend` continues a finished run to the steps that are given.
    `--trust` runs the program that the folder of a model run:PATH names.
    """
    if not arguments or arguments[0].startswith("-"):
        usage = "usage: drrho train FILE.py|NAME ...; --help after it lists what it takes"
        return f"{usage}\n\n{_list_of_recipes()}", 0 if {"--help", "-h"} & set(arguments) else 2
    source, *options = arguments
    own = [it for it in options if it not in (DRY_RUN, TRUST, EXTEND)]
    if EXTEND in options:
        own += ["--resume", "extend"]
    recipe = recipe_of(source, own)
    with trusting(everything=TRUST in options):
        return plan_run(recipe) if DRY_RUN in options else _trained(recipe)


def _trained(recipe: Recipe) -> str:
    """Train, and describe the scores, the samples seen and skipped, and where the model is."""
    results = train_recipe(recipe)
    scores = {
        model: {
            name.removeprefix(f"{model}/"): value
            for name, value in results.metrics.items()
            if name.startswith(f"{model}/")
        }
        for model in ("evaluation", EMA_NAME)
    }
    chance = {}
    if any(scores.values()) and recipe.evaluation.data is not None and not is_follower():
        chance = chance_on(open_evaluation_set(recipe.evaluation.data))
    scores = {model: beside(found, chance) for model, found in scores.items() if found}
    table = f"{metrics_table(scores)}\n\n" if scores else ""
    skipped = sum(results.skipped.values())
    if results.parts:
        table += f"extended: {describe_extension(results.recipe, results.parts[-1])}\n\n"
    if results.filtering is not None:
        table += f"filtering: {results.filtering}\n\n"
    if (live := results.live) is not None:
        share = live.seconds / max(results.seconds, live.seconds)
        table += (
            f"live models: {live.pairs:,} pairs embedded in {live.seconds:,.0f} s, "
            f"{share:.0%} of the time\n\n"
        )
    return (
        f"{table}{recipe.output}: {results.samples_seen:,} samples in "
        f"{results.seconds:,.0f} s, {skipped:,} skipped{in_brackets(results.skipped)}; the "
        f"model is in {recipe.output}/model, its history in {recipe.output}/metrics.jsonl"
    )


def recipe_of(source: str, arguments: list[str]) -> Recipe:
    """Build the recipe of a file (`.py`, or a file that exists) or of a name, with fields changed.

    `--scale.batch-size` and its like change a published recipe with all that follows from them,
    and come first.

    Raises:
        UsageError: there is no such recipe, or an option does not make sense.
        FileNotFoundError, ValueError: the file does not exist, or defines no recipe.
    """
    if source in (*ALGORITHMS, FINETUNE) and not Path(source).is_file():
        of_scale, others = _of_scale(_in_full(arguments, ALIASES_OF_PUBLISHED))
        prog = f"drrho train {source}"
        if source == FINETUNE:
            recipe = finetune_recipe(tyro.cli(FineTuningOptions, args=of_scale, prog=prog).scale)
        else:
            recipe = named_recipe(source, tyro.cli(ScaleOptions, args=of_scale, prog=prog).scale)
        recipe, others = _reading(recipe, others)
        return _changed(recipe, others, source=source, aliases=ALIASES_OF_PUBLISHED)
    if not source.endswith(".py") and not Path(source).exists():
        near = difflib.get_close_matches(source, [*ALGORITHMS, FINETUNE])
        raise UsageError(
            f"{source!r} is neither a Python file nor a published recipe"
            + (f"; near it: {near}" if near else "")
            + ". `drrho recipes` lists them"
        )
    recipe, options = load_recipe(source, Recipe), _in_full(arguments, ALIASES)
    return _changed(recipe, options, source=source, aliases=ALIASES)


def without_recipe_options(arguments: list[str]) -> tuple[list[str], list[str]]:
    """Separate the options of a command that takes a recipe from those that change the recipe.

    The second are those with a dot and the short names that `drrho train` takes, with the values
    that follow.
    """
    own: list[str] = []
    changes: list[str] = []
    part = own
    for argument in arguments:
        if argument.startswith("--"):
            name = argument.partition("=")[0]
            part = changes if "." in name or name in ALIASES else own
        part.append(argument)
    return own, changes


def _reading(recipe: Recipe, arguments: list[str]) -> tuple[Recipe, list[str]]:
    """Let `--reference` of a named recipe name its teachers and what it filters by too.

    The option itself is taken out where the recipe has no other use of a reference.
    """
    folders: list[str] = []
    others: list[str] = []
    taken = False
    for argument in arguments:
        if argument.startswith("--"):
            name, equals, value = argument.partition("=")
            taken = name == "--reference"
            if taken and equals:
                folders.append(value)
        elif taken:
            folders.append(argument)
        if not taken:
            others.append(argument)
    changes: dict[str, Any] = {}
    if len(folders) == len(recipe.teachers) > 0:
        changes["teachers"] = tuple(folders)
    if len(folders) == 1 and recipe.filtering is not None:
        changes["filtering"] = replace(recipe.filtering, reference=folders[0])
    changed = replace(recipe, **changes)
    return changed, others if changes and recipe.reference is None else arguments


def _changed(
    recipe: Recipe, arguments: list[str], *, source: str, aliases: Mapping[str, str]
) -> Recipe:
    try:
        return overridden(recipe, arguments, source=source, description=_described(aliases))
    except ValueError as error:
        raise UsageError(str(error)) from error


def _in_full(arguments: list[str], aliases: Mapping[str, str]) -> list[str]:
    """Replace short names of options by full ones.

    Raises:
        UsageError: an option is given twice, perhaps under both of its names, or is misspelt.
    """
    found, given = [], {}
    own = {f"--{part.name.replace('_', '-')}" for part in fields(Recipe)}
    for argument in arguments:
        name, equals, value = argument.partition("=")
        option = aliases.get(name, name)
        plain = f"--{name.removeprefix('--').removeprefix('no-').replace('_', '-')}"
        is_short = name.startswith("--") and "." not in name and name not in HELP
        if is_short and plain not in {*aliases, *own}:
            near = difflib.get_close_matches(name, [*aliases, *own], n=1)
            remedy = f"did you mean {near[0]}?" if near else "--help lists what there is"
            raise UsageError(f"{name} is no option; {remedy}")
        if option in given:
            raise UsageError(f"{given[option]} and {name} both set {option}; give one of them")
        if option.startswith("--"):
            given[option] = name
        found.append(f"{option}{equals}{value}")
    return found


def _of_scale(arguments: list[str]) -> tuple[list[str], list[str]]:
    """Separate the options of the scale, with their values, from the others."""
    of_scale, others, takes = [], [], False
    for argument in arguments:
        if argument.startswith(SCALE):
            of_scale.append(argument)
            takes = "=" not in argument
        else:
            (of_scale if takes else others).append(argument)
            takes = False
    return of_scale, others


def _list_of_recipes() -> str:
    width = max(map(len, ALGORITHMS))
    rows = [f"  {name:<{width}}  {found.summary}" for name, found in ALGORITHMS.items()]
    return (
        "published recipes, for ViT-B/16 on 192 million pairs at batch 5,120:\n\n"
        + "\n".join(rows)
        + f"\n\nfor a pretrained model on data of your own:\n\n  {FINETUNE:<{width}}  {SUMMARY}"
        + "\n\n  drrho train NAME --data train.json --reference reference --output runs/mine\n"
        "  --scale.batch-size, --scale.samples-seen, --scale.learning-rate: another size\n"
        "  any other field can be changed too; --dry-run shows what comes of it"
    )


def _described(aliases: Mapping[str, str]) -> str:
    """Write the help of `drrho train RECIPE` that comes before the list of its options."""
    short = ", ".join(f"{short} = {full}" for short, full in aliases.items())
    return (
        "Train a model by this recipe, with any field changed. --dry-run checks and describes the "
        "run. --extend continues a finished run to more steps (--resume extend). --trust runs "
        "the program that the folder of a model run:PATH names. --objective.method and "
        "--objective.temperature.kind choose another class of objective and of temperature. A part "
        "that is left out begins with one of its options: --tuning.lora.rank, --training.ema.decay."
        f"\n\nShort names: {short}"
    )
