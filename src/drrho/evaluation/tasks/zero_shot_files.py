"""Zero-shot tasks from files: clip_benchmark's folder layout, or one JSON file of several."""

import json
from collections.abc import Iterator
from pathlib import Path

from drrho.evaluation.metrics.zero_shot import PLACEHOLDER, ZeroShotTask
from drrho.runtime.files import parse_json, read_regular

CLASS_NAMES_FILE = "classnames.txt"
TYPE_FILE = "dataset_type.txt"
SPLIT = "test"
NUM_SHARDS_FILE = "nshards.txt"
TEMPLATES_FILE = "zeroshot_classification_templates.txt"
# clip_benchmark writes the class name's place in a template as {c}.
CLIP_BENCHMARK_PLACEHOLDER = "{c}"
KEYS = {"class_names", "templates", "field"}
MAX_TEXT = 2**24  # bytes of a file of names or prompts that are read


def is_retrieval_folder(folder: Path) -> bool:
    """Tell whether clip_benchmark's `dataset_type.txt` says retrieval: each line is a caption."""
    path = folder / TYPE_FILE
    if not path.exists():
        return False
    match read_text(path).strip().lower():
        case "retrieval":
            return True
        case "classification":
            return False
        case other:
            raise ValueError(
                f"{path}: a data set of type {other!r} cannot be evaluated; write 'retrieval' or "
                "'classification', or remove the file"
            )


def is_class_folder(folder: Path) -> bool:
    """Tell whether a folder has clip_benchmark's `classnames.txt`."""
    found = (folder / CLASS_NAMES_FILE).is_file()
    if not found and (folder / SPLIT / NUM_SHARDS_FILE).is_file():
        raise FileNotFoundError(
            f"{folder / CLASS_NAMES_FILE} is missing: write a class name a line, or 'retrieval' "
            f"into {TYPE_FILE} if the data have captions"
        )
    return found


def shards_of_test(folder: Path) -> str:
    """Find the shards of a folder in clip_benchmark's layout: `test/0.tar`, `test/1.tar`, ...

    Raises:
        FileNotFoundError: `test/` is missing, or a shard that `test/nshards.txt` counts.
        ValueError: `test/nshards.txt` is no positive number.
    """
    shards = folder / SPLIT
    if not shards.is_dir():
        raise FileNotFoundError(f"{shards} is missing: the shards of {folder} belong there")
    path = shards / NUM_SHARDS_FILE
    if not path.is_file():
        return str(shards)
    text = read_regular(path, most=100).decode(errors="replace").strip()
    if not text.isdecimal() or int(text) < 1:
        raise ValueError(f"{path} must hold the number of shards, got {text!r}")
    count = int(text)
    # Compared with the files that there are, so that a wrong number takes no time.
    present = {int(p.stem) for p in shards.glob("*.tar") if p.stem.isdecimal() and p.is_file()}
    num_missing = count - len([k for k in present if k < count])
    if num_missing:
        first = next(k for k in range(count) if k not in present)
        raise FileNotFoundError(
            f"{shards} lacks {num_missing} of the {count} shards that {NUM_SHARDS_FILE} counts, "
            f"the first is {first}.tar; fetch it again, or correct {NUM_SHARDS_FILE}"
        )
    return str(shards / f"{{0..{count - 1}}}.tar")


def require_templates(argument: str, templates: tuple[str, ...]) -> None:
    """Raise ValueError unless each template has the place where the text goes."""
    if unusable := [template for template in templates if PLACEHOLDER not in template]:
        raise ValueError(
            f"{argument}: each template needs {PLACEHOLDER} where the text goes, got {unusable}"
        )


def read_clip_benchmark_task(folder: Path) -> ZeroShotTask:
    """Read the task of a folder with `classnames.txt` and its file of templates.

    One class name or template a line. Labels are the `.cls` files of the samples; the task has
    the name of the folder.
    """
    templates = [_template(line, where=at) for at, line in _lines(folder / TEMPLATES_FILE)]
    return ZeroShotTask(
        name=folder.resolve().name,
        class_names=tuple(name for _, name in _lines(folder / CLASS_NAMES_FILE)),
        templates=tuple(templates),
    )


def read_objectives(folder: Path) -> tuple[ZeroShotTask, ...]:
    """Read the tasks, called objectives, of a folder whose images have several labels.

    DataComp writes `objective:class name` and `objective:template` into the lines of
    clip_benchmark's files.
    """
    names: dict[str, list[str]] = {}
    for _, objective, name in _of_objectives(folder / CLASS_NAMES_FILE):
        names.setdefault(objective, []).append(name)
    templates: dict[str, list[str]] = {objective: [] for objective in names}
    for where, objective, template in _of_objectives(folder / TEMPLATES_FILE):
        if objective not in names:
            raise ValueError(f"{where}: {CLASS_NAMES_FILE} has no class of {objective!r}")
        templates[objective].append(_template(template, where=where))
    return tuple(
        ZeroShotTask(
            name=objective, class_names=tuple(classes), templates=tuple(templates[objective])
        )
        for objective, classes in names.items()
    )


def read_zero_shot_json(path: Path) -> tuple[ZeroShotTask, ...]:
    """Read the tasks of a file such as

        {"shape": {"class_names": ["circle", "square"], "templates": ["a {}"], "field": "shape"}}

    `field` names the metadata that holds the label and may be left out for `.cls` files. A class
    may have a list of several names, whose prompts are averaged; the first is its label.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: names the file and the line or task that is wrong.
    """
    try:
        tasks = parse_json(read_regular(path, most=MAX_TEXT))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}, line {error.lineno}: not JSON ({error.msg})") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not JSON ({error})") from error
    if not isinstance(tasks, dict) or not tasks:
        raise ValueError(f"{path}: expected an object of task name -> task, with at least one")
    return tuple(_task(name, entry, path=path) for name, entry in tasks.items())


def _of_objectives(path: Path) -> Iterator[tuple[str, str, str]]:
    """Yield place, objective and rest of each line."""
    for where, line in _lines(path):
        objective, colon, text = (part.strip() for part in line.partition(":"))
        if not (objective and colon and text):
            raise ValueError(f"{where}: {line!r} has no objective; write `objective:text`")
        yield where, objective, text


def _template(template: str, *, where: str) -> str:
    if CLIP_BENCHMARK_PLACEHOLDER not in template:
        raise ValueError(
            f"{where}: {template!r} has no {CLIP_BENCHMARK_PLACEHOLDER} where the class name goes"
        )
    return template.replace(CLIP_BENCHMARK_PLACEHOLDER, PLACEHOLDER)


def _task(name: str, entry: object, *, path: Path) -> ZeroShotTask:
    where = f"{path}, task {name!r}"
    if not isinstance(entry, dict) or not KEYS - {"field"} <= entry.keys() <= KEYS:
        raise ValueError(
            f"{where}: expected an object with class_names, templates and perhaps field, got "
            f"{sorted(entry) if isinstance(entry, dict) else repr(entry)[:200]}"
        )
    templates, names = entry["templates"], entry["class_names"]
    if not _is_list_of_texts(templates):
        raise ValueError(f"{where}: templates must be a list of texts, got {templates!r:.200}")
    if not isinstance(names, list) or not all(
        isinstance(name, str) or (name and _is_list_of_texts(name)) for name in names
    ):
        raise ValueError(
            f"{where}: class_names must be a list of texts or of lists of them, got {names!r:.200}"
        )
    several = [[name] if isinstance(name, str) else name for name in names]
    field = entry.get("field", "cls")
    if not isinstance(field, str):
        raise ValueError(f"{where}: field must be a text, got {field!r}")
    try:
        return ZeroShotTask(
            name=name,
            class_names=tuple(of_class[0] for of_class in several),
            templates=tuple(templates),
            field=field,
            other_names=tuple(tuple(of_class[1:]) for of_class in several),
        )
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _is_list_of_texts(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(text, str) for text in value)


def read_text(path: Path) -> str:
    """Read a regular file of UTF-8; raises ValueError if it is none, or very large."""
    try:
        return read_regular(path, most=MAX_TEXT).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no text in UTF-8 ({error}); write it so") from error


def _lines(path: Path) -> list[tuple[str, str]]:
    """Read the place, for messages, and the text of each line."""
    try:
        lines = read_text(path).splitlines()
    except FileNotFoundError:
        raise FileNotFoundError(
            f"{path} is missing; it needs one entry a line"
            + (", such as 'a photo of a {c}.'" if path.name == TEMPLATES_FILE else "")
        ) from None
    if not lines:
        raise ValueError(f"{path} is empty; it needs one entry a line")
    found = [(f"{path}, line {k}", line.strip()) for k, line in enumerate(lines, start=1)]
    if empty := [where for where, line in found if not line]:
        raise ValueError(f"{empty[0]} is empty; remove it")
    return found
