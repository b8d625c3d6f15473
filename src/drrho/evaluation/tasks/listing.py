"""A list of evaluation tasks with their main metrics, in the form of DataComp's tasklist.yml."""

from collections import Counter
from importlib import resources
from pathlib import Path
from typing import Any

from drrho.evaluation.tasks.scores import KINDS
from drrho.evaluation.tasks.task import ListedTask
from drrho.evaluation.tasks.zero_shot_files import read_text

DATACOMP = "datacomp"
KEYS = {"name", "size", "main_metric", "folder", "suite", "group_by", "kind"}
# Further entries of DataComp's list, which no score depends on.
OTHER_KEYS = {"time", "num_classes", "random_score", "tags"}


def task_folders(task: ListedTask, data: Path) -> list[Path]:
    """List where the data of a task may be, the likeliest first.

    DataComp's `download_evalsets.py` writes `wds_vtab-eurosat_test`; clip_benchmark's own data
    sets are called `wds_vtab-eurosat` or `wds_mscoco_captions`. Associations are no shards, and
    their folder is `winogavil`.
    """
    for name in (task.key, task.folder or "."):
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise ValueError(
                f"task {task.key!r}: {name!r} leads out of {data}; data must be inside it"
            )
    if task.folder is not None:
        return [data / task.folder]
    whole, last = task.key.replace("/", "-"), task.key.rpartition("/")[2]
    if task.kind is not None and not KINDS[task.kind].in_shards:
        return [data / name for name in dict.fromkeys([last, task.key, whole])]
    names = [f"wds_{whole}_test", f"wds_{last}_test", f"wds_{whole}", f"wds_{last}"]
    return [data / name for name in dict.fromkeys([*names, task.key, whole, last])]


def read_task_list(source: str) -> tuple[ListedTask, ...]:
    """Read the tasks of a list.

    Args:
        source: a YAML or JSON file of key -> {name, kind, main_metric, size, folder, suite,
            group_by}, where all may be left out, or "datacomp". What a file leaves out about a
            task of DataComp is taken from DataComp.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is no such list; names it and the task.
    """
    own_list = resources.files("drrho.evaluation").joinpath("datacomp.yml")
    known = _parse(own_list.read_text(encoding="utf-8"), DATACOMP)
    if source == DATACOMP:
        entries = known
    else:
        path = Path(source).expanduser()
        if not path.is_file():
            raise FileNotFoundError(
                f"task list {source} does not exist; give a YAML file such as DataComp's "
                f"tasklist.yml, or {DATACOMP!r} for its tasks"
            )
        entries = _parse(read_text(path), source)
    return tuple(
        _task(key, known.get(key, {}) | entry, where=f"{source}, task {key!r}")
        for key, entry in entries.items()
    )


def _parse(text: str, source: str) -> dict[str, dict]:
    import yaml  # noqa: PLC0415  for those who have a list

    try:
        # Aliases can make a few lines stand for gigabytes; no list needs them.
        if any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text, yaml.SafeLoader)):
            raise ValueError(f"task list {source} has aliases (*name); write what they stand for")
        entries = yaml.safe_load(text)
        # Of two entries with one key `entries` has the last alone.
        tree = yaml.compose(text, yaml.SafeLoader)
    except (yaml.YAMLError, RecursionError) as error:
        raise ValueError(f"task list {source} is not YAML: {error}") from error
    if not isinstance(entries, dict) or not entries:
        raise ValueError(
            f"task list {source} must be an object of task key -> task, with at least one"
        )
    assert isinstance(tree, yaml.MappingNode)
    keys = Counter(str(node.value) for node, _ in tree.value)
    if repeated := [key for key, count in keys.items() if count > 1]:
        raise ValueError(f"{source} has the task {repeated[0]!r} more than once")
    for key, entry in entries.items():
        if not isinstance(key, str) or not isinstance(entry, dict | None):
            raise ValueError(f"{source}, task {key!r}: expected an object, got {entry!r:.200}")
    return {key: entry or {} for key, entry in entries.items()}


def _task(key: str, entry: dict, *, where: str) -> ListedTask:
    if unknown := sorted(map(str, entry.keys() - KEYS - OTHER_KEYS)):
        raise ValueError(f"{where}: unknown entries {unknown}; there are {sorted(KEYS)}")
    for name in ("name", "folder", "suite"):
        if not isinstance(entry.get(name, ""), str):
            raise ValueError(f"{where}: {name} must be a text, got {entry[name]!r}")
    if not isinstance(entry.get("main_metric", ""), str | None):
        raise ValueError(
            f"{where}: main_metric must be a metric's name or null, got {entry['main_metric']!r}"
        )
    kind = entry.get("kind", "classification")
    if not isinstance(kind, str) or kind not in KINDS:
        raise ValueError(f"{where}: kind must be one of {list(KINDS)}, got {kind!r}")
    size = entry.get("size")
    if size is not None and (not isinstance(size, int) or size < 1):
        raise ValueError(f"{where}: size must be a positive number, got {size!r}")
    groups = entry.get("group_by", {})
    if not isinstance(groups, dict) or not all(
        isinstance(name, str) and isinstance(column, int) and column >= 0
        for name, column in groups.items()
    ):
        raise ValueError(
            f"{where}: group_by must be an object of a name -> column of the .npy, got {groups!r}"
        )
    if groups and not KINDS[kind].takes_groups:
        raise ValueError(f"{where}: group_by has no effect on a task of kind {kind!r}")
    chosen: dict[str, Any] = {"name": key} | {name: entry[name] for name in KEYS & entry.keys()}
    task = ListedTask(key=key, **chosen)
    _require_main_metric(task, where=where)
    return task


def _require_main_metric(task: ListedTask, *, where: str) -> None:
    """Raise ValueError if no kind that the data may turn out to be of has the main metric."""
    if task.kind is not None:
        KINDS[task.kind].require_metric(task, where=where)
        return
    try:
        KINDS["retrieval"].require_metric(task, where=where)
    except ValueError:
        KINDS["classification"].require_metric(task, where=where)
