"""Scoring of one task of a list: its data opened and scored by the kind of task it is."""

import warnings
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from drrho.encoding.shared import Encoder
from drrho.evaluation.sets import EvaluationSet
from drrho.evaluation.tasks.associations import ASSOCIATIONS
from drrho.evaluation.tasks.classification import CLASSIFICATION
from drrho.evaluation.tasks.faces import FACES
from drrho.evaluation.tasks.retrieval import RETRIEVAL
from drrho.evaluation.tasks.task import ListedTask, TaskKind

# A new kind of task is a module with its TaskKind, and a line here.
KINDS: Mapping[str, TaskKind] = {
    "classification": CLASSIFICATION,
    "retrieval": RETRIEVAL,
    "associations": ASSOCIATIONS,
    "faces": FACES,
}


def open_task_set(
    task: ListedTask, folder: Path, *, caption_templates: tuple[str, ...] = ()
) -> EvaluationSet:
    """Open the data of a task; `caption_templates` are for data with captions."""
    found = KINDS[task.kind or "classification"].open(folder)
    return replace(found, caption_templates=caption_templates) if found.with_captions else found


def score_task(encoder: Encoder, evaluation_set: EvaluationSet, task: ListedTask) -> dict[str, Any]:
    """Score one task, as a line of results.

    Without a kind it is retrieval where the set is of that type or has no classes, else
    classification.

    Raises:
        ValueError: a sample has no label or group, the set has not what this kind of task needs,
            or there is no such metric as the task's main one.
    """
    kind = KINDS[_kind(task, evaluation_set)]
    kind.require_metric(task, where=f"task {task.key!r}")  # before hours of scoring
    scored = kind.score(encoder, evaluation_set, task)
    metrics = dict(scored.metrics)
    if task.main_metric is not None and task.main_metric not in metrics:
        raise ValueError(
            f"task {task.key!r} has the main metric {task.main_metric!r}, there are "
            f"{sorted(metrics)}"
        )
    if task.size is not None and scored.size != task.size and encoder.processes.is_first:
        warnings.warn(
            f"{task.name} has {task.size:,} samples, and {scored.size:,} were scored: the result "
            "is not comparable with others",
            stacklevel=2,
        )
    main = None if task.main_metric is None else metrics[task.main_metric]
    return {
        "key": task.key,
        "dataset": task.name,
        "metrics": metrics | {"main_metric": main},
        "chance": None if task.main_metric is None else scored.chance.get(task.main_metric),
        "images": len(scored.images.embeddings),
        "skipped": scored.images.num_skipped,
    }


def _kind(task: ListedTask, evaluation_set: EvaluationSet) -> str:
    if task.kind is not None:
        return task.kind
    if evaluation_set.captions_in_lines or not evaluation_set.tasks:
        return "retrieval"
    return "classification"
