"""How long to train and what to do along the way."""

from dataclasses import dataclass, field, replace
from typing import Literal

import torch

from drrho.runtime.checks import require_at_least, require_positive
from drrho.runtime.records import OPTIONAL
from drrho.training.averaging import EMA
from drrho.training.optimizer import (
    Optimizer,
    learning_rate_schedule,
    temperature_rate_schedule,
)
from drrho.training.tracking.tracker import TENSORBOARD, require_tracker_name

Precision = Literal["float32", "bfloat16", "float16"]
NotFinite = Literal["stop", "skip"]
BFLOAT16 = ("avx512_bf16", "amx_tile")  # instructions of processors


@dataclass(frozen=True, kw_only=True)
class Training:
    """Length of a run, optimiser, precision, logging and checkpoints.

    Attributes:
        steps: optimiser steps of the whole run; None takes them from `epochs`.
        epochs: passes over the training data, the other way to give the length, rounded to steps.
            Where both are given they must agree.
        optimizer: settings of AdamW and its learning rate.
        precision: floating-point type of the forward pass, bf16 for short; parameters, their
            gradients and the optimiser are float32 in all cases, and the loss is expected to
            compute in float32 by itself. In float16 the loss's gradient is scaled, and steps whose
            gradients overflow are skipped.
        max_grad_norm: largest 2-norm of the model's gradient, which is scaled down when it exceeds
            it; None does not clip. The temperature's gradient is in units of its own: it neither
            counts towards the norm nor is it scaled.
        not_finite: reaction to a loss or gradient that is nan or infinite: "stop" ends the run,
            with the last checkpoint kept; "skip" leaves such a step out and counts it, at the price
            of waiting for the device in every step.
        log_every: steps between rows of metrics; the last step is logged too.
        checkpoint_every: steps between checkpoints; the last step is saved too.
        keep_checkpoints: number of newest checkpoints that are kept.
        keep_best: metric of the evaluations, such as "evaluation/mrr", whose highest value so far
            marks a model to keep; None keeps only the last.
        trackers: places that get the metrics besides `metrics.jsonl`: "tensorboard", events in the
            folder of the run; "wandb:PROJECT"; "trackio:PROJECT"; "python:FILE.py", whose
            `build()` returns a `Tracker`.
        evaluate_every: steps between evaluations; None evaluates at the end only.
        ema: exponential moving average of the weights, evaluated and saved beside them; None keeps
            none.
    """

    steps: int | None = None
    epochs: float | None = None
    optimizer: Optimizer = field(default_factory=Optimizer)
    precision: Precision = "float32"
    max_grad_norm: float | None = None
    not_finite: NotFinite = "stop"
    log_every: int = 50
    checkpoint_every: int = 1000
    keep_checkpoints: int = 2
    keep_best: str | None = None
    trackers: tuple[str, ...] = field(default=(TENSORBOARD,), metadata=OPTIONAL)
    evaluate_every: int | None = None
    ema: EMA | None = field(default=None, metadata=OPTIONAL)

    def __post_init__(self) -> None:
        if self.steps is None and self.epochs is None:
            raise ValueError("a run needs its length: give steps or epochs")
        require_positive(epochs=self.epochs)
        require_at_least(
            1,
            steps=self.steps,
            keep_checkpoints=self.keep_checkpoints,
            log_every=self.log_every,
            checkpoint_every=self.checkpoint_every,
            evaluate_every=self.evaluate_every,
        )
        require_positive(max_grad_norm=self.max_grad_norm)
        for name in self.trackers:
            require_tracker_name(name)
        if self.steps is None:
            return
        rest = self.optimizer.moment_warmup_steps
        if rest >= self.steps:
            raise ValueError(
                f"optimizer.moment_warmup_steps = {rest} leaves no step that moves the model in a "
                f"run of steps = {self.steps}"
            )
        if self.optimizer.warmup_steps > self.steps - rest:
            after = f" after optimizer.moment_warmup_steps = {rest}" if rest else ""
            raise ValueError(
                f"optimizer.warmup_steps = {self.optimizer.warmup_steps} is longer than the run "
                f"of steps = {self.steps}{after}"
            )
        # They raise ValueError where they do not fit the run.
        learning_rate_schedule(self.optimizer, steps=self.steps)
        temperature_rate_schedule(self.optimizer, steps=self.steps, temperature=float)

    @property
    def num_steps(self) -> int:
        """Optimiser steps of the whole run; ValueError if only `epochs` are given yet."""
        if self.steps is None:
            raise ValueError(f"epochs = {self.epochs} are a number of steps once data are given")
        return self.steps

    def with_steps(self, *, steps_per_epoch: int) -> "Training":
        """Fill in `steps` from `epochs`; ValueError if both are given and do not agree."""
        if self.epochs is None:
            return self
        steps = max(1, round(self.epochs * steps_per_epoch))
        if self.steps not in (None, steps):
            raise ValueError(
                f"training.steps = {self.steps} and training.epochs = {self.epochs:g} differ: so "
                f"many passes over these data are {steps} steps; leave one of them out"
            )
        return replace(self, steps=steps)


def fastest_precision(device: torch.device) -> Precision:
    """Choose bfloat16 where the device has instructions for it, and float32 elsewhere."""
    if device.type == "cuda":
        has_bfloat16 = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        # Private functions of torch, which later versions may lack.
        asked = (getattr(torch.cpu, f"_is_{name}_supported", None) for name in BFLOAT16)
        has_bfloat16 = device.type == "cpu" and any(ask() for ask in asked if ask is not None)
    return "bfloat16" if has_bfloat16 else "float32"


def require_precision(precision: Precision, device: torch.device) -> None:
    """Raise ValueError if the device does not compute in this precision."""
    supported = precision == "float32" or device.type in ("cpu", "cuda")
    if device.type == "cuda" and precision == "bfloat16":
        supported = torch.cuda.is_bf16_supported(including_emulation=False)
    if not supported:
        raise ValueError(
            f"precision = {precision!r} is not supported on {device}; use precision = 'float32'"
        )
