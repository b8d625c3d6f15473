"""One task of a list: its data opened and scored by what kind of task it is."""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from drrho.encoding.shared import Encoder, SharedImages
from drrho.evaluation.metrics.classification import classification_metrics, predicted_classes
from drrho.evaluation.metrics.faces import COLUMNS, OBJECTIVES, face_metrics, require_objectives
from drrho.evaluation.metrics.retrieval import clip_benchmark_recalls, separate_texts
from drrho.evaluation.sets import (
    EvaluationSet,
    captions_of,
    embedded_set,
    ensemble_of,
    label_ranks_of,
    labels_of,
    of_each_image,
    open_evaluation_set,
    ranks_of_captions,
)
from drrho.evaluation.tasks.association_set import association_scores, open_association_set
from drrho.evaluation.tasks.listing import Kind, ListedTask


@dataclass(frozen=True, kw_only=True)
class _Scored:
    """The metrics of a task, the images they are of, and their number as a list counts them."""

    metrics: Mapping[str, float | None]
    images: SharedImages
    size: int


def open_task_set(
    task: ListedTask, folder: Path, *, caption_templates: tuple[str, ...] = ()
) -> EvaluationSet:
    """The data of a task in a folder; errors as of what opens its kind.

    Args:
        caption_templates: of the captions, where the data have some.
    """
    match task.kind:
        case "associations":
            return open_association_set(folder)
        case "faces":
            return open_evaluation_set(folder, objectives=True)
        case "classification" | "retrieval" | None:
            found = open_evaluation_set(folder)
            return replace(
                found, caption_templates=caption_templates if found.with_captions else ()
            )


def score_task(encoder: Encoder, evaluation_set: EvaluationSet, task: ListedTask) -> dict[str, Any]:
    """The line of results of one task.

    Args:
        evaluation_set: from `open_task_set`.
        task: without a kind it is retrieval where the set is of that type or has no classes, else
            classification.

    Raises:
        ValueError: a sample has no label or group, the set has not what this kind of task needs,
            or there is no such metric as the task's main one.
    """
    match _kind(task, evaluation_set):
        case "classification":
            scored = _classification(encoder, evaluation_set, task)
        case "retrieval":
            scored = _retrieval(encoder, evaluation_set, task)
        case "associations":
            scored = _associations(encoder, evaluation_set)
        case "faces":
            scored = _faces(encoder, evaluation_set)
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
        "images": len(scored.images.embeddings),
        "skipped": scored.images.num_skipped,
    }


def _kind(task: ListedTask, evaluation_set: EvaluationSet) -> Kind:
    if task.kind is not None:
        return task.kind
    if evaluation_set.captions_in_lines or not evaluation_set.tasks:
        return "retrieval"
    return "classification"


def _retrieval(encoder: Encoder, evaluation_set: EvaluationSet, task: ListedTask) -> _Scored:
    if not evaluation_set.with_captions:
        raise ValueError(f"task {task.key!r} is one of retrieval, and its samples have no captions")
    chosen = replace(evaluation_set, tasks=())
    images = embedded_set(encoder, chosen)
    texts, pairs = separate_texts(captions_of(encoder, chosen, images))
    templates = chosen.caption_templates
    ranks = ranks_of_captions(encoder, images, texts, pairs=pairs, templates=templates)
    metrics = clip_benchmark_recalls(ranks)
    return _Scored(metrics=metrics, images=images, size=len(images.embeddings))


def _classification(encoder: Encoder, evaluation_set: EvaluationSet, task: ListedTask) -> _Scored:
    if len(evaluation_set.tasks) != 1:
        names = [zero_shot.name for zero_shot in evaluation_set.tasks]
        raise ValueError(f"task {task.key!r} needs one set of classes, its folder has {names}")
    zero_shot = evaluation_set.tasks[0]
    chosen = replace(evaluation_set, with_captions=False)
    images = embedded_set(encoder, chosen)
    labels = labels_of(encoder, chosen, images, task=zero_shot)
    classes = ensemble_of(encoder, *zero_shot.all_prompts())
    metrics = classification_metrics(
        label_ranks_of(encoder, images, classes, labels),
        labels,
        predicted=predicted_classes(images.embeddings, classes),
        num_classes=len(classes),
        groups={
            name: _npy_numbers(encoder, chosen, images, column=(place, name))
            for name, place in task.group_by.items()
        },
    )
    return _Scored(metrics=metrics, images=images, size=len(images.embeddings))


def _associations(encoder: Encoder, evaluation_set: EvaluationSet) -> _Scored:
    images = embedded_set(encoder, evaluation_set)
    metrics, size = association_scores(encoder, evaluation_set, images)
    return _Scored(metrics=metrics, images=images, size=size)


def _faces(encoder: Encoder, evaluation_set: EvaluationSet) -> _Scored:
    """Every process computes the metrics from all embeddings: there are few classes."""
    objectives = {task.name: task for task in evaluation_set.tasks}
    require_objectives(objectives)
    chosen = replace(evaluation_set, with_captions=False)
    images = embedded_set(encoder, chosen)
    below = {name: len(objectives[name].class_names) for name in ("age", "gender")}
    below |= {"race_binary": 2}  # what races there are is not said
    labels = {
        name: _npy_numbers(encoder, chosen, images, column=(place, name), below=below.get(name))
        for place, name in enumerate(COLUMNS)
    }
    classes = {name: ensemble_of(encoder, *objectives[name].all_prompts()) for name in OBJECTIVES}
    metrics = face_metrics(images.embeddings, classes, labels)
    return _Scored(metrics=metrics, images=images, size=len(images.embeddings))


def _npy_numbers(
    encoder: Encoder,
    evaluation_set: EvaluationSet,
    images: SharedImages,
    *,
    column: tuple[int, str],
    below: int | None = None,
) -> Int[Tensor, " images"]:
    """The number of a group or class in a column of each image's .npy, as `of_each_image`.

    Args:
        column: its place, from 0, and its name, for messages.
        below: how many groups or classes there are; None if any number is one.
    """
    place, name = column
    allowed = "from 0" if below is None else f"from 0 to {below - 1}"

    def number(metadata: Mapping[str, Any]) -> int:
        row = metadata.get("npy", [])
        if place >= len(row):
            raise ValueError(
                f"{name!r} stands in column {place} of a sample's .npy, it has {len(row)} columns; "
                "mend the data, or the task's group_by or kind"
            )
        value = row[place]
        if not 0 <= value < (below or torch.inf) or value != int(value):
            raise ValueError(
                f"{name!r}, column {place} of the .npy, must be a whole number {allowed}, got "
                f"{value}"
            )
        return int(value)

    return of_each_image(encoder, evaluation_set, images, number)
