"""AdamW with the parameter groups that contrastive training uses."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import nn
from torch.optim import AdamW

from drrho.runtime.checks import require_at_least, require_positive
from drrho.training.schedules import Schedule, after_warmup, constant, cooldown, warmup_cosine


@dataclass(frozen=True, kw_only=True)
class CosineDecay:
    """A linear warm-up, then half a cosine to `minimum` at the end of the run.

    Attributes:
        minimum: learning rate at the end.
    """

    kind: ClassVar = "cosine"
    minimum: float = 0.0

    def __post_init__(self) -> None:
        require_at_least(0, minimum=self.minimum)

    def __str__(self) -> str:
        return f"a cosine to {self.minimum:g}"


@dataclass(frozen=True, kw_only=True)
class ConstantRate:
    """A linear warm-up, then the peak to the end of the run."""

    kind: ClassVar = "constant"

    def __str__(self) -> str:
        return "constant"


@dataclass(frozen=True, kw_only=True)
class Cooldown:
    """A linear warm-up, the peak, and a polynomial decay over the last steps of the run.

    Attributes:
        steps: length of the decay, in optimiser steps.
        power: exponent of the decay; 1 is linear.
        minimum: learning rate at the end.
    """

    kind: ClassVar = "cooldown"
    steps: int
    power: float = 1.0
    minimum: float = 0.0

    def __post_init__(self) -> None:
        require_at_least(1, steps=self.steps)
        require_positive(power=self.power)
        require_at_least(0, minimum=self.minimum)

    def __str__(self) -> str:
        return f"constant, in the last {self.steps:,} steps down to {self.minimum:g}"


@dataclass(frozen=True, kw_only=True)
class ThresholdDecay:
    """The peak, and a share of it while the temperature is at most a threshold; no warm-up.

    Attributes:
        threshold: temperature, in units of cosine similarity.
        factor: share of the peak.

    Source: `--lr_tau_scheduler step_thresh` of the published code of FastCLIP.
    """

    kind: ClassVar = "threshold"
    threshold: float = 0.03
    factor: float = 1 / 3

    def __post_init__(self) -> None:
        require_positive(threshold=self.threshold, factor=self.factor)

    def __str__(self) -> str:
        return f"times {self.factor:.3g} while the temperature is at most {self.threshold:g}"


RateDecay = CosineDecay | ConstantRate | Cooldown


@dataclass(frozen=True, kw_only=True)
class Optimizer:
    """AdamW and its learning rate; the defaults are the published settings for CLIP.

    Attributes:
        learning_rate: peak learning rate of the schedule.
        warmup_steps: optimiser steps of linear warm-up.
        schedule: learning rate after the warm-up: `CosineDecay`, `ConstantRate` or `Cooldown`.
        betas: decay rates of AdamW's first and second moments.
        epsilon: constant that AdamW adds to the root of the second moment.
        weight_decay: weight decay of parameters of two or more dimensions; gains, biases and the
            temperature have none.
        temperature_lr_scale: learning rate of the loss's own parameters (temperature, and SigLIP's
            bias) as a share of the model's, for example 0.25; None means the model's.
        temperature_schedule: schedule of the learning rate of the loss's own parameters; None means
            the model's, warm-up included. As published, `ConstantRate` and `ThresholdDecay` have no
            warm-up here.
    """

    learning_rate: float = 5e-4
    warmup_steps: int = 0
    schedule: RateDecay = field(default_factory=CosineDecay)
    betas: tuple[float, float] = (0.9, 0.98)
    epsilon: float = 1e-6
    weight_decay: float = 0.2
    temperature_lr_scale: float | None = None
    temperature_schedule: RateDecay | ThresholdDecay | None = None

    def __post_init__(self) -> None:
        require_positive(
            learning_rate=self.learning_rate,
            epsilon=self.epsilon,
            temperature_lr_scale=self.temperature_lr_scale,
        )
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas must lie in [0, 1), got {self.betas}")
        if not 0 <= self.weight_decay < float("inf"):
            raise ValueError(f"weight_decay must be finite and >= 0, got {self.weight_decay}")
        require_at_least(0, warmup_steps=self.warmup_steps)
        if not isinstance(self.schedule, RateDecay):
            raise TypeError(
                "schedule must be CosineDecay, ConstantRate or Cooldown, got "
                f"{type(self.schedule).__name__}"
            )


def learning_rate_schedule(config: Optimizer, *, steps: int) -> Schedule:
    """The model's learning rate by step, over a run of `steps`.

    Raises:
        ValueError: warm-up and cooldown are longer than the run, or the end of the schedule is
            above its peak.
    """
    return _schedule(config.schedule, config.learning_rate, config.warmup_steps, steps)


def temperature_rate_schedule(
    config: Optimizer, *, steps: int, temperature: Callable[[], float]
) -> Schedule | None:
    """The learning rate of the loss's own parameters by step; None if it follows the model's.

    Args:
        steps: optimiser steps of the whole run.
        temperature: function that returns the present temperature, for `ThresholdDecay`.

    Raises:
        ValueError: as `learning_rate_schedule`.
    """
    decay = config.temperature_schedule
    peak = config.learning_rate * (config.temperature_lr_scale or 1.0)
    match decay:
        case None:
            return None
        case ThresholdDecay():
            low = peak * decay.factor
            return lambda _: low if temperature() <= decay.threshold else peak
        case ConstantRate():
            return constant(peak)
        case _:
            return _schedule(decay, peak, config.warmup_steps, steps)


def _schedule(decay: RateDecay, peak: float, warmup_steps: int, steps: int) -> Schedule:
    if not isinstance(decay, ConstantRate) and decay.minimum > peak:
        raise ValueError(
            f"minimum = {decay.minimum} of a {decay.kind} schedule is above its peak of {peak}"
        )
    match decay:
        case CosineDecay():
            return warmup_cosine(
                peak, warmup_steps=warmup_steps, total_steps=steps, final=decay.minimum
            )
        case ConstantRate():
            after = constant(peak)
        case Cooldown():
            start = steps - warmup_steps - decay.steps
            if start < 0:
                raise ValueError(
                    f"warmup_steps = {warmup_steps} and a cooldown of {decay.steps} steps are "
                    f"longer than the run of {steps} steps"
                )
            after = cooldown(peak, decay.minimum, start=start, steps=decay.steps, power=decay.power)
    return after_warmup(after, peak, warmup_steps=warmup_steps)


def build_optimizer(model: nn.Module, config: Optimizer, *, loss: nn.Module | None = None) -> AdamW:
    """AdamW over the trainable parameters of a model and of its loss.

    Every group has an `lr_scale`; whoever steps the optimiser sets
    `group["lr"] = schedule(step) * group["lr_scale"]`, as `drrho.training.loop` does, which gives
    the group "temperature" a schedule of its own where there is one.

    Args:
        model: module whose frozen parameters (`requires_grad` false) are left out.
        loss: module that holds the loss's learnable temperature, if there is one.

    Raises:
        ValueError: nothing is trainable, or `temperature_lr_scale` or `temperature_schedule` has no
            effect.
    """
    of_model = _trainable(model.parameters())
    of_loss = _trainable(loss.parameters()) if loss is not None else []
    if not of_model and not of_loss:
        raise ValueError("the optimizer got no parameter that requires a gradient")
    for name in ("temperature_lr_scale", "temperature_schedule"):
        value = getattr(config, name)
        if value is not None and not of_loss:
            raise ValueError(
                f"{name} = {value} has no effect: the loss has no learnable temperature; make it "
                "learnable or leave the option out"
            )
    scale = 1.0 if config.temperature_lr_scale is None else config.temperature_lr_scale
    groups = (
        ("decayed", [p for p in of_model if p.ndim >= 2], config.weight_decay, 1.0),
        ("undecayed", [p for p in of_model if p.ndim < 2], 0.0, 1.0),
        ("temperature", of_loss, 0.0, scale),
    )
    names = ("name", "params", "weight_decay", "lr_scale")
    return AdamW(
        [dict(zip(names, group, strict=True)) for group in groups if group[1]],
        lr=config.learning_rate,
        betas=config.betas,
        eps=config.epsilon,
        fused=True,  # one pass over the parameters; three times as fast on a CPU too
    )


def allocate_moments(optimizer: torch.optim.Optimizer) -> None:
    """Allocate the optimiser's state before its first step, to be overwritten by a saved one.

    Takes a step with a learning rate and gradients of 0, which changes no parameter.
    """
    rates = [group["lr"] for group in optimizer.param_groups]
    for group in optimizer.param_groups:
        group["lr"] = 0.0
        for parameter in group["params"]:
            parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = rate


def _trainable(parameters: Iterable[nn.Parameter]) -> list[nn.Parameter]:
    return [parameter for parameter in parameters if parameter.requires_grad]
