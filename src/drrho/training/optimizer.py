"""AdamW with the parameter groups that contrastive training uses."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import ClassVar, NamedTuple

import torch
from torch import nn
from torch.optim import AdamW

from drrho.runtime.checks import require_at_least, require_positive
from drrho.runtime.records import OPTIONAL
from drrho.training.schedules import (
    Schedule,
    after_rest,
    after_warmup,
    constant,
    cooldown,
    warmup_cosine,
)


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


TEMPERATURE = "temperature"  # the group of the loss's own parameters
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
        image_lr_scale: learning rate of the image tower as a share of `learning_rate`; None is 1.
        text_lr_scale: learning rate of the text tower as a share of `learning_rate`; None is 1.
        layer_decay: factor of the learning rate from a layer to the one before it, in each tower:
            the last group of a tower (its projection) has the rate of the tower, the one before it
            `layer_decay` times that, and so on to the embeddings. None is the same rate in all.
        moment_warmup_steps: first steps of the run, which change no weight and no temperature but
            collect AdamW's moments and the averages of the samples, so that a pretrained model does
            not start with a cold optimiser. They count towards the length of the run; the warm-up
            of the learning rate follows them.

    Source: `moment_warmup_steps` is the first stage of TuneCLIP (Mehta et al., "Breaking the limits
        of open-weight CLIP", 2026, arXiv 2601.09859), the recovery of the optimiser's statistics;
        its second stage, a loss with a margin, is not here.
    """

    learning_rate: float = 5e-4
    warmup_steps: int = 0
    schedule: RateDecay = field(default_factory=CosineDecay)
    betas: tuple[float, float] = (0.9, 0.98)
    epsilon: float = 1e-6
    weight_decay: float = 0.2
    temperature_lr_scale: float | None = None
    temperature_schedule: RateDecay | ThresholdDecay | None = None
    image_lr_scale: float | None = field(default=None, metadata=OPTIONAL)
    text_lr_scale: float | None = field(default=None, metadata=OPTIONAL)
    layer_decay: float | None = field(default=None, metadata=OPTIONAL)
    moment_warmup_steps: int = field(default=0, metadata=OPTIONAL)

    def __post_init__(self) -> None:
        require_positive(
            learning_rate=self.learning_rate,
            epsilon=self.epsilon,
            temperature_lr_scale=self.temperature_lr_scale,
            image_lr_scale=self.image_lr_scale,
            text_lr_scale=self.text_lr_scale,
        )
        if self.layer_decay is not None and not 0 < self.layer_decay < 1:
            raise ValueError(
                f"layer_decay must be in (0, 1), got {self.layer_decay}; None is no decay"
            )
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas must be in [0, 1), got {self.betas}")
        if not 0 <= self.weight_decay < float("inf"):
            raise ValueError(f"weight_decay must be finite and >= 0, got {self.weight_decay}")
        require_at_least(
            0, warmup_steps=self.warmup_steps, moment_warmup_steps=self.moment_warmup_steps
        )
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
    schedule = _schedule(
        config.schedule,
        config.learning_rate,
        config.warmup_steps,
        steps - config.moment_warmup_steps,
    )
    return after_rest(schedule, steps=config.moment_warmup_steps)


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
    decay, rest = config.temperature_schedule, config.moment_warmup_steps
    peak = config.learning_rate * (config.temperature_lr_scale or 1.0)
    match decay:
        case None:
            return None
        case ThresholdDecay():
            schedule = _below_threshold(decay, peak, temperature)
        case ConstantRate():
            schedule = constant(peak)
        case _:
            schedule = _schedule(decay, peak, config.warmup_steps, steps - rest)
    return after_rest(schedule, steps=rest)


def _below_threshold(
    decay: ThresholdDecay, peak: float, temperature: Callable[[], float]
) -> Schedule:
    low = peak * decay.factor
    return lambda _: low if temperature() <= decay.threshold else peak


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


class RateGroup(NamedTuple):
    """Parameters with a learning rate of their own.

    Attributes:
        name: name in the log, such as "image" or "text/03".
        scale: learning rate as a share of the model's.
    """

    name: str
    scale: float


def build_optimizer(
    model: nn.Module,
    config: Optimizer,
    *,
    loss: nn.Module | None = None,
    rates: Mapping[str, RateGroup] | None = None,
) -> AdamW:
    """AdamW over the trainable parameters of a model and of its loss.

    Every group has an `lr_scale`; whoever steps the optimiser sets
    `group["lr"] = schedule(step) * group["lr_scale"]`, as `drrho.training.loop` does, which gives
    the group "temperature" a schedule of its own where there is one.

    Args:
        model: module whose frozen parameters (`requires_grad` false) are left out.
        loss: module that holds the loss's learnable temperature, if there is one.
        rates: group of each of the model's parameters, by name; None is one rate for all.

    Raises:
        ValueError: nothing is trainable, or `temperature_lr_scale` or `temperature_schedule` has no
            effect.
    """
    of_loss = [] if loss is None else [p for p in loss.parameters() if p.requires_grad]
    groups = list(_groups_of_model(model, rates or {}, weight_decay=config.weight_decay))
    if not groups and not of_loss:
        raise ValueError("the optimizer got no parameter that requires a gradient")
    for name in ("temperature_lr_scale", "temperature_schedule"):
        value = getattr(config, name)
        if value is not None and not of_loss:
            raise ValueError(
                f"{name} = {value} has no effect: the loss has no learnable temperature; make it "
                "learnable or leave the option out"
            )
    scale = 1.0 if config.temperature_lr_scale is None else config.temperature_lr_scale
    if of_loss:
        groups.append(
            {"name": TEMPERATURE, "params": of_loss, "weight_decay": 0.0, "lr_scale": scale}
        )
    return AdamW(
        groups,
        lr=config.learning_rate,
        betas=config.betas,
        eps=config.epsilon,
        fused=True,  # one pass over the parameters; three times as fast on a CPU too
    )


def _groups_of_model(
    model: nn.Module, rates: Mapping[str, RateGroup], *, weight_decay: float
) -> Iterator[dict]:
    """Group the trainable parameters by their rate, and in it by whether they are decayed."""
    trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    of_name = {name: rates.get(name, RateGroup("", 1.0)) for name, _ in trained}
    for rate in dict.fromkeys(of_name.values()):
        own = [p for name, p in trained if of_name[name] == rate]
        for kind, params, decay in (
            ("decayed", [p for p in own if p.ndim >= 2], weight_decay),
            ("undecayed", [p for p in own if p.ndim < 2], 0.0),
        ):
            if params:
                yield {
                    "name": f"{rate.name}.{kind}" if rate.name else kind,
                    "params": params,
                    "weight_decay": decay,
                    "lr_scale": rate.scale,
                }


def logged_rates(optimizer: torch.optim.Optimizer) -> dict[str, float]:
    """Collect the present learning rates of groups that have one of their own, by their names."""
    rates = {}
    for group in optimizer.param_groups:
        rate, _, kind = group.get("name", "").rpartition(".")
        if rate or kind == TEMPERATURE:
            rates[f"learning_rate/{rate or kind}"] = float(group["lr"])
    return rates


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
