"""State of a run that a checkpoint holds: all that the next step depends on, and counts."""

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from drrho.runtime.checks import require_at_least
from drrho.runtime.distributed import Processes
from drrho.runtime.errors import CheckpointError
from drrho.runtime.provenance import config_differences, differences, plain, versions
from drrho.runtime.records import from_json
from drrho.training.checkpoint import (
    CheckpointWriter,
    describe_tensor,
    latest_checkpoint,
    read_latest_values,
    why_not_readable,
)
from drrho.training.optimizer import allocate_moments
from drrho.training.schedules import Schedule
from drrho.training.tracking.tracker import Tracker

FORMAT = 3
MOMENTS = "optimizer."  # prefix of the names of a parameter's moments


# Attributes that are saved beside the tensors.
COUNTED = ("step", "samples_seen", "skipped", "skipped_steps", "seconds", "metrics", "best")


@dataclass(frozen=True, kw_only=True)
class _Saved:
    """Values of a checkpoint, as `TrainingState.save` writes them."""

    format: int
    versions: Mapping[str, str | None]
    config: Mapping[str, Any]
    scaler: Mapping[str, float] | None
    step: int
    samples_seen: int
    skipped: Mapping[str, int]
    skipped_steps: int
    seconds: float
    metrics: Mapping[str, float]
    best: Mapping[str, float]

    def __post_init__(self) -> None:
        require_at_least(
            0,
            step=self.step,
            samples_seen=self.samples_seen,
            skipped_steps=self.skipped_steps,
            seconds=self.seconds,
            **{f"skipped.{reason}": count for reason, count in self.skipped.items()},
        )


@dataclass(kw_only=True)
class TrainingState:
    """A run in progress: its modules, its optimiser and its position.

    Attributes:
        folder: folder of the run; its checkpoints are in `folder/checkpoints`.
        model: module that is trained, not wrapped in DistributedDataParallel, which changes
            parameter names; it may be sharded in place (FSDP2).
        loss: module with the loss's per-sample state and learnable temperature; None for a
            loss that remembers nothing.
        optimizer: optimiser of the parameters of model and loss.
        config: configuration of the whole run as nested plain data; a checkpoint is only restored
            into the configuration that wrote it.
        seed: random seed of what a step draws (dropout).
        export: collective that writes the model alone into a folder, for the best model.
        scaler: scaler of the loss's gradient where the forward pass is in float16.
        average: moving average of the model's weights; None has none.
        temperature_rate: learning rate of the optimiser's group "temperature" by step; None
            means the model's, times the group's `lr_scale`. Like `export` it is no state.
        until: step to save a checkpoint and stop after, as an interruption would; None trains to
            the end of the run. It is no state either.
        trackers: trackers beside those that the run's configuration names; no state either.
        samples_seen: samples that entered a step, of all processes, repetitions counted.
        skipped: reason -> samples of all processes that could not be used, repetitions counted.
        skipped_steps: number of steps that were skipped because a value was not finite.
        seconds: wall time spent in training, of all resumed parts.
        metrics: metrics of the last step, if it is logged; a run that is killed between its
            checkpoint and its log line logs them when it is resumed.
        best: step and value of the best evaluation so far, with `keep_best`.
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
    average: AveragedModel | None = None
    temperature_rate: Schedule | None = None
    until: int | None = None
    trackers: Sequence[Tracker] = ()
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
        """Folder of the checkpoints."""
        return self.folder / "checkpoints"

    def count(self, num_samples: int, skipped: Sequence[tuple[int, str]]) -> None:
        """Count a step, and the samples that this process used and skipped in it."""
        self.step += 1
        self._own_samples += num_samples
        self._own_skipped.update(reason for _, reason in skipped)

    def add_up(self) -> None:
        """Add the counts of all processes to the totals; a collective."""
        for num_samples, skipped in self.processes.all_gather_object(
            (self._own_samples, self._own_skipped)
        ):
            self.samples_seen += num_samples
            self.skipped.update(skipped)
        self._own_samples, self._own_skipped = 0, Counter[str]()

    def save(self, *, keep: int) -> Path:
        """Start to write a checkpoint, and keep the newest `keep`; a collective.

        Training may continue; `wait_until_saved` returns when it is on the disk.

        Raises:
            TypeError: the config is not plain data, or a module's state holds a non-tensor.
            OSError: an earlier checkpoint could not be written.
        """
        self.add_up()
        # Statistics of BatchNorm differ between processes until the next forward pass.
        self.processes.broadcast(self.model.buffers())
        if self.average is not None:
            self.processes.broadcast(self.average.module.buffers())
        values = {
            "format": FORMAT,
            "versions": versions(),
            "config": plain(self.config),
            "scaler": None if self.scaler is None else self.scaler.state_dict(),
            **{name: getattr(self, name) for name in COUNTED},
        }
        return self._writer.start(self._tensors(), values, step=self.step, keep=keep)

    def require_saveable(self) -> None:
        """Check before the first step that a checkpoint could be written, and read again.

        Raises:
            TypeError: the config is not plain data, or the state holds a non-tensor.
            ValueError: a tensor could not be read back.
        """
        plain(self.config)
        for name, tensor in self._tensors().items():
            if (reason := why_not_readable(tensor)) is not None:
                raise ValueError(
                    f"{name} {reason}, which a checkpoint cannot hold; register it with "
                    "persistent=False, or store it as float32 or int64"
                )

    def wait_until_saved(self) -> None:
        """Wait for the last checkpoint; raises OSError if it could not be written."""
        self._writer.wait()

    def last_checkpoint(self) -> Path | None:
        """Find the newest checkpoint, once it is on the disk; None if there is none."""
        self.wait_until_saved()
        return latest_checkpoint(self.checkpoints)

    def resume(
        self,
        *,
        may_change: Collection[str] = (),
        upgrade: Callable[[Mapping[str, Any]], Mapping[str, Any]] = dict,
    ) -> bool:
        """Continue from the newest readable checkpoint, and return whether there is one.

        A collective, called before the batches are opened: they start at `step`.

        Args:
            may_change: dotted names of config values that may differ from the checkpoint's.
            upgrade: brings a configuration that an earlier version wrote into today's form.

        Raises:
            CheckpointError: no checkpoint is readable, or the newest readable one has another
                configuration or other shapes. Nothing has then been changed.
        """
        found = self.processes.on_first(lambda: read_latest_values(self.checkpoints))
        if found is None:
            return False
        # Takes seconds to import, and only a resumed run needs it.
        from drrho.training.tensor_files import describe_tensors, read_into  # noqa: PLC0415

        path, values = found
        _require_format(values, path)
        try:
            read: _Saved = from_json(_Saved, values, where=str(path))
            config = upgrade(read.config)
        except ValueError as error:
            raise CheckpointError(f"checkpoint {path} cannot be read: {error}") from error
        saved = describe_tensors(path)
        differences = [
            f"config {line}"
            for line in config_differences(config, plain(self.config), may_change=may_change)
        ]
        # Checked before moments are allocated: they take twice the memory of the model.
        without = {name: kind for name, kind in saved.items() if not name.startswith(MOMENTS)}
        _require_none(differences + self._other_tensors(without), path)
        allocate_moments(self.optimizer)
        _require_none(self._other_tensors(saved), path)
        tensors = self._tensors()
        read_into({name: tensors[name] for name in saved}, path, self.processes)
        self._drop_moments_except(saved)
        if self.scaler is not None and read.scaler is not None:
            self.scaler.load_state_dict(dict(read.scaler))
        for name in COUNTED:
            setattr(self, name, getattr(read, name))
        self.skipped = Counter(self.skipped)
        return True

    def _tensors(self) -> dict[str, Tensor]:
        """Collect the tensors of model, loss and optimiser by name, not copied."""
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
        owners = {"model": self.model, "loss": self.loss, "ema": self.average}
        return [(name, module) for name, module in owners.items() if module is not None]

    def _names(self) -> dict[nn.Parameter, str]:
        return {
            parameter: f"{owner}.{name}"
            for owner, module in self._owners()
            for name, parameter in module.named_parameters()
        }

    def _drop_moments_except(self, saved: Collection[str]) -> None:
        """Drop the moments of parameters that had no gradient before the checkpoint."""
        for parameter, name in self._names().items():
            moments = self.optimizer.state.get(parameter, {})
            if not any(f"{MOMENTS}{name}.{moment}" in saved for moment in moments):
                self.optimizer.state.pop(parameter, None)

    def _other_tensors(self, saved: Mapping[str, str]) -> list[str]:
        """Describe tensors that differ from the saved ones; unsaved moments may exist."""
        current = {
            name: describe_tensor(value.shape, value.dtype)
            for name, value in self._tensors().items()
            if name in saved or not name.startswith(MOMENTS)
        }
        return differences(saved, current)


def _require_format(values: Mapping[str, Any], path: Path) -> None:
    if values.get("format") != FORMAT:
        found = values.get("versions")
        written_by = found.get("drrho") if isinstance(found, Mapping) else "of some version"
        raise CheckpointError(
            f"checkpoint {path} has format {values.get('format')}, this version reads "
            f"{FORMAT}; it was written by drrho {written_by}"
        )


def _require_none(differences: list[str], path: Path) -> None:
    if differences:
        raise CheckpointError(
            f"checkpoint {path} belongs to another run; restore these values to continue it, "
            "or train in another folder:\n  " + "\n  ".join(differences)
        )
