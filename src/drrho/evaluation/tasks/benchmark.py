"""Evaluation of a model on a list of tasks, with DataComp's metrics and form of results."""

import hashlib
import json
from collections import defaultdict
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from drrho.encoding.shared import Encoder
from drrho.evaluation.evaluate import EvaluateConfig, named_encoder
from drrho.evaluation.tasks.listing import read_task_list, task_folders
from drrho.evaluation.tasks.scores import open_task_set, score_task
from drrho.evaluation.tasks.task import ListedTask
from drrho.runtime.files import parse_json, write_atomically


@dataclass(frozen=True, kw_only=True)
class TaskScore:
    """Outcome of a task.

    Attributes:
        main_metric: value of the main metric; None if there is none.
        chance: what guessing reaches of it; None where that is not known.
        problem: reason why the task was not scored; None if it was.
        is_failure: whether that reason is an error; data that are missing are none.
    """

    task: ListedTask
    main_metric: float | None = None
    chance: float | None = None
    problem: str | None = None
    is_failure: bool = False


def evaluate_task_list(config: EvaluateConfig) -> list[TaskScore]:
    """Score every task of the list whose data are there; results are written task by task.

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
            line = results.done[task.key]
            value, chance = line["metrics"]["main_metric"], line.get("chance")
            scores.append(TaskScore(task=task, main_metric=value, chance=chance))
    return scores


def averages(scores: list[TaskScore]) -> dict[str, float]:
    """Average the main metric over the tasks of each suite, and over all.

    Tasks without a main metric do not count.
    """
    scores = [score for score in scores if score.task.main_metric is not None]
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


def _attempt(
    encoder: Encoder, task: ListedTask, *, data: Path, config: EvaluateConfig, place: str
) -> dict[str, Any] | TaskScore:
    """Score a task, or say why there is no score; the same on all processes."""
    try:
        folders = task_folders(task, data)
    except ValueError as error:
        return TaskScore(task=task, problem=str(error), is_failure=True)
    folder = encoder.processes.on_first(
        lambda: next((folder for folder in folders if folder.is_dir()), None)
    )
    if folder is None:
        return TaskScore(task=task, problem=f"missing: no folder {folders[0]}")
    opened = partial(open_task_set, task, folder, caption_templates=config.caption_templates)
    try:  # what goes wrong goes wrong on all processes
        evaluation_set = encoder.processes.on_first(opened)
        named = replace(evaluation_set, name=f"{place}, {task.name}")
        return score_task(encoder, named, task)
    except (ValueError, OSError, ModuleNotFoundError) as error:
        return TaskScore(task=task, problem=str(error), is_failure=True)


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
                line = parse_json(text.encode())
                key, value = line["key"], line["metrics"]["main_metric"]
                if not isinstance(line.get("chance"), float | int | None):
                    raise ValueError(f"chance {line['chance']!r:.80}")
                if not isinstance(key, str) or not isinstance(value, float | int | None):
                    raise ValueError(f"key {key!r:.80} and main_metric {value!r:.80}")
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
    """Identify model, transform, tokenizer and caption templates, on which scores depend."""
    content = [sorted(encoder.model.towers.identity.items()), config.caption_templates]
    digest = hashlib.sha256(json.dumps(content).encode()).hexdigest()
    return {"name": config.run, "sha256": digest}
