"""All that a checkpoint holds: whatever the next step depends on, and what was counted so far."""

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from drrho.runtime.distributed import Processes
from drrho.runtime.errors import CheckpointError
from drrho.runtime.provenance import config_differences, differences, plain, versions
from drrho.training.checkpoint import CheckpointWriter, latest_checkpoint, read_latest_values
from drrho.training.optimizer import allocate_moments

FORMAT = 3
# What is saved beside the tensors.
COUNTED = (
    *("step", "samples_seen", "skipped", "skipped_steps"),
    *("seconds", "metrics", "best"),
)
MOMENTS = "optimizer."  # before the name of a parameter, in that of its moments


@dataclass(kw_only=True)
class TrainingState:
    """A run in progress: its modules, its optimiser and its position.

    Schedules, the order of the samples and what is drawn at random in a step are functions of
    (seed, step), so their position is `step`.

    Attributes:
        folder: the run's folder; its checkpoints are in `folder/checkpoints`.
        model: the module that is trained, as itself: not wrapped in DistributedDataParallel,
            whose parameter names differ. Sharded in place (FSDP2) it may be.
        loss: the module with the loss's per-sample state and learnable temperature; None for a
            loss that remembers nothing.
        optimizer: over the parameters of both.
        config: the whole run's configuration as nested plain data (`dataclasses.asdict`); a
            checkpoint is only restored into the configuration that wrote it.
        seed: of what is drawn in a step (dropout).
        processes: those that train together.
        export: writes the model alone into a folder, a collective; for the best one.
        scaler: of the loss's gradient where the forward pass is in float16.
        step: optimiser steps taken.
        samples_seen: samples that entered a step, of all processes, repetitions counted.
        skipped: reason -> samples that could not be used, likewise.
        skipped_steps: steps that were not taken because a value was not finite.
        seconds: wall time spent in training, all resumed parts together.
        metrics: metrics of the last step; empty if that step is not logged. They are saved so
            that a run killed between a checkpoint and the log line loses neither.
        best: the step and the value of the best evaluation so far, where one is looked for.
    """

    folder: Path
    model: nn.Module
    loss: nn.Module | None
    optimizer: torch.optim.Optimizer
    config: Mapping[str, Any]
    seed: int = 0
    processes: Processes = field(default_factory=Processes)
    export: Callable[[Path], None] | None = None
    scaler: torch.amp.GradScaler | None = None
    step: int = 0
    samples_seen: int = 0
    skipped: Counter[str] = field(default_factory=Counter)
    skipped_steps: int = 0
    seconds: float = 0.0
    metrics: dict[str, float] = field(default_factory=dict)
    best: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._writer = CheckpointWriter(self.checkpoints, self.processes)
        self._own_samples, self._own_skipped = 0, Counter[str]()

    @property
    def checkpoints(self) -> Path:
        """The folder of the checkpoints."""
        return self.folder / "checkpoints"

    def count(self, num_samples: int, skipped: Sequence[tuple[int, str]]) -> None:
        """Counts a step, and of its samples those of this process."""
        self.step += 1
        self._own_samples += num_samples
        self._own_skipped.update(reason for _, reason in skipped)

    def add_up(self) -> None:
        """Adds what the processes counted to the totals; a collective."""
        for num_samples, skipped in self.processes.gather((self._own_samples, self._own_skipped)):
            self.samples_seen += num_samples
            self.skipped.update(skipped)
        self._own_samples, self._own_skipped = 0, Counter[str]()

    def save(self, *, keep: int) -> Path:
        """Begins to write a checkpoint of this moment, of which the newest `keep` stay; a
        collective. Training may go on; `wait_until_saved` returns when it is on the disk.

        Raises:
            TypeError: the config holds something that is not plain data, or a module's state
                something that is no tensor.
            OSError: the checkpoint before could not be written.
        """
        self.add_up()
        # Statistics of BatchNorm differ between processes until the next forward pass.
        self.processes.give_first(self.model.buffers())
        values = {
            "format": FORMAT,
            "versions": versions(),
            "config": plain(self.config),
            "scaler": None if self.scaler is None else self.scaler.state_dict(),
            **{name: getattr(self, name) for name in COUNTED},
        }
        return self._writer.start(self._tensors(), values, step=self.step, keep=keep)

    def wait_until_saved(self) -> None:
        """Raises OSError if the last checkpoint could not be written; those before remain."""
        self._writer.wait()

    def last_checkpoint(self) -> Path | None:
        """The newest one, once it is on the disk; None if there is none."""
        self.wait_until_saved()
        return latest_checkpoint(self.checkpoints)

    def resume(
        self, *, may_change: Collection[str] = (), defaults: Mapping[str, Any] | None = None
    ) -> bool:
        """Continues from the newest readable checkpoint of the folder, if there is one; a
        collective.

        Call it before the batches are opened: they start at `step`.

        Args:
            may_change: dotted names of config values that may differ from the checkpoint's
                because they do not change what is computed, such as "data.workers".
            defaults: of config values, nested as `config`: what a checkpoint meant whose version
                did not know a value yet.

        Returns:
            Whether there was a checkpoint.

        Raises:
            CheckpointError: no checkpoint is readable, or the newest readable one has another
                configuration or other shapes. Nothing has then been changed.
        """
        found = self.processes.on_first(lambda: read_latest_values(self.checkpoints))
        if found is None:
            return False
        # Seconds of import, for a run that goes on.
        from drrho.training.tensor_files import read_into, read_shapes  # noqa: PLC0415

        path, values = found
        _require_format(values, path)
        saved = read_shapes(path)
        differences = [
            f"config {line}"
            for line in config_differences(
                values["config"], plain(self.config), may_change=may_change, defaults=defaults
            )
        ]
        # Before there are moments, which are twice the model and of no use to another run.
        without = {name: shape for name, shape in saved.items() if not name.startswith(MOMENTS)}
        _require_none(differences + self._other_shapes(without), path)
        allocate_moments(self.optimizer)
        _require_none(self._other_shapes(saved), path)
        tensors = self._tensors()
        read_into({name: tensors[name] for name in saved}, path, self.processes)
        self._forget_moments_but(saved)
        if self.scaler is not None:
            self.scaler.load_state_dict(values["scaler"])
        for name in COUNTED:
            setattr(self, name, values[name])
        self.skipped = Counter(self.skipped)
        return True

    def _tensors(self) -> dict[str, Tensor]:
        """Of model, loss and optimiser by name, in the memory they have."""
        tensors: dict[str, Tensor] = {}
        for owner, module in self._owners():
            tensors |= {f"{owner}.{name}": value for name, value in module.state_dict().items()}
        for parameter, name in self._names().items():
            moments = self.optimizer.state.get(parameter, {})
            tensors |= {f"{MOMENTS}{name}.{moment}": value for moment, value in moments.items()}
        if others := [name for name, value in tensors.items() if not isinstance(value, Tensor)]:
            raise TypeError(f"the state {others[0]!r} is no tensor and cannot be saved")
        return tensors

    def _owners(self) -> list[tuple[str, nn.Module]]:
        return [("model", self.model)] + ([] if self.loss is None else [("loss", self.loss)])

    def _names(self) -> dict[nn.Parameter, str]:
        return {
            parameter: f"{owner}.{name}"
            for owner, module in self._owners()
            for name, parameter in module.named_parameters()
        }

    def _forget_moments_but(self, saved: Collection[str]) -> None:
        """Parameters that had no gradient yet have no moments in a checkpoint either."""
        for parameter, name in self._names().items():
            moments = self.optimizer.state.get(parameter, {})
            if not any(f"{MOMENTS}{name}.{moment}" in saved for moment in moments):
                self.optimizer.state.pop(parameter, None)

    def _other_shapes(self, saved: Mapping[str, torch.Size]) -> list[str]:
        """Tensors that differ from the saved ones; moments that were not saved may be here."""
        current = {
            name: value.shape
            for name, value in self._tensors().items()
            if name in saved or not name.startswith(MOMENTS)
        }
        return differences(_described(saved), _described(current))


def _require_format(values: Mapping[str, Any], path: Path) -> None:
    if values.get("format") != FORMAT:
        raise CheckpointError(
            f"checkpoint {path} has format {values.get('format')}, this version reads "
            f"{FORMAT}; it was written by drrho {values.get('versions', {}).get('drrho')}"
        )


def _require_none(differences: list[str], path: Path) -> None:
    if differences:
        raise CheckpointError(
            f"checkpoint {path} belongs to another run; restore these values to continue it, "
            "or train in another folder:\n  " + "\n  ".join(differences)
        )


def _described(shapes: Mapping[str, torch.Size]) -> dict[str, Any]:
    return {name: f"shape {tuple(shape)}" for name, shape in shapes.items()}
