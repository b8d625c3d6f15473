"""Batches of decoded samples with their sample ids, as the loaders return them."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float32, Int64, Shaped, UInt8
from torch import Tensor

from drrho.data.caching.transforms import Normalization


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Image-caption pairs to train on.

    Attributes:
        images: output of the training transform; or pixels of 8 bits, which take a quarter of the
            memory and which `to` converts to that output.
        tokens: token ids of the captions.
        skipped: id and reason of each sample that belongs to this batch but could not be
            decoded; the batch is that much smaller.
        views: which view of its sample each pair is; None where there are no views.
        normalization: what makes the transform's output of pixels of 8 bits; None where `images`
            are that.
    """

    sample_ids: Int64[Tensor, " batch"]
    images: (
        Float32[Tensor, "batch channels height width"]
        | UInt8[Tensor, "batch channels height width"]
    )
    tokens: Int64[Tensor, "batch length"]
    skipped: tuple[tuple[int, str], ...]
    views: Int64[Tensor, " batch"] | None = None
    normalization: Normalization | None = None

    def to(self, device: torch.device | str) -> "Batch":
        """Move the batch to a device, and normalise its images there.

        The copy from pinned memory does not block.
        """
        moved = self._map(lambda tensor: tensor.to(device, non_blocking=True))
        if self.normalization is None:
            return moved
        return replace(moved, images=self.normalization(moved.images), normalization=None)

    def pin_memory(self) -> "Batch":
        """Copy the batch to page-locked memory; the DataLoader calls this where there is a GPU."""
        return self._map(Tensor.pin_memory)

    def keep(self, rows: Bool[Tensor, " batch"], *, skipped: Iterable[tuple[int, str]]) -> "Batch":
        """Remove some samples from the batch and record them as skipped."""
        return replace(self.take(rows), skipped=(*self.skipped, *skipped))

    def take(self, rows: slice | Shaped[Tensor, " rows"]) -> "Batch":
        """Take some of the samples, by position or mask; nothing is counted as skipped."""
        taken = self._map(lambda t: t[rows] if isinstance(rows, slice) else t[rows.to(t.device)])
        return replace(taken, skipped=())

    def _map(self, move: Callable[[Tensor], Tensor]) -> "Batch":
        tensors = {name: x for name, x in vars(self).items() if isinstance(x, Tensor)}
        return replace(self, **{name: move(tensor) for name, tensor in tensors.items()})


@dataclass(frozen=True, kw_only=True)
class Examples:
    """Samples to evaluate on.

    Attributes:
        sample_ids: ascending.
        keys: name of each sample in its shard.
        images: output of the evaluation transform.
        captions: all captions of each sample, or the one of its view; empty if not asked for.
        metadata: `decode_metadata` of each sample; empty if not asked for.
        skipped: id and reason of each sample in or near this range that could not be decoded.
    """

    sample_ids: Int64[Tensor, " batch"]
    keys: list[str]
    images: Float32[Tensor, "batch channels height width"]
    captions: list[list[str]]
    metadata: list[dict]
    skipped: tuple[tuple[int, str], ...]

    @property
    def first_captions(self) -> list[str]:
        """The first caption of each sample."""
        return [captions[0] for captions in self.captions]
