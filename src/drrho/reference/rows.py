"""Lookup of rows by sample id in tensors that are kept shard by shard."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Int64, Shaped
from torch import Tensor


class RowsOfShard(NamedTuple):
    """Samples of a batch that are in one shard: rows of the shard, and places in the batch."""

    shard: int
    rows: Int64[Tensor, " part"]
    places: Int64[Tensor, " part"]


def locate(
    sample_ids: Int64[Tensor, " batch"], offsets: Int64[Tensor, " bounds"]
) -> list[RowsOfShard]:
    """Group a batch by shard, in the order of the manifest; within a shard by row.

    Args:
        sample_ids: in any order, on any device; an id may occur twice.
        offsets: `Manifest.offsets`.

    Raises:
        IndexError: an id is not in the manifest.
    """
    if len(sample_ids) == 0:
        return []
    ids, order = sample_ids.cpu().sort()
    if not 0 <= ids[0] <= ids[-1] < offsets[-1]:
        raise IndexError(
            f"sample ids must be in [0, {int(offsets[-1])}), got {int(ids[0])} to {int(ids[-1])}"
        )
    shard_of = torch.searchsorted(offsets, ids, right=True) - 1
    touched, counts = torch.unique_consecutive(shard_of, return_counts=True)
    sizes = counts.tolist()
    parts = zip(
        touched.tolist(), (ids - offsets[shard_of]).split(sizes), order.split(sizes), strict=True
    )
    return [RowsOfShard(*part) for part in parts]


def in_order(
    located: Sequence[RowsOfShard], parts: Sequence[Shaped[Tensor, "_part ..."]]
) -> Shaped[Tensor, "batch ..."]:
    """Concatenate rows that were read shard by shard, in the order of the batch."""
    selected = torch.cat(list(parts))
    return selected.index_select(0, torch.cat([part.places for part in located]).argsort())
