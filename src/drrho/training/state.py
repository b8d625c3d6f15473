"""All that a checkpoint holds: whatever the next step depends on, and what was counted so far."""

import json
import os
import platform
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from drrho.randomness import capture_generators
from drrho.training.checkpoint import CheckpointError, load_latest_checkpoint, save_checkpoint

FORMAT = 2
LIBRARIES = ("open_clip_torch", "torchvision", "pillow", "webdataset")


@dataclass(kw_only=True)
class TrainingState:
    """A run in progress: its modules, its optimiser and its position.

    Schedules and the order of the samples are functions of `step`, so their position is `step`.

    Attributes:
        folder: the run's folder; its checkpoints are in `folder/checkpoints`.
        model: the module that is trained, as itself: not wrapped for distribution, whose
            parameter names differ.
        loss: the module with the loss's per-sample state and learnable temperature; None for a
            loss that remembers nothing.
        optimizer: over the parameters of both.
        config: the whole run's configuration as nested plain data (`dataclasses.asdict`); a
            checkpoint is only restored into the configuration that wrote it.
        step: optimiser steps taken.
        samples_seen: samples that entered a step, repetitions counted.
        skipped: reason -> samples that could not be used, repetitions counted.
        seconds: wall time spent in training, all resumed parts together.
        metrics: metrics of the last step; empty if that step is not logged. They are saved so
            that a run killed between a checkpoint and the log line loses neither.
        generators: states to continue the random generators from; None before the first save.
    """

    folder: Path
    model: nn.Module
    loss: nn.Module | None
    optimizer: torch.optim.Optimizer
    config: Mapping[str, Any]
    step: int = 0
    samples_seen: int = 0
    skipped: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0
    metrics: dict[str, float] = field(default_factory=dict)
    generators: dict[str, Any] | None = None

    @property
    def checkpoints(self) -> Path:
        """The folder of the checkpoint files."""
        return self.folder / "checkpoints"

    def save(self, *, keep: int) -> Path:
        """Writes a checkpoint of this moment and keeps the newest `keep`.

        Raises:
            TypeError: the config holds something that is not plain data.
        """
        self.generators = capture_generators()
        contents = {
            "format": FORMAT,
            "versions": versions(),
            "config": plain(self.config),
            "model": self.model.state_dict(),
            "loss": self.loss.state_dict() if self.loss is not None else None,
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
            "samples_seen": self.samples_seen,
            "skipped": dict(self.skipped),
            "seconds": self.seconds,
            "metrics": self.metrics,
            "generators": self.generators,
        }
        return save_checkpoint(contents, self.checkpoints, step=self.step, keep=keep)

    def resume(self, *, may_change: Collection[str] = ()) -> bool:
        """Continues from the newest readable checkpoint of the folder, if there is one.

        Call it before the batches are opened: they start at `step`.

        Args:
            may_change: dotted names of config values that may differ from the checkpoint's
                because they do not change what is computed, such as "data.workers".

        Returns:
            Whether there was a checkpoint.

        Raises:
            CheckpointError: no checkpoint is readable, or the newest readable one has another
                configuration or other shapes. Nothing has then been changed.
        """
        found = load_latest_checkpoint(self.checkpoints)
        if found is None:
            return False
        path, contents = found
        self._require_same_run(contents, path=path, may_change=may_change)
        self.optimizer.load_state_dict(contents["optimizer"])
        self.model.load_state_dict(contents["model"])
        if self.loss is not None:
            self.loss.load_state_dict(contents["loss"])
        self.step = contents["step"]
        self.samples_seen = contents["samples_seen"]
        self.skipped = Counter(contents["skipped"])
        self.seconds = contents["seconds"]
        self.metrics = contents["metrics"]
        self.generators = contents["generators"]
        return True

    def _require_same_run(
        self, contents: Mapping[str, Any], *, path: Path, may_change: Collection[str]
    ) -> None:
        if contents.get("format") != FORMAT:
            raise CheckpointError(
                f"checkpoint {path} has format {contents.get('format')}, this version reads "
                f"{FORMAT}; it was written by drrho {contents.get('versions', {}).get('drrho')}"
            )
        differences = [
            f"config {line}"
            for line in config_differences(
                contents["config"], plain(self.config), may_change=may_change
            )
        ]
        differences += _differences(
            _shapes("model", contents["model"]) | _shapes("loss", contents["loss"]),
            _shapes("model", self.model.state_dict())
            | _shapes("loss", self.loss.state_dict() if self.loss is not None else None),
        )
        differences += _differences(
            _group_sizes(contents["optimizer"]), _group_sizes(self.optimizer.state_dict())
        )
        if differences:
            raise CheckpointError(
                f"checkpoint {path} belongs to another run; restore these values to continue it, "
                "or train in another folder:\n  " + "\n  ".join(differences)
            )


def plain(config: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration as JSON would return it: tuples are lists, paths are text.

    Raises:
        TypeError: a value is neither plain data nor a path.
    """
    return json.loads(json.dumps(config, default=os.fspath))


def config_differences(
    saved: Mapping[str, Any], current: Mapping[str, Any], *, may_change: Collection[str] = ()
) -> list[str]:
    """One line for each value in which two plain configurations differ.

    Args:
        may_change: dotted names of values whose difference does not matter.
    """
    return [
        line
        for line in _differences(_flat(saved), _flat(current))
        if line.split(":")[0] not in may_change
    ]


def _flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dictionaries as one, with dotted names."""
    flat: dict[str, Any] = {}
    for name, value in config.items():
        if isinstance(value, Mapping) and value:
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value
    return flat


def _shapes(module: str, state: Mapping[str, Any] | None) -> dict[str, Any]:
    return {
        f"{module}.{name}": f"shape {tuple(value.shape)}"
        for name, value in (state or {}).items()
        if isinstance(value, Tensor)
    }


def _group_sizes(optimizer: Mapping[str, Any]) -> dict[str, Any]:
    return {
        f"optimizer group {index}": f"{len(group['params'])} parameters"
        for index, group in enumerate(optimizer["param_groups"])
    }


def _differences(saved: Mapping[str, Any], current: Mapping[str, Any]) -> list[str]:
    """One line for every name that is missing on a side or differs in value."""
    return [
        f"{name}: {saved.get(name, 'absent')} before, {current.get(name, 'absent')} now"
        for name in {**saved, **current}
        if name not in saved or name not in current or saved[name] != current[name]
    ]


def versions() -> dict[str, str | None]:
    """Of what computes the numbers, to be written beside them; a library that is absent is not."""
    libraries = {name: _installed_version(name) for name in LIBRARIES}
    return {
        "drrho": _installed_version("drrho"),  # None in a source tree that is not installed
        "torch": str(torch.__version__),
        "numpy": np.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        **{name: found for name, found in libraries.items() if found is not None},
    }


def _installed_version(distribution: str) -> str | None:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None
