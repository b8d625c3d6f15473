"""A model on a list of tasks, with DataComp's metrics and in its form of results."""

import hashlib
import json
import warnings
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from jaxtyping import Int
from torch import Tensor

from drrho.evaluation.classification import classification_metrics, predicted_classes
from drrho.evaluation.retrieval import clip_benchmark_recalls, separate_texts
from drrho.evaluation.task_list import ListedTask, read_task_list
from drrho.files import write_atomically
from drrho.run.encoding import Encoder, SharedImages
from drrho.run.evaluation import EvaluateConfig, named_encoder
from drrho.run.evaluation_set import (
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

Metrics = dict[str, float | None]


@dataclass(frozen=True, kw_only=True)
class TaskScore:
    """What became of a task.

    Attributes:
        task: of the list.
        main_metric: its value; None if it was not computed.
        problem: why not; None if it was.
        is_failure: whether that is an error, not a task that is missing or unsupported.
    """

    task: ListedTask
    main_metric: float | None = None
    problem: str | None = None
    is_failure: bool = False


def evaluate_task_list(config: EvaluateConfig) -> list[TaskScore]:
    """Every task of the list whose data are there; results are written task by task.

    A task that is in `config.output` already is not done again. One whose folder is missing or
    damaged is passed over with the reason.

    Raises:
        FileNotFoundError: there is no such list, data folder or model.
        ValueError: the list or `config.output` cannot be read, or the latter holds results of
            another model.
        ProcessFailed: with several processes, this one failed or lost another.
    """
    assert config.tasks is not None
    tasks = read_task_list(config.tasks)
    data = Path(config.data[0]).expanduser()
    if not data.is_dir():
        raise FileNotFoundError(f"data = {config.data[0]!r} is no folder; it holds the tasks'")
    scores = []
    with named_encoder(config) as encoder:
        model = _identity(config, encoder)
        opened = partial(_Results.open, config.output, model)
        results = encoder.processes.on_first(opened)
        for number, task in enumerate(tasks, start=1):
            if task.key not in results.done:
                place = f"{number} of {len(tasks)}"
                found = _attempt(encoder, task, data=data, config=config, place=place)
                if isinstance(found, TaskScore):
                    scores.append(found)
                    continue
                results = results.with_line(found | {"model": model})
                encoder.processes.on_first(results.write)
            value = results.done[task.key]["metrics"]["main_metric"]
            scores.append(TaskScore(task=task, main_metric=value))
    return scores


def averages(scores: list[TaskScore]) -> dict[str, float]:
    """The mean main metric of the tasks of each suite, and of all, named with their numbers."""
    groups: dict[str, list[TaskScore]] = defaultdict(list)
    for score in scores:
        if score.task.suite is not None:
            groups[score.task.suite].append(score)
    means = {}
    for name, members in [*sorted(groups.items()), ("average", scores)]:
        values = [score.main_metric for score in members if score.main_metric is not None]
        if values:
            means[f"{name}, {len(values)} of {len(members)} tasks"] = sum(values) / len(values)
    return means


def score_task(encoder: Encoder, evaluation_set: EvaluationSet, task: ListedTask) -> dict[str, Any]:
    """The line of results of one task.

    Retrieval where the set is of that type or has no classes, else classification.

    Raises:
        ValueError: a sample has no label or group, the set has several zero-shot tasks, or there
            is no such metric as the task's main one.
    """
    if evaluation_set.captions_in_lines or not evaluation_set.tasks:
        chosen = replace(evaluation_set, tasks=())
        images = embedded_set(encoder, chosen)
        metrics = _retrieval(encoder, chosen, images)
    else:
        chosen = replace(evaluation_set, with_captions=False)
        images = embedded_set(encoder, chosen)
        metrics = _classification(encoder, chosen, images, task=task)
    if task.main_metric not in metrics:
        raise ValueError(
            f"task {task.key!r} has the main metric {task.main_metric!r}, there are "
            f"{sorted(metrics)}"
        )
    count = len(images.embeddings)
    if task.size is not None and count != task.size and encoder.processes.is_first:
        warnings.warn(
            f"{task.name} has {task.size:,} samples, and {count:,} were scored: the result is not "
            "comparable with others",
            stacklevel=2,
        )
    return {
        "key": task.key,
        "dataset": task.name,
        "metrics": metrics | {"main_metric": metrics[task.main_metric]},
        "images": count,
        "skipped": images.num_skipped,
    }


def _attempt(
    encoder: Encoder, task: ListedTask, *, data: Path, config: EvaluateConfig, place: str
) -> dict[str, Any] | TaskScore:
    """The task's line of results, or why there is none; the same on all processes."""
    if task.unsupported is not None:
        return TaskScore(task=task, problem=f"not supported: {task.unsupported}")
    folders = task.folders(data)
    folder = encoder.processes.on_first(
        lambda: next((folder for folder in folders if folder.is_dir()), None)
    )
    if folder is None:
        return TaskScore(task=task, problem=f"missing: no folder {folders[0]}")
    opened = partial(open_evaluation_set, folder, caption_templates=config.caption_templates)
    try:  # what goes wrong goes wrong on all processes
        evaluation_set = encoder.processes.on_first(opened)
        named = replace(evaluation_set, name=f"{place}, {task.name}")
        return score_task(encoder, named, task)
    except (ValueError, OSError) as error:
        return TaskScore(task=task, problem=str(error), is_failure=True)


def _retrieval(encoder: Encoder, evaluation_set: EvaluationSet, images: SharedImages) -> Metrics:
    texts, pairs = separate_texts(captions_of(encoder, evaluation_set, images))
    templates = evaluation_set.caption_templates
    ranks = ranks_of_captions(encoder, images, texts, pairs=pairs, templates=templates)
    return {**clip_benchmark_recalls(ranks)}


def _classification(
    encoder: Encoder, evaluation_set: EvaluationSet, images: SharedImages, *, task: ListedTask
) -> Metrics:
    if len(evaluation_set.tasks) != 1:
        names = [zero_shot.name for zero_shot in evaluation_set.tasks]
        raise ValueError(f"task {task.key!r} needs one set of classes, its folder has {names}")
    zero_shot = evaluation_set.tasks[0]
    labels = labels_of(encoder, evaluation_set, images, task=zero_shot)
    classes = ensemble_of(encoder, *zero_shot.all_prompts())
    return classification_metrics(
        label_ranks_of(encoder, images, classes, labels),
        labels,
        predicted=predicted_classes(images.embeddings, classes),
        num_classes=len(classes),
        groups={
            name: _groups(encoder, evaluation_set, images, column=column)
            for name, column in task.group_by.items()
        },
    )


def _groups(
    encoder: Encoder, evaluation_set: EvaluationSet, images: SharedImages, *, column: int
) -> Int[Tensor, " images"]:
    """Each image's group, in a column of its .npy."""

    def group(metadata: Mapping[str, Any]) -> int:
        row = metadata.get("npy", [])
        if column >= len(row):
            raise ValueError(
                f"groups stand in column {column} of a sample's .npy, it has {len(row)} columns; "
                "mend the data or the task's group_by"
            )
        value = row[column]
        if value < 0 or value != int(value):
            raise ValueError(f"column {column} of the .npy must be a group's number, got {value}")
        return int(value)

    return of_each_image(encoder, evaluation_set, images, group)


@dataclass(frozen=True)
class _Results:
    """A file of results and what it holds, by task; no path writes nothing."""

    path: Path | None
    done: dict[str, dict[str, Any]]

    @classmethod
    def open(cls, output: str | None, model: dict[str, str]) -> "_Results":
        path = None if output is None else Path(output).expanduser()
        if path is None or not path.is_file():
            return cls(path, {})
        done = {}
        for number, text in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
            try:
                line = json.loads(text)
                key, _ = line["key"], line["metrics"]["main_metric"]
            except (ValueError, KeyError, TypeError) as error:
                raise ValueError(
                    f"{path}, line {number} is no result of a task; remove it, or write elsewhere"
                ) from error
            if line.get("model") != model:
                raise ValueError(
                    f"{path}, line {number} is a result of another model, or of other templates: "
                    f"{line.get('model')}, and this is {model}; write to another file"
                )
            done[key] = line
        return cls(path, done)

    def with_line(self, line: dict[str, Any]) -> "_Results":
        return _Results(self.path, self.done | {line["key"]: line})

    def write(self) -> None:
        if self.path is not None:
            lines = [json.dumps(line) + "\n" for line in self.done.values()]
            write_atomically(self.path, "".join(lines).encode())


def _identity(config: EvaluateConfig, encoder: Encoder) -> dict[str, str]:
    """What scores depend on besides the data: the model, with its transform and tokenizer, and
    how captions are put.
    """
    content = [sorted(encoder.model.identity.items()), config.caption_templates]
    digest = hashlib.sha256(json.dumps(content).encode()).hexdigest()
    return {"name": config.run, "sha256": digest}
