"""The command line: `drrho COMMAND ...`."""

import logging
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import tyro
from tyro.conf import Positional

from drrho import __version__
from drrho.data.scenes import ScenesConfig, write_scenes
from drrho.files import write_json
from drrho.report.comparison import comparison_table, explain
from drrho.report.table import markdown_table
from drrho.run.comparison import Comparison, compare
from drrho.run.demo import DemoConfig, demo
from drrho.run.evaluation import EvaluateConfig, evaluate_named_model
from drrho.run.index import write_manifest
from drrho.run.recipe import Recipe, load_recipe
from drrho.run.reference import PrecomputeConfig, precompute_reference
from drrho.run.training import train_recipe
from drrho.training.checkpoint import CheckpointError
from drrho.training.finite import NotFiniteError
from drrho.training.interruption import TrainingInterrupted

USAGE = f"""drrho {__version__}: train a model better under the guidance of a reference model

usage: drrho COMMAND ...          (drrho COMMAND --help describes one)

  demo                             the whole way on procedural scenes, about 5 minutes on a CPU
  index DATA                       shards -> manifest: counts, key hashes, sample ids
  reference precompute             store a reference model's embeddings of a data set
  train RECIPE.py [--FIELD VALUE]  train a model; continues what it finds
  compare RECIPE.py                reference first, then several methods; one table
  evaluate RUN --data SET ...      retrieval and zero-shot classification
  scenes FOLDER                    draw captioned scenes as WebDataset shards
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; returns the exit status."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logging.getLogger("drrho").setLevel(logging.INFO)
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    try:
        return _dispatch(arguments)
    except TrainingInterrupted as interruption:
        print(f"drrho: {interruption}", file=sys.stderr)
        return 128 + interruption.received
    except (ValueError, OSError, CheckpointError, NotFiniteError, ModuleNotFoundError) as error:
        logging.getLogger("drrho").debug("", exc_info=error)
        print(f"drrho: error: {error}", file=sys.stderr)
        return 1


def _dispatch(arguments: list[str]) -> int:
    match arguments:
        case ["demo", *rest]:
            _demo(_parse(DemoConfig, rest, "demo"))
        case ["index", *rest]:
            _parse(_index, rest, "index")
        case ["reference", "precompute", *rest]:
            _precompute(_parse(PrecomputeConfig, rest, "reference precompute"))
        case ["train", path, *rest] if not path.startswith("-"):
            default = load_recipe(path, Recipe)
            prog = f"drrho train {path}"
            _train(tyro.cli(Recipe, args=rest, prog=prog, default=default))
        case ["compare", path, *rest] if not path.startswith("-"):
            _compare(path, rest)
        case ["train" | "compare", *_]:
            print(f"usage: drrho {arguments[0]} RECIPE.py; with --help after it, its fields")
            return 0 if "--help" in arguments else 2
        case ["evaluate", *rest]:
            _evaluate(_parse(EvaluateConfig, rest, "evaluate"))
        case ["scenes", *rest]:
            _parse(_scenes, rest, "scenes")
        case ["--version"]:
            print(__version__)
        case [] | ["--help" | "-h" | "help"]:
            print(USAGE, end="")
        case _:
            print(f"drrho: unknown command {' '.join(arguments[:2])!r}\n\n{USAGE}", file=sys.stderr)
            return 2
    return 0


def _parse(target: Callable[..., Any], arguments: list[str], command: str) -> Any:
    return tyro.cli(target, args=arguments, prog=f"drrho {command}")


def _demo(config: DemoConfig) -> None:
    _show_comparison(demo(config), config.output)


def _index(data: Positional[str], output: str | None = None) -> None:
    """Count and hash the samples of WebDataset shards; their order gives the sample ids.

    Args:
        data: folder of tar files, brace or glob pattern, or one tar file.
        output: JSON file to write; by default manifest.json in the folder.
    """
    manifest, path = write_manifest(data, output)
    reasons = Counter(reason for shard in manifest.shards for reason in shard.unusable.values())
    print(
        f"{path}: {manifest.num_samples:,} samples in {len(manifest.shards):,} shards, "
        f"{reasons.total():,} unusable{_in_brackets(reasons)}"
    )


def _precompute(config: PrecomputeConfig) -> None:
    report = precompute_reference(config)
    print(
        f"{config.output}: embeddings of {report.num_encoded:,} of {report.num_samples:,} samples"
        f"{_in_brackets(report.absent)}; {report.shards_found} shards were there already"
    )


def _train(recipe: Recipe) -> None:
    results = train_recipe(recipe)
    scores = {n: v for n, v in results["metrics"].items() if n.startswith("evaluation/")}
    if scores:
        print(_metrics_table({"trained": scores}))
    skipped = _in_brackets(results["skipped"]) or " none"
    print(
        f"{recipe.output}: {results['samples_seen']:,} samples in {results['seconds']:,.0f} s; "
        f"skipped:{skipped}; model in {recipe.output}/model, metrics in metrics.jsonl"
    )


def _compare(path: str, rest: list[str]) -> None:
    comparison = load_recipe(path, Comparison)
    if rest:
        comparison = tyro.cli(
            Comparison, args=rest, prog=f"drrho compare {path}", default=comparison
        )
    _show_comparison(compare(comparison), comparison.output)


def _evaluate(config: EvaluateConfig) -> None:
    scores = evaluate_named_model(config)
    print(_metrics_table(scores))
    if config.output is not None:
        write_json(Path(config.output), scores)


def _scenes(folder: Positional[str], config: ScenesConfig) -> None:
    """Draw captioned scenes as WebDataset shards.

    Args:
        folder: where to write.
        config: the set.
    """
    paths = write_scenes(Path(folder), config)
    print(f"{folder}: {config.num_samples:,} scenes in {len(paths)} shards")


def _show_comparison(results: Mapping[str, Any], output: str) -> None:
    print(f"\n{comparison_table(results)}\n\n{explain(results)}\n")
    print(f"{output}/results.json holds the numbers, {output}/curves.png the curves.")


def _metrics_table(scores: Mapping[str, Mapping[str, float]]) -> str:
    rows = [
        [
            metric,
            *(f"{metrics[metric]:.4f}" if metric in metrics else "" for metrics in scores.values()),
        ]
        for metric in dict.fromkeys(name for metrics in scores.values() for name in metrics)
    ]
    return markdown_table(["", *scores], rows)


def _in_brackets(counts: Mapping[str, int]) -> str:
    listed = ", ".join(f"{count:,} {reason}" for reason, count in counts.items())
    return f" ({listed})" if listed else ""
