"""`drrho train` and `drrho recipes`: from arguments to a recipe, and what its run found as text."""

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import tyro

from drrho.plotting.table import in_brackets, metrics_table
from drrho.recipe.filtering import FilterReport
from drrho.recipe.plan import plan_run
from drrho.recipe.published import SUMMARIES, Name, Scale, named_recipe
from drrho.recipe.recipe import Recipe, absent_part, load_recipe
from drrho.recipe.train import train_recipe

DRY_RUN, SCALE = "--dry-run", "--scale."
# What people type most, without the part of the recipe that it is of.
ALIASES = {
    "--batch-size": "--loading.batch-size",
    "--workers": "--loading.workers",
    "--steps": "--training.steps",
    "--precision": "--training.precision",
    "--lr": "--training.optimizer.learning-rate",
}
# A published recipe's steps and warm-up follow from its batch size.
ALIASES_OF_PUBLISHED = ALIASES | {"--batch-size": "--scale.batch-size"}


@dataclass(frozen=True, kw_only=True)
class ScaleOptions:
    """Size of a published recipe, before other fields are changed.

    Attributes:
        scale: size of the run.
    """

    scale: Scale = field(default_factory=Scale)


@dataclass(frozen=True, kw_only=True)
class RecipesConfig:
    """List the published recipes, with how to train one."""


def run_recipes(_config: RecipesConfig) -> str:
    """List the published recipes."""
    return _list_of_recipes()


def run_train(arguments: list[str]) -> str | tuple[str, int]:
    """Train a model by a recipe: FILE.py, or the name of a published one.

    A run found in the recipe's output folder is continued. `--dry-run` checks and describes the
    run, and writes nothing.
    """
    if not arguments or arguments[0].startswith("-"):
        usage = "usage: drrho train FILE.py|NAME ...; --help after it lists what it takes"
        return f"{usage}\n\n{_list_of_recipes()}", 0 if {"--help", "-h"} & set(arguments) else 2
    source, *options = arguments
    recipe = _recipe(source, [option for option in options if option != DRY_RUN])
    return plan_run(recipe) if DRY_RUN in options else _trained(recipe)


def _trained(recipe: Recipe) -> str:
    """Trains; returns the scores, what was seen and skipped, and where the model is."""
    results = train_recipe(recipe)
    scores = {
        name.removeprefix("evaluation/"): value
        for name, value in results["metrics"].items()
        if name.startswith("evaluation/")
    }
    table = f"{metrics_table({'evaluation': scores})}\n\n" if scores else ""
    skipped = sum(results["skipped"].values())
    if results["filtering"] is not None:
        table += f"filtering: {FilterReport(**results['filtering'])}\n\n"
    return (
        f"{table}{recipe.output}: {results['samples_seen']:,} samples in "
        f"{results['seconds']:,.0f} s, {skipped:,} skipped{in_brackets(results['skipped'])}; the "
        f"model is in {recipe.output}/model, its history in {recipe.output}/metrics.jsonl"
    )


def _recipe(source: str, arguments: list[str]) -> Recipe:
    """The recipe of a file or of a name, with fields changed.

    A file is what ends in `.py` or lies there; anything else is a name. `--scale.batch-size` and
    its like change a published recipe with all that follows from them, and come first.
    """
    if source in SUMMARIES and not Path(source).is_file():
        of_scale, others = _of_scale(_in_full(arguments, ALIASES_OF_PUBLISHED))
        prog = f"drrho train {source}"
        options = tyro.cli(ScaleOptions, args=of_scale, prog=prog)
        return _overridden(
            named_recipe(_name(source), options.scale), source, others, ALIASES_OF_PUBLISHED
        )
    if not source.endswith(".py") and not Path(source).exists():
        near = difflib.get_close_matches(source, list(SUMMARIES))
        raise ValueError(
            f"{source!r} is neither a Python file nor a published recipe"
            + (f"; near it: {near}" if near else "")
            + ". `drrho recipes` lists them"
        )
    recipe = load_recipe(source, Recipe)
    return _overridden(recipe, source, _in_full(arguments, ALIASES), ALIASES)


def _in_full(arguments: list[str], aliases: Mapping[str, str]) -> list[str]:
    """The arguments with the full name of every option.

    Raises:
        ValueError: an option is given twice, perhaps under both of its names.
    """
    found, given = [], {}
    for argument in arguments:
        name, equals, value = argument.partition("=")
        option = aliases.get(name, name)
        if option in given:
            raise ValueError(f"{given[option]} and {name} both set {option}; give one of them")
        if option.startswith("--"):
            given[option] = name
        found.append(f"{option}{equals}{value}")
    return found


def _name(source: str) -> Name:
    return next(name for name in SUMMARIES if name == source)


def _of_scale(arguments: list[str]) -> tuple[list[str], list[str]]:
    """The options of the scale, with their values, and the others."""
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
    width = max(map(len, SUMMARIES))
    rows = [f"  {name:<{width}}  {summary}" for name, summary in SUMMARIES.items()]
    return (
        "published recipes, for ViT-B/16 on 192 million pairs at batch 5,120:\n\n"
        + "\n".join(rows)
        + "\n\n  drrho train NAME --data train.json --reference reference --output runs/mine\n"
        "  --scale.batch-size, --scale.samples-seen, --scale.learning-rate: another size\n"
        "  any other field can be changed too; --dry-run shows what comes of it"
    )


def _overridden(
    recipe: Recipe, path: str, arguments: list[str], aliases: Mapping[str, str]
) -> Recipe:
    """The recipe with any field changed: `--training.steps 2000`.

    What the recipe leaves out altogether (`selection`, `objective.distillation`) has no fields to
    change; it is added in the file.

    Raises:
        ValueError: an option is of a part that the recipe leaves out.
    """
    for option in arguments:
        if option.startswith("--") and (part := absent_part(recipe, option)):
            raise ValueError(
                f"{option} has nothing to change: recipe {path} has {part} = None. Set {part} in a "
                "recipe's file; the command line can change it then"
            )
    return tyro.cli(
        Recipe,
        args=arguments,
        prog=f"drrho train {path}",
        description=(
            "Train a model by this recipe, with any field changed. --dry-run checks and describes "
            "the run.\n\nShort names: "
            + ", ".join(f"{short} = {full}" for short, full in aliases.items())
        ),
        default=recipe,
        config=(tyro.conf.AvoidSubcommands,),
    )
