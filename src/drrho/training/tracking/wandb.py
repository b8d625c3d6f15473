"""Metrics on Weights & Biases."""

import uuid
from collections.abc import Mapping
from typing import Any

from drrho.runtime.optional import import_optional
from drrho.training.tracking.tracker import TrackedRun, id_in

SECONDS = 30.0  # until a server counts as unreachable


class WandbTracker:
    """A run of a project of Weights & Biases, under the name of the run's folder.

    A resumed run continues its own there. What was logged cannot be taken back, so steps that are
    repeated are left out.

    Args:
        project: name of the project.
    """

    def __init__(self, project: str) -> None:
        self._wandb: Any = import_optional(
            "wandb", user="runs tracked on Weights & Biases", extra="wandb"
        )
        self._project = project
        self._run: Any = None
        self._first = 0  # step before which all is there

    def begin(self, run: TrackedRun) -> None:
        """Open the folder's run, new or continued.

        Raises:
            RuntimeError: there is no key, or no network.
        """
        id_, continued = id_in(run, f"wandb:{self._project}", new=uuid.uuid4().hex)
        try:
            self._run = self._wandb.init(
                project=self._project,
                name=run.folder.name,
                dir=str(run.folder),
                id=id_,
                resume="allow",
                config={**run.config},
                allow_val_change=True,
                settings={"init_timeout": SECONDS},
            )
        except Exception as error:  # of another program, in any kind
            reason = str(error).partition("\n")[0]
            raise RuntimeError(
                f"{reason}; log in with `wandb login`, or set WANDB_MODE=offline where there is no "
                "network"
            ) from error
        if continued:  # offline, the step there is not known
            self._first = self._run.step or run.logged + 1

    def log(self, metrics: Mapping[str, float], *, step: int) -> None:
        """Log a row, unless it is there."""
        if step >= self._first:
            self._run.log(dict(metrics), step=step)

    def finish(self) -> None:
        """End the run, and wait until it is uploaded."""
        self._run.finish()
