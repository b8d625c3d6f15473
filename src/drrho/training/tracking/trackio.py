"""Metrics on trackio: https://github.com/gradio-app/trackio."""

import uuid
from collections.abc import Mapping
from typing import Any

from drrho.runtime.optional import import_optional
from drrho.training.tracking.tracker import TrackedRun, id_in


class TrackioTracker:
    """A run of a project of trackio, on this machine or where TRACKIO_SPACE_ID says.

    trackio finds runs by their names, so the name is the folder's with an ending of its own. A
    resumed run continues its own. What was logged cannot be taken back, so steps that are repeated
    are left out.

    Args:
        project: name of the project.
    """

    def __init__(self, project: str) -> None:
        self._trackio: Any = import_optional("trackio", user="runs tracked by it", extra="trackio")
        self._project = project
        self._run: Any = None
        self._first = 0  # step before which all is there

    def begin(self, run: TrackedRun) -> None:
        """Open the folder's run, new or continued."""
        new = f"{run.folder.name}-{uuid.uuid4().hex[:8]}"
        name, continued = id_in(run, f"trackio:{self._project}", new=new)
        self._run = self._trackio.init(
            project=self._project,
            name=name,
            resume="allow",
            config={**run.config},
            embed=False,
        )
        if continued:
            # A killed process loses the rows of its last half second. A private attribute, which
            # later versions may lack, says what arrived.
            self._first = getattr(self._run, "_next_step", run.logged + 1)

    def log(self, metrics: Mapping[str, float], *, step: int) -> None:
        """Log a row, unless it is there."""
        if step >= self._first:
            self._run.log(dict(metrics), step=step)

    def finish(self) -> None:
        """End the run, and wait until its rows are stored."""
        self._run.finish()
