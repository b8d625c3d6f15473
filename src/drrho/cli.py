"""The command line: `drrho COMMAND ...`."""

import difflib
import os
import sys
import traceback
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from drrho import __version__

try:
    import tyro

    from drrho import commands
    from drrho.data.index import IndexConfig, MixConfig
    from drrho.evaluation.evaluate import EvaluateConfig
    from drrho.recipe.export import ExportConfig
    from drrho.recipe.published import SUMMARIES, Name, Scale, named_recipe
    from drrho.recipe.recipe import Recipe, absent_part, load_recipe
    from drrho.recipe.train import TrainingInterrupted
    from drrho.reference.build import LossesConfig, PrecomputeConfig, VerifyConfig
    from drrho.reference.formats.build import ImportConfig
    from drrho.runtime.launch import is_follower
    from drrho.studies.compare.spec import Comparison
    from drrho.studies.curate.curate import CurateConfig
    from drrho.studies.demo import DemoConfig
    from drrho.studies.probe.probe import LossesProbeConfig, ProbeConfig
    from drrho.studies.report.write import ReportConfig
    from drrho.studies.scaling.fit import EfficiencyConfig, FitConfig
except ModuleNotFoundError as error:  # the losses alone are installed
    raise SystemExit(
        f"drrho: error: {error}; the command line needs: pip install 'drrho[clip,report]'"
    ) from error

USAGE = f"""drrho {__version__}: train a model better under the guidance of a reference model

usage: drrho COMMAND ...          (drrho COMMAND --help describes one)

  demo                             the whole way on procedural scenes, minutes on a CPU
  index DATA                       shards -> manifest: counts, key hashes, sample ids
  mix MANIFEST ... --output MIX    several data sets as one, with weights
  reference precompute             store a reference model's embeddings of a data set
  reference verify FOLDER          every stored row, and some samples encoded again
  reference import FORMAT SOURCE   take over embeddings that another program stored
  reference losses FOLDER          what is known of stored losses; how alike references are
  probe RECIPE.py --reference R .. which reference will steer best, before training
  probe losses TABLE --pilots A B  the same from losses that any training loop wrote
  train RECIPE [--FIELD VALUE]     train a model; continues what it finds. RECIPE is FILE.py or
                                   the name of a published one; --dry-run checks and describes it
  recipes                          the published recipes
  compare RECIPE.py [--seeds ...]  references first, then several methods; one table
  scaling fit RESULTS ...          error against compute: E = a C^-b with intervals
  scaling efficiency RESULTS ...   how many times the samples the baseline needs
  variance RUN ...                 of loss and excess losses on held-out pairs, drawn
  evaluate RUN --data SET ...      retrieval and zero-shot classification
  export RUN --format F --output O a model as open_clip or Hugging Face loads it
  report RUN ... -o report.html    one page: curves, comparisons, what steering sees
  curate RUN --output FOLDER       rank the pairs of a data set, leave some out of it
  scenes FOLDER                    draw captioned scenes as WebDataset shards

DRRHO_TRACEBACK=1 shows where an error came from.
"""
DRY_RUN, SCALE = "--dry-run", "--scale."


@dataclass(frozen=True, kw_only=True)
class ScaleOptions:
    """Of a published recipe, before its fields are changed.

    Attributes:
        scale: how large the run is.
    """

    scale: Scale = field(default_factory=Scale)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; returns the exit status."""
    warnings.formatwarning = _one_line
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    try:
        return _dispatch(arguments)
    except TrainingInterrupted as interruption:
        print(f"drrho: {interruption}", file=sys.stderr)
        return interruption.exit_status
    except commands.USER_ERRORS as error:
        if os.environ.get("DRRHO_TRACEBACK"):
            traceback.print_exc()
        print(f"drrho: error: {error}", file=sys.stderr)
        return 1


def _one_line(message: Warning | str, *_place: object, **_line: object) -> str:
    """A warning without the line of our code that gave it."""
    return f"drrho: warning: {message}\n"


def _dispatch(arguments: list[str]) -> int:
    match arguments:
        case ["demo", *rest]:
            print(commands.run_demo(tyro.cli(DemoConfig, args=rest, prog="drrho demo")))
        case ["index", *rest]:
            print(commands.run_index(tyro.cli(IndexConfig, args=rest, prog="drrho index")))
        case ["mix", *rest]:
            print(commands.run_mix(tyro.cli(MixConfig, args=rest, prog="drrho mix")))
        case ["reference", "precompute", *rest]:
            prog = "drrho reference precompute"
            _report(commands.run_precompute(tyro.cli(PrecomputeConfig, args=rest, prog=prog)))
        case ["reference", "verify", *rest]:
            prog = "drrho reference verify"
            print(commands.run_verify(tyro.cli(VerifyConfig, args=rest, prog=prog)))
        case ["reference", "import", *rest]:
            prog = "drrho reference import"
            print(commands.run_import(tyro.cli(ImportConfig, args=rest, prog=prog)))
        case ["reference", "losses", *rest]:
            prog = "drrho reference losses"
            print(commands.run_losses(tyro.cli(LossesConfig, args=rest, prog=prog)))
        case ["probe", "losses", *rest]:
            prog = "drrho probe losses"
            print(commands.run_probe_losses(tyro.cli(LossesProbeConfig, args=rest, prog=prog)))
        case ["probe", path, *rest] if _is_recipe(path):
            config = tyro.cli(ProbeConfig, args=rest, prog="drrho probe RECIPE.py")
            print(commands.run_probe(load_recipe(path, Recipe), config))
        case ["train", path, *rest] if _is_recipe(path):
            wanted = [argument for argument in rest if argument != DRY_RUN]
            recipe = _recipe(path, wanted)
            run = commands.run_train if len(wanted) == len(rest) else commands.run_dry
            _report(run(recipe))
        case ["recipes", *_]:
            print(_list_of_recipes())
        case ["compare", path, *rest] if _is_recipe(path):
            config = tyro.cli(commands.CompareConfig, args=rest, prog="drrho compare RECIPE.py")
            text, status = commands.run_compare(load_recipe(path, Comparison), config)
            print(text)
            return status
        case ["train", *_]:
            print(
                f"usage: drrho train FILE.py|NAME ...; --help after it lists what it takes\n\n"
                f"{_list_of_recipes()}"
            )
            return 0 if "--help" in arguments else 2
        case ["compare", *_]:
            return _without_recipe(arguments, commands.CompareConfig)
        case ["probe", *_]:
            return _without_recipe(arguments, ProbeConfig)
        case ["scaling", "fit", *rest]:
            config = tyro.cli(FitConfig, args=rest, prog="drrho scaling fit")
            print(commands.run_scaling_fit(config))
        case ["scaling", "efficiency", *rest]:
            config = tyro.cli(EfficiencyConfig, args=rest, prog="drrho scaling efficiency")
            print(commands.run_scaling_efficiency(config))
        case ["variance", *rest]:
            config = tyro.cli(commands.VarianceConfig, args=rest, prog="drrho variance")
            print(commands.run_variance(config))
        case ["evaluate", *rest]:
            _report(
                commands.run_evaluate(tyro.cli(EvaluateConfig, args=rest, prog="drrho evaluate"))
            )
        case ["export", *rest]:
            print(commands.run_export(tyro.cli(ExportConfig, args=rest, prog="drrho export")))
        case ["report", *rest]:
            print(commands.run_report(tyro.cli(ReportConfig, args=rest, prog="drrho report")))
        case ["curate", *rest]:
            print(commands.run_curate(tyro.cli(CurateConfig, args=rest, prog="drrho curate")))
        case ["scenes", *rest]:
            config = tyro.cli(commands.DrawConfig, args=rest, prog="drrho scenes")
            print(commands.run_scenes(config))
        case ["--version"]:
            print(__version__)
        case [] | ["--help" | "-h" | "help"] | ["reference" | "scaling", "--help" | "-h"]:
            print(USAGE, end="")
        case ["reference" | "scaling" as group, *_]:
            given = " ".join(arguments[:2])
            ways = [line for line in USAGE.splitlines() if line.startswith(f"  {group} ")]
            print(f"drrho: {given!r} is no command; there are\n", *ways, sep="\n", file=sys.stderr)
            return 2
        case _:
            print(f"drrho: unknown command {' '.join(arguments[:2])!r}\n\n{USAGE}", file=sys.stderr)
            return 2
    return 0


def _is_recipe(argument: str) -> bool:
    """Whether it is in place of one, and no option."""
    return not argument.startswith("-")


def _without_recipe(arguments: list[str], config: type) -> int:
    """The options of a command, or what it lacks."""
    command = f"drrho {arguments[0]}"
    if {"--help", "-h"} & set(arguments):
        tyro.cli(config, args=["--help"], prog=f"{command} RECIPE.py")
    print(f"drrho: error: {command} takes a recipe first, a Python file", file=sys.stderr)
    return 2


def _report(text: str) -> None:
    """Prints what all processes of a run found, once."""
    if not is_follower():
        print(text)


def _recipe(source: str, arguments: list[str]) -> Recipe:
    """The recipe of a file or of a name, with fields changed.

    A file is what ends in `.py` or lies there; anything else is a name. `--scale.batch-size` and
    its like change a published recipe with all that follows from them, and come first.
    """
    if source in SUMMARIES and not Path(source).is_file():
        of_scale, others = _of_scale(arguments)
        prog = f"drrho train {source}"
        options = tyro.cli(ScaleOptions, args=of_scale, prog=prog)
        return _overridden(named_recipe(_name(source), options.scale), source, others)
    if not source.endswith(".py") and not Path(source).exists():
        near = difflib.get_close_matches(source, list(SUMMARIES))
        raise ValueError(
            f"{source!r} is neither a Python file nor a published recipe"
            + (f"; near it: {near}" if near else "")
            + ". `drrho recipes` lists them"
        )
    return _overridden(load_recipe(source, Recipe), source, arguments)


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


def _overridden(recipe: Recipe, path: str, arguments: list[str]) -> Recipe:
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
        default=recipe,
        config=(tyro.conf.AvoidSubcommands,),
    )
