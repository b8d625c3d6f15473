"""What the files of drrho say of themselves: by its name, how each is recognised and read.

A list is to be there at once, also of a tree of thousands of runs and without PyTorch, so each
reader takes from a file only what a list says, and no reader of a room is imported.
"""

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from drrho.runtime.files import parse_json, require_checksum, require_regular
from drrho.runtime.locks import is_claimed
from drrho.runtime.records import from_json, read_json_object
from drrho.studies.listing.found import Found, Score, score_of

TAIL = 2**16  # bytes of a log that are read: its last rows
LARGEST = 2**26  # bytes of a manifest or card that is read whole
HEAD = 4096
EVALUATION = "evaluation/"
Metrics = Mapping[str, float | None]
Reader = Callable[[Path], Found | None]


@dataclass(frozen=True)
class _Length:
    steps: int | None = None
    epochs: float | None = None


@dataclass(frozen=True)
class _RecipeView:
    objective: Mapping[str, Any]
    training: _Length
    data: str


@dataclass(frozen=True)
class _RunView:
    metrics: Metrics


@dataclass(frozen=True)
class _MethodView:
    runs: tuple[Any, ...] = ()
    tests: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    missing: tuple[int, ...] = ()
    failed: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class _SetupView:
    replicated: bool = False


@dataclass(frozen=True)
class _ComparisonView:
    methods: Mapping[str, _MethodView]
    setup: _SetupView = field(default_factory=_SetupView)


def read_run(path: Path) -> Found:
    """Read a run by its recipe: finished, at work, or interrupted at a step."""
    folder = path.parent
    recipe = from_json(_RecipeView, read_json_object(path), where=str(path))
    method = str(recipe.objective.get("method", "?"))
    steps, epochs = recipe.training.steps, recipe.training.epochs
    length = _counted(steps, "step") if steps is not None else f"{epochs:g} epochs"
    found = Found(path="", kind="run", state="finished", what=f"{method}, {length}")
    results = folder / "results.json"
    if results.is_file():
        metrics = from_json(_RunView, read_json_object(results), where=str(results)).metrics
        return replace(found, score=score_of(metrics, prefix=EVALUATION))
    rows = _last_rows(folder / "metrics.jsonl")
    step = rows[-1].get("step") if rows else 0
    evaluated = [row for row in rows if any(name.startswith(EVALUATION) for name in row)]
    total = "" if steps is None else f" of {steps:,}"
    at_work = is_claimed(folder)
    doing = "at work, step" if at_work else "interrupted at step"
    return replace(
        found,
        state=f"{doing} {step or 0:,}{total}",
        score=score_of(evaluated[-1], prefix=EVALUATION) if evaluated else None,
    )


def _last_rows(path: Path) -> list[dict[str, Any]]:
    """Read the rows in the last bytes of a log, torn ones left out."""
    if not path.is_file():
        return []
    size = require_regular(path).st_size
    with path.open("rb") as file:
        file.seek(max(0, size - TAIL))
        lines = file.read(TAIL).split(b"\n")
    rows = []
    for line in lines[1:] if size > TAIL else lines:
        try:
            row = parse_json(line)
        except ValueError:
            continue
        if isinstance(row, dict) and type(row.get("step")) is int:
            rows.append(row)
    if size and not rows:
        raise ValueError(f"{path} has no row of metrics at its end; it was damaged")
    return rows


def read_results(path: Path) -> Found | None:
    """Read the results of a comparison or of replicates; None where they are of something else."""
    content = read_json_object(path)
    if "methods" not in content:
        return None
    view = from_json(_ComparisonView, content, where=str(path))
    done = sum(len(method.runs) for method in view.methods.values())
    failed = sum(len(method.failed) for method in view.methods.values())
    wanted = done + failed + sum(len(method.missing) for method in view.methods.values())
    state = "finished" if done == wanted else f"{done} of {wanted} runs"
    best, leader = None, ""
    for name, method in view.methods.items():
        score = _first_score(method.tests)
        if score is not None and (best is None or score.value > best.value):
            best, leader = score, name
    methods = f"{_counted(len(view.methods), 'method')}, {_counted(done, 'run')}"
    return Found(
        path="",
        kind="replicates" if view.setup.replicated else "comparison",
        state=state + (f", {failed} failed" if failed else ""),
        what=f"{methods}; best: {leader}" if leader else methods,
        score=best,
    )


def _first_score(tests: Mapping[str, Mapping[str, Any]]) -> Score | None:
    """The score on the first test set."""
    for metrics in tests.values():
        numbers = {name: v for name, v in metrics.items() if isinstance(v, int | float)}
        return score_of(numbers)
    return None


@dataclass(frozen=True)
class _CardShard:
    file: str
    num_samples: int


@dataclass(frozen=True)
class _CardView:
    format: str
    shards: tuple[_CardShard, ...]
    model: Mapping[str, str] = field(default_factory=dict)


def read_store(path: Path) -> Found:
    """Read the card of stored embeddings or losses, and count the files that are there."""
    content = _whole(path)
    card = from_json(_CardView, content, where=str(path))
    there = set(os.listdir(path.parent))
    done = sum(shard.file in there for shard in card.shards)
    wanted = len(card.shards)
    samples = sum(shard.num_samples for shard in card.shards)
    noun = "losses" if card.format.endswith("losses") else "reference"
    model = card.model.get("architecture", "").partition(" {")[0]
    at_work = ", at work" if is_claimed(path.parent) else ""
    return Found(
        path="",
        kind=noun,
        state="finished" if done == wanted else f"{done} of {wanted} shards{at_work}",
        what=", ".join(filter(None, [f"{samples:,} samples", model[:60]])),
    )


@dataclass(frozen=True)
class _ShardView:
    num_samples: int
    unusable: Mapping[str, str]


def read_manifest(path: Path) -> Found:
    """Read a manifest: the number of its pairs, and of those that cannot be used."""
    if path.stat().st_size > LARGEST:
        return Found(path="", kind="manifest", state="large, not read")
    content = _whole(path)
    shards = from_json(tuple[_ShardView, ...], content.get("shards"), where=f"{path}: shards")
    samples = sum(shard.num_samples for shard in shards)
    unusable = sum(len(shard.unusable) for shard in shards)
    rows = content.get("rows")
    if isinstance(rows, str) and not (path.parent / rows).is_file():
        raise ValueError(f"{path} is incomplete: {rows} beside it is missing")
    left = f", {unusable:,} not usable" if unusable else ""
    what = f"{_counted(samples, 'sample')} in {_counted(len(shards), 'shard')}{left}"
    return Found(path="", kind="manifest", state="finished", what=what)


def _whole(path: Path) -> dict[str, Any]:
    require_regular(path, most=LARGEST)
    content = path.read_bytes()
    try:
        found = parse_json(content)
        require_checksum(content, found)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    if not isinstance(found, dict):
        raise ValueError(f"{path} holds no JSON object")
    return found


def read_probe(path: Path) -> Found:
    """Read a ranking of references: the first of them."""
    content = read_json_object(path)
    references = from_json(dict[str, Any], content.get("references"), where=f"{path}: references")
    first, found = next(iter(references.items()), ("none", {}))
    estimate = found.get("mrr") if isinstance(found, Mapping) else None
    value = estimate.get("value") if isinstance(estimate, Mapping) else None
    score = Score(value=value, metric="mrr") if isinstance(value, float) else None
    what = f"{_counted(len(references), 'reference')}; best: {first}"
    return Found(path="", kind="probe", state="finished", what=what, score=score)


def read_steering(path: Path) -> Found:
    """Read the results of `drrho steer`."""
    content = read_json_object(path)
    mrr = from_json(dict[str, dict[str, float]], content.get("mrr"), where=f"{path}: mrr")
    guessing = content.get("guessing")
    target = mrr.get("target", {}).get("mean")
    score = None
    if target is not None:
        chance = guessing if isinstance(guessing, float) else None
        score = Score(value=target, metric="mrr", chance=chance)
    return Found(path="", kind="steering", state="finished", what="steered target", score=score)


def read_advice(path: Path) -> Found:
    """Read the race of `drrho advise`: the arm that it recommends."""
    content = read_json_object(path)
    recommended = from_json(str, content.get("recommended"), where=f"{path}: recommended")
    what = f"{_counted(len(content.get('arms', {})), 'arm')}; recommended: {recommended}"
    return Found(path="", kind="advice", state="finished", what=what)


def read_joined(path: Path) -> Found:
    """Read the card of a model that was joined of two towers."""
    content = read_json_object(path)
    found = content.get("held_out")
    names = ("value", "low", "high", "guessing")
    if isinstance(found, list):
        found = dict(zip(names, found, strict=False))
    held_out = from_json(dict[str, float], found, where=f"{path}: held_out")
    score = Score(value=held_out["value"], metric="mrr", chance=held_out.get("guessing"))
    what = f"{content.get('image')} with {content.get('text')}"
    return Found(path="", kind="joined model", state="finished", what=what, score=score)


def _named(kind: str, needs: str) -> Reader:
    """Make a reader of results that are listed without their scores."""

    def read(path: Path) -> Found | None:
        content = read_json_object(path)
        return Found(path="", kind=kind, state="finished") if needs in content else None

    return read


def read_scores(path: Path) -> Found | None:
    """Read what `drrho evaluate --output` wrote: sets with their metrics; None for other JSON."""
    content = json.loads(path.read_bytes()[:LARGEST])
    sets = content.values() if isinstance(content, dict) else ()
    if not sets or not all(isinstance(found, dict) and "images" in found for found in sets):
        return None
    what = ", ".join(content)[:60]
    return Found(path="", kind="scores", state="finished", what=what, score=_first_score(content))


# The file that says what a folder is, in this order; the folder is a whole, and not looked into.
WHOLE = {
    "recipe.json": read_run,
    "reference.json": read_store,
    "losses.json": read_store,
    "joined.json": read_joined,
}
# Studies: their folders hold runs and stores of their own.
STUDIES = {
    "results.json": read_results,
    "steer.json": read_steering,
    "probe.json": read_probe,
    "advice.json": read_advice,
}
# Files that stand for themselves.
SINGLE: Mapping[str, Reader] = {
    "scaling.json": _named("scaling law", "methods"),
    "efficiency.json": _named("data efficiency", "scores"),
    "summary.json": _named("curation", "labels"),
}
MODEL_FILES = ("open_clip_config.json", "small.json", "preprocessor_config.json", "program.json")


def read_single(path: Path) -> Found | None:
    """Read a JSON file or a page by its first bytes; None where drrho has not written it."""
    if path.suffix == ".html":
        is_page = b'name="generator" content="drrho' in _head(path)
        return Found(path="", kind="page", state="finished") if is_page else None
    if b'"drrho manifest"' in _head(path):
        return read_manifest(path)
    if b'"images"' in _head(path):
        return read_scores(path)
    return None


def _counted(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _head(path: Path) -> bytes:
    require_regular(path)
    with path.open("rb") as file:
        return file.read(HEAD)
