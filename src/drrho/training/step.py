"""One optimiser step of any objective, and the interface an objective has to the loop."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from drrho.runtime.randomness import derived_seed, seed_all_generators
from drrho.training.averaging import update_average
from drrho.training.config import Training
from drrho.training.finite import StepRecord
from drrho.training.optimizer import TEMPERATURE
from drrho.training.schedules import Schedule
from drrho.training.state import TrainingState

AUTOCAST_TYPES = {"float32": None, "bfloat16": torch.bfloat16, "float16": torch.float16}
SameBatch = TypeVar("SameBatch", bound="Batch")


@runtime_checkable
class Batch(Protocol):
    """The part of a batch that training itself reads; the rest is the objective's."""

    @property
    def sample_ids(self) -> Int[Tensor, " batch"]:
        """The data set's ids of the samples, in host memory."""
        ...

    @property
    def skipped(self) -> Sequence[tuple[int, str]]:
        """Samples that belong to this batch but could not be used: id and reason."""
        ...

    def to(self: SameBatch, device: torch.device, /) -> SameBatch: ...


@dataclass(frozen=True, kw_only=True)
class StepResult:
    """Result of an objective on one batch.

    Attributes:
        loss: scalar with a gradient, computed in float32.
        num_samples: number of samples of this process that entered the loss.
        metrics: name -> scalar on any device, read only where the step is logged.
    """

    loss: Float[Tensor, ""]
    num_samples: int
    metrics: Mapping[str, Tensor | float]


AnyBatch = TypeVar("AnyBatch", bound=Batch, contravariant=True)


@runtime_checkable
class Objective(Protocol[AnyBatch]):
    """Forward pass and loss of one batch, called once per optimiser step.

    Each process gets its share of the batch on the model's device, and all return the same loss.
    Under autocast, where the precision is not float32, the loss converts its inputs to float32.
    `step` counts the steps already taken. With `diagnose` the step is logged, and costly metrics
    are computed.
    """

    def __call__(self, batch: AnyBatch, *, step: int, diagnose: bool) -> StepResult: ...


def take_step(
    objective: Objective[AnyBatch],
    batch: AnyBatch,
    *,
    state: TrainingState,
    config: Training,
    learning_rate: Schedule,
    diagnose: bool,
) -> tuple[StepResult, StepRecord]:
    """Take one optimiser step: forward, backward, clip, update; then `state` counts it.

    The record's values stay on the device, and nothing waits for it, unless steps that are not
    finite are to be skipped or the temperature's learning rate depends on it (`ThresholdDecay`).

    Returns:
        The objective's result, and the record of what has to be finite: the loss, the 2-norm of
        the model's gradient (before clipping) and the gradient of the loss's own parameters. In
        float16 only the loss: gradients may overflow, and the scaler then skips the step.
    """
    device = next(state.model.parameters()).device
    for group in state.optimizer.param_groups:
        group["lr"] = learning_rate(state.step) * group["lr_scale"]
        if state.temperature_rate is not None and group["name"] == TEMPERATURE:
            group["lr"] = state.temperature_rate(state.step)
    state.optimizer.zero_grad(set_to_none=True)
    seed_all_generators(derived_seed("step", state.seed, state.step, state.processes.rank))
    dtype = AUTOCAST_TYPES[config.precision]
    with torch.autocast(device.type, dtype=dtype, enabled=dtype is not None):
        result = objective(batch.to(device), step=state.step, diagnose=diagnose)
    values = _backward(result.loss, state)
    if config.max_grad_norm is not None:
        norm = values["gradient_norm"]
        clip_grads_with_norm_(state.model.parameters(), config.max_grad_norm, norm)
    if state.scaler is not None:
        state.scaler.step(state.optimizer)
        state.scaler.update()
    elif config.not_finite == "stop" or all(value.isfinite() for value in values.values()):
        state.optimizer.step()
    else:
        state.skipped_steps += 1
    if state.average is not None:
        update_average(state.average, state.model)
    checked = tuple(values) if state.scaler is None else ("loss",)
    record = StepRecord(
        step=state.step,
        sample_ids=batch.sample_ids,
        values=values,
        checked=checked if config.not_finite == "stop" else (),
    )
    state.count(result.num_samples, batch.skipped)
    return result, record


def _backward(loss: Float[Tensor, ""], state: TrainingState) -> dict[str, Float[Tensor, ""]]:
    """Compute gradients, and return the values that must be finite."""
    if state.scaler is None:
        loss.backward()
    else:
        state.scaler.scale(loss).backward()
        state.scaler.unscale_(state.optimizer)
    loss = loss.detach()
    norm = _gradient_norm(state.model.parameters()).to(loss.device)
    values = {"loss": loss, "gradient_norm": norm}
    of_loss = [] if state.loss is None else [p for p in state.loss.parameters() if p.requires_grad]
    if of_loss:
        values["temperature_gradient_norm"] = _gradient_norm(of_loss).to(loss.device)
    return values


def _gradient_norm(parameters: Iterable[nn.Parameter]) -> Float[Tensor, ""]:
    gradients = [p.grad for p in parameters if p.grad is not None]
    norm = get_total_norm(gradients)
    if type(norm) is Tensor:
        return norm
    # Takes a second to import.
    from torch.distributed.tensor import DTensor  # noqa: PLC0415

    assert isinstance(norm, DTensor), type(norm)
    return norm.full_tensor()
