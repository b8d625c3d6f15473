"""Metrics on disk: one JSON object per line, and the same numbers for TensorBoard."""

import json
import math
import uuid
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from drrho.runtime.files import parse_json, require_regular, write_atomically
from drrho.runtime.records import from_json

FILE_NAME = "metrics.jsonl"
LONGEST_ROW = 2**20  # bytes
WANDB_SECONDS = 30.0  # until a server counts as unreachable
Row = Mapping[str, float | None]


class MetricsLog:
    """Log of rows in `folder/metrics.jsonl`, and of TensorBoard events in `folder/tensorboard`.

    A row is one flat object: `step`, `samples`, `seconds`, then name: value. A value that is not
    finite is written as null. Each row reaches the operating system before `write` returns, so it
    survives the process. A place that fails (full disk, no network) is left out from then on, with
    a warning: training continues.

    Args:
        folder: folder of the run, created if it does not exist.
        writes: whether this process writes: only the first of a run does.
        wandb_project: project of Weights & Biases to log to as well, under the folder's name; a
            resumed run continues its own. Set WANDB_MODE=offline where there is no network.
        start_step: position of the run. Rows of this step and beyond, which the resumed run
            repeats, are removed.

    Raises:
        ValueError: an existing file has a line that is no row (other than a torn last one).
        ModuleNotFoundError: wandb is asked for and not installed.
    """

    def __init__(
        self,
        folder: Path,
        *,
        start_step: int,
        writes: bool = True,
        wandb_project: str | None = None,
    ) -> None:
        self._file = self._events = self._wandb = None
        if not writes:
            return
        folder.mkdir(parents=True, exist_ok=True)
        if wandb_project is not None:
            self._wandb = _wandb_run(folder, wandb_project)
        path = folder / FILE_NAME
        _keep_rows_before(start_step, path)
        self._file = path.open("a", encoding="utf-8")
        self._failed: set[str] = set()
        try:
            # TensorBoard is optional, and slow to import for those who only read rows.
            from torch.utils.tensorboard import SummaryWriter  # noqa: PLC0415
        except ImportError:
            warnings.warn(
                f"tensorboard is not installed: metrics go to {path} alone; "
                "pip install tensorboard for its display",
                stacklevel=2,
            )
        else:
            self._events = SummaryWriter(str(folder / "tensorboard"), purge_step=start_step)

    def __enter__(self) -> "MetricsLog":
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    def write(
        self, metrics: Mapping[str, float], *, step: int, samples: int, seconds: float
    ) -> None:
        """Append a row of metrics after `step` steps; a slash in a name groups it in TensorBoard.

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
        file, events, wandb = self._file, self._events, self._wandb
        self._try(
            FILE_NAME, lambda: (file.write(f"{json.dumps(row, allow_nan=False)}\n"), file.flush())
        )
        if events is not None:
            self._try("TensorBoard", lambda: _add(events, metrics, step=step))
        if wandb is not None:
            values = dict(metrics) | {"samples": samples, "seconds": seconds}
            self._try("Weights & Biases", lambda: wandb.log(values, step=step))

    def close(self) -> None:
        """Close the files, and end the run of Weights & Biases."""
        if self._file is not None:
            self._try(FILE_NAME, self._file.close)
        if self._events is not None:
            self._try("TensorBoard", self._events.close)
        if self._wandb is not None:
            self._try("Weights & Biases", self._wandb.finish)

    def _try(self, place: str, act: Callable[[], object]) -> None:
        """Write to a place, unless it has failed before; a failure is a warning."""
        if place in self._failed:
            return
        try:
            act()
        except Exception as error:  # of other programs, in any kind
            self._failed.add(place)
            reason = str(error).partition("\n")[0]
            warnings.warn(
                f"metrics no longer go to {place} ({reason}); training continues without",
                stacklevel=4,
            )


def _add(events: Any, metrics: Mapping[str, float], *, step: int) -> None:
    for name, value in metrics.items():
        events.add_scalar(name, value, global_step=step)
    events.flush()


def _wandb_run(folder: Path, project: str) -> Any:
    """Open the folder's run of Weights & Biases, the same whenever training continues there.

    Without a key or a network there is none, and a warning.
    """
    try:
        import wandb  # noqa: PLC0415  # pyright: ignore[reportMissingImports]  optional
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"training.wandb_project = {project!r} needs wandb: pip install wandb", name=error.name
        ) from error
    path = folder / "wandb-id"
    if not path.is_file():
        write_atomically(path, uuid.uuid4().hex.encode())
    try:
        return wandb.init(
            project=project,
            name=folder.name,
            dir=str(folder),
            id=path.read_text(encoding="utf-8"),
            resume="allow",
            settings={"init_timeout": WANDB_SECONDS},
        )
    except Exception as error:  # of another program, in any kind
        reason = str(error).partition("\n")[0]
        warnings.warn(
            f"metrics do not go to Weights & Biases ({reason}); training continues without. Log in "
            "with `wandb login`, or set WANDB_MODE=offline where there is no network",
            stacklevel=3,
        )
        return None


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


def _keep_rows_before(step: int, path: Path) -> None:
    """Rewrite the file without the rows of `step` and beyond; whole or not at all."""
    if not path.exists():
        return
    rows = [row for row in read_metrics(path.parent) if (row["step"] or 0) < step]
    write_atomically(path, "".join(json.dumps(row) + "\n" for row in rows).encode())
