"""Metrics as TensorBoard events in `FOLDER/tensorboard`."""

from collections.abc import Mapping
from typing import Any

from drrho.runtime.optional import import_optional
from drrho.training.tracking.tracker import TrackedRun


class TensorBoardTracker:
    """Writer of events; a slash in a metric's name groups it.

    TensorBoard hides the events of the steps that a resumed run repeats.
    """

    def __init__(self) -> None:
        module = import_optional(
            "torch.utils.tensorboard", user="logs for TensorBoard", extra="report"
        )
        self._writer_of: Any = module.SummaryWriter
        self._events: Any = None

    def begin(self, run: TrackedRun) -> None:
        """Open the events, without those of `run.step` and later steps."""
        self._events = self._writer_of(str(run.folder / "tensorboard"), purge_step=run.step)

    def log(self, metrics: Mapping[str, float], *, step: int) -> None:
        """Write one event for each metric."""
        for name, value in metrics.items():
            self._events.add_scalar(name, value, global_step=step)
        self._events.flush()

    def finish(self) -> None:
        """Close the file of events."""
        self._events.close()
