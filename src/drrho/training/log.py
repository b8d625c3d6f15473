"""Metrics on disk, one JSON object per line, and the same numbers for trackers."""

import json
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from drrho.runtime.files import parse_json, require_regular, write_atomically
from drrho.runtime.records import from_json
from drrho.training.tracking.tracker import TENSORBOARD, TrackedRun, Tracker, open_tracker

FILE_NAME = "metrics.jsonl"
LONGEST_ROW = 2**20  # bytes
Row = Mapping[str, float | None]


class MetricsLog:
    """Log of rows in `folder/metrics.jsonl`, and at trackers.

    A row is one flat object: `step`, `samples`, `seconds`, then name: value. A value that is not
    finite is written as null. Each row reaches the operating system before `write` returns, so it
    survives the process. A place that fails (full disk, no network) is left out from then on, with
    a warning: training continues.

    Args:
        folder: folder of the run, created if it does not exist.
        writes: whether this process writes: only the first of a run does.
        trackers: names of trackers, as `open_tracker` takes them, or trackers.
        config: recipe of the run, for the trackers.
        start_step: position of the run. Rows of this step and beyond, which the resumed run
            repeats, are removed.

    Raises:
        ValueError: an existing file has a line that is no row (other than a torn last one), or a
            tracker's program fails.
        ModuleNotFoundError: the package of a tracker is not installed. Without TensorBoard there
            is a warning instead.
        FileNotFoundError: the program of a tracker is not there.
    """

    def __init__(
        self,
        folder: Path,
        *,
        start_step: int,
        writes: bool = True,
        trackers: Sequence[str | Tracker] = (TENSORBOARD,),
        config: Mapping[str, Any] | None = None,
    ) -> None:
        self._file = None
        self._trackers: dict[str, Tracker] = {}
        if not writes:
            return
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / FILE_NAME
        opened = _opened(trackers, path)
        logged = _keep_rows_before(start_step, path)
        self._file = path.open("a", encoding="utf-8")
        self._failed: set[str] = set()
        run = TrackedRun(folder=folder, config=config or {}, step=start_step, logged=logged)
        for place, tracker in opened.items():
            try:
                tracker.begin(run)
            except Exception as error:  # of other programs, in any kind
                _warn_without(f"metrics do not go to {place}", error, stacklevel=3)
            else:
                self._trackers[place] = tracker

    def __enter__(self) -> "MetricsLog":
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    def write(
        self, metrics: Mapping[str, float], *, step: int, samples: int, seconds: float
    ) -> None:
        """Append a row of metrics after `step` steps.

        Raises:
            ValueError: a metric has the name of one of the other three columns.
        """
        row: dict[str, float | None] = {"step": step, "samples": samples, "seconds": seconds}
        taken = row.keys() & metrics.keys()
        if taken:
            raise ValueError(f"metrics must not be called {sorted(taken)}: the log writes those")
        if self._file is None:
            return
        row |= {name: v if math.isfinite(v) else None for name, v in metrics.items()}
        file = self._file
        self._try(
            FILE_NAME, lambda: (file.write(f"{json.dumps(row, allow_nan=False)}\n"), file.flush())
        )
        values = {**metrics, "samples": samples, "seconds": seconds}
        for place, tracker in self._trackers.items():
            self._try(place, lambda tracker=tracker: tracker.log(values, step=step))

    def close(self) -> None:
        """Close the file, and finish the trackers' runs."""
        if self._file is not None:
            self._try(FILE_NAME, self._file.close)
        for place, tracker in self._trackers.items():
            self._try(place, tracker.finish)

    def _try(self, place: str, act: Callable[[], object]) -> None:
        """Write to a place, unless it has failed before; a failure is a warning."""
        if place in self._failed:
            return
        try:
            act()
        except Exception as error:  # of other programs, in any kind
            self._failed.add(place)
            _warn_without(f"metrics no longer go to {place}", error, stacklevel=5)


def _opened(trackers: Sequence[str | Tracker], path: Path) -> dict[str, Tracker]:
    """Trackers by the names that messages give them; without TensorBoard if it is missing."""
    opened: dict[str, Tracker] = {}
    for tracker in trackers:
        name = tracker if isinstance(tracker, str) else type(tracker).__name__
        if name in opened:
            name = f"{name}, number {len(opened) + 1}"
        try:
            opened[name] = open_tracker(tracker) if isinstance(tracker, str) else tracker
        except ImportError as error:
            if tracker != TENSORBOARD:
                raise
            warnings.warn(
                f"tensorboard is not installed: metrics go to {path} alone ({error})", stacklevel=3
            )
    return opened


def _warn_without(what: str, error: Exception, *, stacklevel: int) -> None:
    reason = str(error).partition("\n")[0]
    warnings.warn(f"{what} ({reason}); training continues without", stacklevel=stacklevel)


def read_metrics(folder: Path) -> list[dict[str, float | None]]:
    """Read the rows of `folder/metrics.jsonl`, in the order of the steps.

    A torn last line, of a process killed as it wrote, is left out: the resumed run writes it again.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a line is no row.
    """
    path = folder / FILE_NAME
    require_regular(path)
    rows: list[dict[str, float | None]] = []
    with path.open("rb") as file:
        for number, line in enumerate(iter(lambda: file.readline(LONGEST_ROW), b""), start=1):
            where = f"{path}, line {number}"
            try:
                row = parse_json(line, strict=True)
            except ValueError as error:
                if not line.endswith(b"\n") and not file.read(1):
                    break
                raise ValueError(
                    f"{where} is not JSON ({error}); repair or remove the line"
                ) from error
            if not isinstance(row, dict) or "step" not in row:
                raise ValueError(f"{where} is no row with a step; remove the line")
            found = from_json(Row, row, where=where)
            if type(step := row["step"]) is not int or step < 0:
                raise ValueError(
                    f"{where}.step must be a number of steps, got {step!r:.80}; remove the line"
                )
            rows.append(found)
    return rows


def _keep_rows_before(step: int, path: Path) -> int:
    """Rewrite the file without the rows of `step` and beyond, whole or not at all.

    Returns:
        The last step that the file had; -1 without rows.
    """
    if not path.exists():
        return -1
    rows = read_metrics(path.parent)
    kept = [row for row in rows if (row["step"] or 0) < step]
    write_atomically(path, "".join(json.dumps(row) + "\n" for row in kept).encode())
    return max((int(row["step"] or 0) for row in rows), default=-1)
