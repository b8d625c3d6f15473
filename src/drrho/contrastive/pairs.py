"""Embeddings of image-text pairs, and the checks that every contrastive loss makes."""

from typing import NamedTuple

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from drrho.runtime.distributed import Partition, ProcessGroup, partition

UNIT_TOLERANCE = 0.02


class PairEmbeddings(NamedTuple):
    """Unit embeddings of the same B pairs by one model; row i of both is pair i."""

    image: Float[Tensor, "batch dim"]
    text: Float[Tensor, "batch dim"]

    def take(self, rows: slice | Shaped[Tensor, " rows"]) -> "PairEmbeddings":
        """Take some of the pairs, by their places or a mask."""
        return PairEmbeddings(self.image[rows], self.text[rows])


def pair_partition(pairs: PairEmbeddings, *, group: ProcessGroup | None = None) -> Partition:
    """Gather how many pairs each process of a group has, once per step; waits for the device."""
    return partition(len(pairs.image), group=group, device=pairs.image.device)


def check_pairs(target: PairEmbeddings, reference: PairEmbeddings | None) -> None:
    """Raise ValueError unless target and reference embed the same pairs."""
    for pairs in (target, *(() if reference is None else (reference,))):
        if pairs.image.shape != pairs.text.shape:
            raise ValueError(
                "image and text embeddings must have the same shape, got "
                f"{tuple(pairs.image.shape)} and {tuple(pairs.text.shape)}"
            )
    if reference is not None and len(reference.image) != len(target.image):
        raise ValueError(
            "image, text and reference embeddings must have one row for each pair, got "
            f"{len(target.image)} of the target and {len(reference.image)} of the reference"
        )


def check_unit_length(name: str, pairs: PairEmbeddings, *, or_absent: bool = False) -> None:
    """Raise ValueError unless embeddings have unit length, up to the rounding of bfloat16.

    On a GPU this waits for the device.

    Args:
        or_absent: whether a row may be zero, which means that the pair has no embeddings.
    """
    for side, embeddings in zip(("image", "text"), pairs, strict=True):
        lengths = torch.linalg.vector_norm(embeddings.detach().float(), dim=1)
        wrong = (lengths - 1).abs() > UNIT_TOLERANCE  # not of nan, which the loss shows
        if or_absent:
            wrong &= lengths != 0
        if wrong.any():
            found = lengths[wrong]
            raise ValueError(
                f"{name} {side} embeddings must have unit length, got {found.min():.3g} to "
                f"{found.max():.3g}; divide them by their norms, or take one of drrho.CLIPLoss, "
                "drrho.DRRhoCLIPLoss and its siblings, which do"
            )


def check_negatives(num_pairs: int) -> None:
    """Raise ValueError for a single pair."""
    if num_pairs < 2:
        raise ValueError(
            f"a contrastive loss needs at least two pairs to have negatives, got {num_pairs}"
        )
