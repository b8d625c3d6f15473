"""What encoding and training take for a pair, measured on a few pairs of the data."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from drrho.data.batch import Batch
from drrho.data.loading import Loading, Position, Tokenizer, Transform, training_batches
from drrho.data.manifest import Manifest
from drrho.encoding.encoder import DTYPES, EmbeddingModel, Precision
from drrho.models.two_tower import TwoTower

MEASURED = 16  # pairs


@dataclass(frozen=True, kw_only=True)
class Rates:
    """Seconds for a pair on this machine.

    Attributes:
        reference: reading, decoding and encoding by the reference.
        target: the same by the target.
        step: a training step of the target, reading included.
    """

    reference: float
    target: float
    step: float


def measure(
    reference: EmbeddingModel, target: TwoTower, manifest: Manifest, *, precision: Precision
) -> Rates:
    """Time both models on some pairs of the data set; the target's weights stay as they are."""
    encoder = EmbeddingModel(target, device=reference.device)
    target.module.to(reference.device)
    size = min(MEASURED, len(manifest.usable_ids()))
    seconds = {}
    for name, model in (("reference", reference), ("target", encoder)):
        batch, reading = _read(model.transform, model.tokenizer, manifest, size)
        batch = batch.to(reference.device)
        seconds[name] = reading + _time(lambda m=model, b=batch: _encode(m, b), size)
    batch, reading = _read(target.train_transform, target.tokenizer, manifest, size)
    batch = batch.to(reference.device)
    step = _time(lambda: _step(target, batch, reference.device, precision), size)
    return Rates(**seconds, step=reading + step)


def _read(
    transform: Transform, tokenizer: Tokenizer, manifest: Manifest, size: int
) -> tuple[Batch, float]:
    """Read a batch, and return the seconds of a pair; the one before it opens the files."""
    batches = training_batches(
        manifest,
        transform,
        tokenizer=tokenizer,
        config=Loading(batch_size=size),
        position=Position(seed=0),
    )
    next(batches)
    began = time.monotonic()
    return next(batches), (time.monotonic() - began) / size


def _time(work: Callable[[], None], size: int) -> float:
    """Return the seconds of a pair; the first call warms up."""
    work()
    began = time.monotonic()
    work()
    return (time.monotonic() - began) / size


def _encode(encoder: EmbeddingModel, batch: Batch) -> None:
    encoder.encode_pixels(batch.images)
    encoder.encode_tokens(batch.tokens)


def _step(target: TwoTower, batch: Batch, device: torch.device, precision: Precision) -> None:
    module: Any = target.module
    # In evaluation mode: a step in training would move the statistics of BatchNorm.
    module.eval()
    with torch.autocast(device.type, DTYPES[precision], enabled=precision != "float32"):
        image = module.encode_image(batch.images, normalize=True)
        text = module.encode_text(batch.tokens, normalize=True)
    (image.float() @ text.float().T).sum().backward()
    module.zero_grad(set_to_none=True)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
