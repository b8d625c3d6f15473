"""Losses and gradients that are not finite: found without waiting for the device at every step."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor

from drrho.runtime.errors import NotFiniteError

SHOWN_SAMPLE_IDS = 20


@dataclass(frozen=True, kw_only=True)
class StepRecord:
    """Values of one step (from 0) and its samples; the values `checked` must be finite."""

    step: int
    sample_ids: Int[Tensor, " batch"]
    values: Mapping[str, Float[Tensor, ""]]
    checked: tuple[str, ...]


def raise_if_not_finite(
    records: Sequence[StepRecord], *, last_checkpoint: Callable[[], Path | None]
) -> None:
    """Raise NotFiniteError of the first step with a value that is not finite.

    All records are read in one transfer, so the host does not wait for the device at each step.
    That is done before a checkpoint is written, so that none holds a weight that came after a
    value that is not finite. `last_checkpoint` finds the newest checkpoint, for the message.
    """
    records = [record for record in records if record.checked]
    if not records:
        return
    table = torch.stack(
        [torch.stack([record.values[n].float() for n in record.checked]) for record in records]
    ).tolist()
    for record, row in zip(records, table, strict=True):
        if not all(map(math.isfinite, row)):
            raise NotFiniteError(
                _explanation(record, row, last=last_checkpoint()),
                step=record.step,
                sample_ids=record.sample_ids,
            )


def _explanation(record: StepRecord, row: list[float], *, last: Path | None) -> str:
    values = ", ".join(f"{name} = {v:g}" for name, v in zip(record.checked, row, strict=True))
    ids = record.sample_ids.tolist()
    shown = ", ".join(map(str, ids[:SHOWN_SAMPLE_IDS]))
    more = f" and {len(ids) - SHOWN_SAMPLE_IDS} more" if len(ids) > SHOWN_SAMPLE_IDS else ""
    kept = f"The last checkpoint is kept: {last}" if last else "No checkpoint was saved before it"
    return (
        f"training stopped at step {record.step}: {values}. Samples of the batch: {shown}{more}. "
        f"{kept}. Look at these samples if the loss itself is not finite; otherwise try a lower "
        "learning rate, a longer warm-up, a smaller max_grad_norm, a higher temperature, or "
        "precision='float32'. not_finite='skip' leaves such steps out and counts them."
    )
