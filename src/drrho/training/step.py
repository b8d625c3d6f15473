"""One optimiser step of any objective, and the interface an objective has to the loop."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from drrho.training.config import TrainingConfig
from drrho.training.finite import StepRecord
from drrho.training.schedules import Schedule
from drrho.training.state import TrainingState

SameBatch = TypeVar("SameBatch", bound="Batch")


@runtime_checkable
class Batch(Protocol):
    """What training itself reads of a batch; the rest is the objective's."""

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
    """What an objective returns.

    Attributes:
        loss: scalar with a gradient, computed in float32.
        num_samples: samples that entered it.
        metrics: name -> scalar, read only where the step is logged; a tensor may stay on its
            device.
    """

    loss: Float[Tensor, ""]
    num_samples: int
    metrics: Mapping[str, Tensor | float]


AnyBatch = TypeVar("AnyBatch", bound=Batch, contravariant=True)


@runtime_checkable
class Objective(Protocol[AnyBatch]):
    """The forward pass and the loss of one batch.

    Called once per optimiser step, with the batch on the model's device, under autocast where the
    precision is bfloat16: the loss converts what it is given to float32. `step` counts the steps
    already taken, for schedules that belong to the loss. `diagnose` says that this step is
    logged; costly metrics are computed only then.
    """

    def __call__(self, batch: AnyBatch, *, step: int, diagnose: bool) -> StepResult: ...


def take_step(
    objective: Objective[AnyBatch],
    batch: AnyBatch,
    *,
    state: TrainingState,
    config: TrainingConfig,
    learning_rate: Schedule,
    diagnose: bool,
) -> tuple[StepResult, StepRecord]:
    """Forward, backward, clip, update; then `state` counts the step and its samples.

    Nothing here waits for the device: the values of the record are still on it.

    Returns:
        The objective's result, and the record of what has to be finite: the loss, the 2-norm of
        the model's gradient (before clipping) and that of the loss's own trainable parameters,
        if it has any.
    """
    device = next(state.model.parameters()).device
    for group in state.optimizer.param_groups:
        group["lr"] = learning_rate(state.step) * group["lr_scale"]
    state.optimizer.zero_grad(set_to_none=True)
    with torch.autocast(device.type, dtype=torch.bfloat16, enabled=config.precision == "bfloat16"):
        result = objective(batch.to(device), step=state.step, diagnose=diagnose)
    result.loss.backward()

    loss = result.loss.detach()
    norm = _gradient_norm(state.model.parameters()).to(loss.device)
    values = {"loss": loss, "gradient_norm": norm}
    of_loss = [] if state.loss is None else [p for p in state.loss.parameters() if p.requires_grad]
    if of_loss:
        values["temperature_gradient_norm"] = _gradient_norm(of_loss).to(loss.device)
    if config.max_grad_norm is not None:
        clip_grads_with_norm_(state.model.parameters(), config.max_grad_norm, norm)
    state.optimizer.step()

    record = StepRecord(step=state.step, sample_ids=batch.sample_ids, values=values)
    state.step += 1
    state.samples_seen += result.num_samples
    state.skipped.update(reason for _, reason in batch.skipped)
    return result, record


def _gradient_norm(parameters: Iterable[nn.Parameter]) -> Float[Tensor, ""]:
    gradients = [p.grad for p in parameters if p.grad is not None]
    return get_total_norm(gradients)
