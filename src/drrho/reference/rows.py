"""Lookup of rows by sample id in tensors that are kept shard by shard."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Int64, Shaped
from torch import Tensor


class RowsOfShard(NamedTuple):
    """Samples of a batch that lie in one shard: rows of the shard, and places in the batch."""

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


def select(
    located: Sequence[RowsOfShard], stored: Callable[[int], Shaped[Tensor, "rows ..."]]
) -> Shaped[Tensor, "batch ..."]:
    """Gather the rows of a batch, in its order.

    Args:
        located: the batch, at least one sample.
        stored: the tensor of the shard with this index.
    """
    # index_select copies whole rows; indexing with [] is 25 times slower here.
    selected = torch.cat([stored(part.shard).index_select(0, part.rows) for part in located])
    return selected.index_select(0, torch.cat([part.places for part in located]).argsort())
