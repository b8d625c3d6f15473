"""Zero-shot tasks from files: clip_benchmark's folder layout, or one JSON file of several."""

import json
from pathlib import Path

from drrho.evaluation.zero_shot import PLACEHOLDER, ZeroShotTask

CLASS_NAMES_FILE = "classnames.txt"
TEMPLATES_FILE = "zeroshot_classification_templates.txt"
# clip_benchmark writes the class name's place in a template as {c}.
CLIP_BENCHMARK_PLACEHOLDER = "{c}"
KEYS = {"class_names", "templates", "field"}


def read_clip_benchmark_task(folder: Path) -> ZeroShotTask:
    """The task of a folder with `classnames.txt` and `zeroshot_classification_templates.txt`.

    One class name or template a line. Labels are the `.cls` files of the samples; the task has
    the name of the folder.

    Raises:
        FileNotFoundError: one of the files is missing.
        ValueError: names file and line of an empty line or a template without {c}.
    """
    templates_path = folder / TEMPLATES_FILE
    templates = _lines(templates_path)
    for number, template in enumerate(templates, start=1):
        if CLIP_BENCHMARK_PLACEHOLDER not in template:
            raise ValueError(
                f"{templates_path}, line {number}: {template!r} has no "
                f"{CLIP_BENCHMARK_PLACEHOLDER} where the class name goes"
            )
    return ZeroShotTask(
        name=folder.resolve().name,
        class_names=tuple(_lines(folder / CLASS_NAMES_FILE)),
        templates=tuple(t.replace(CLIP_BENCHMARK_PLACEHOLDER, PLACEHOLDER) for t in templates),
    )


def read_zero_shot_json(path: Path) -> tuple[ZeroShotTask, ...]:
    """The tasks of a file such as

        {"shape": {"class_names": ["circle", "square"], "templates": ["a {}"], "field": "shape"}}

    `field` names the metadata that holds the label and may be left out for `.cls` files.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: names the file and the line or task that is wrong.
    """
    try:
        tasks = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}, line {error.lineno}: not JSON ({error.msg})") from error
    if not isinstance(tasks, dict) or not tasks:
        raise ValueError(f"{path}: expected an object of task name -> task, with at least one")
    return tuple(_task(name, entry, path=path) for name, entry in tasks.items())


def _task(name: str, entry: object, *, path: Path) -> ZeroShotTask:
    where = f"{path}, task {name!r}"
    if not isinstance(entry, dict) or not KEYS - {"field"} <= entry.keys() <= KEYS:
        raise ValueError(
            f"{where}: expected an object with class_names, templates and perhaps field, got "
            f"{sorted(entry) if isinstance(entry, dict) else entry!r}"
        )
    for key in ("class_names", "templates"):
        value = entry[key]
        if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
            raise ValueError(f"{where}: {key} must be a list of texts, got {value!r}")
    field = entry.get("field", "cls")
    if not isinstance(field, str):
        raise ValueError(f"{where}: field must be a text, got {field!r}")
    try:
        return ZeroShotTask(
            name=name,
            class_names=tuple(entry["class_names"]),
            templates=tuple(entry["templates"]),
            field=field,
        )
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _lines(path: Path) -> list[str]:
    lines = path.read_text(encoding="utf-8").splitlines()
    if not lines:
        raise ValueError(f"{path} is empty; it needs one entry a line")
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            raise ValueError(f"{path}, line {number} is empty; remove it")
    return [line.strip() for line in lines]
