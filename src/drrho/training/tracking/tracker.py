"""What a tracker is, and the trackers that a recipe names."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from drrho.runtime.files import parse_json, read_regular, write_atomically
from drrho.runtime.optional import built_by_program

TENSORBOARD, PROGRAM = "tensorboard", "python"
SERVICES = ("wandb", "trackio")
FORMS = "'tensorboard', 'wandb:PROJECT', 'trackio:PROJECT' or 'python:FILE.py'"
IDS_FILE = "trackers.json"  # tracker -> id of this folder's run there
LARGEST_IDS = 2**16  # bytes


@dataclass(frozen=True, kw_only=True)
class TrackedRun:
    """A run as trackers see it.

    Attributes:
        folder: folder of the run; its name is the name of the run.
        config: the recipe and the identities of its data, as `recipe.json` has them.
        step: step that training continues at. Rows of this step and later ones may have been
            logged before, by a process that was killed; they are logged again.
        logged: last step that was logged before; -1 for a new run.
    """

    folder: Path
    config: Mapping[str, Any] = field(default_factory=dict)
    step: int = 0
    logged: int = -1


@runtime_checkable
class Tracker(Protocol):
    """Place for the metrics of a run.

    Only the first process of a run has trackers. An error of a tracker becomes a warning, and
    training continues without it.
    """

    def begin(self, run: TrackedRun) -> None:
        """Open the run, new or continued; called once, before the first row."""
        ...

    def log(self, metrics: Mapping[str, float], *, step: int) -> None:
        """Log a row of metrics, which may be nan or infinite; steps increase."""
        ...

    def finish(self) -> None:
        """Close the run at the end of training, or where it is interrupted."""
        ...


def require_tracker_name(name: str) -> None:
    """Raise ValueError unless `name` has the form of a tracker; imports and runs nothing."""
    kind, _, rest = name.partition(":")
    if name != TENSORBOARD and not (kind in (*SERVICES, PROGRAM) and rest):
        raise ValueError(f"trackers: {name!r} is no tracker; give {FORMS}")


def program_of(name: str) -> str | None:
    """The Python file that a tracker's name asks to run; None for others."""
    kind, _, path = name.partition(":")
    return path if kind == PROGRAM else None


def open_tracker(name: str) -> Tracker:
    """Make the tracker of a name; nothing is logged or connected yet.

    Raises:
        ModuleNotFoundError: its package is not installed; the message says how to install it.
        FileNotFoundError: there is no such program.
        ValueError: the name is no tracker's, or the program fails or makes no tracker.
    """
    require_tracker_name(name)
    kind, _, rest = name.partition(":")
    # Each adapter imports an optional package, so only the one that is asked for is imported.
    match kind:
        case "wandb":
            from drrho.training.tracking.wandb import WandbTracker  # noqa: PLC0415

            return WandbTracker(rest)
        case "trackio":
            from drrho.training.tracking.trackio import TrackioTracker  # noqa: PLC0415

            return TrackioTracker(rest)
        case "python":
            return _built_by(Path(rest).expanduser())
        case _:
            from drrho.training.tracking.tensorboard import TensorBoardTracker  # noqa: PLC0415

            return TensorBoardTracker()


def _built_by(path: Path) -> Tracker:
    """Build a tracker by `build()` of the user's Python file."""
    tracker = built_by_program(path, what="tracker")
    if not isinstance(tracker, Tracker):
        raise ValueError(
            f"tracker 'python:{path}': it must define build(), which returns an object with the "
            f"methods begin, log and finish; got {type(tracker).__name__}"
        )
    return tracker


def id_in(run: TrackedRun, tracker: str, *, new: str) -> tuple[str, bool]:
    """The id that a run has at a tracker, and whether it is continued there; kept in the folder.

    Args:
        tracker: name of the tracker, as in `open_tracker`.
        new: id of a run that has none there.
    """
    path = run.folder / IDS_FILE
    ids: dict[str, str] = {}
    if path.is_file():
        try:
            found = parse_json(read_regular(path, most=LARGEST_IDS), strict=True)
        except ValueError as error:
            raise ValueError(f"{path} is damaged ({error}); remove it for new runs") from error
        if not isinstance(found, dict) or not all(type(it) is str for it in found.values()):
            raise ValueError(f"{path} holds no ids of runs; remove it for new runs")
        ids = found
    if tracker in ids:
        return ids[tracker], True
    write_atomically(path, json.dumps(ids | {tracker: new}, indent=1).encode())
    return new, False
