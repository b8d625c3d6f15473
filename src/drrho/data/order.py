"""Order in which an epoch visits the samples of a data set."""

import torch
from jaxtyping import Int64
from torch import Tensor

from drrho.data.manifest import Manifest, Shard
from drrho.runtime.checks import require_at_least
from drrho.runtime.randomness import derived_seed


def steps_per_epoch(manifest: Manifest, *, batch_size: int) -> int:
    """Count the full batches in one epoch; a ragged last one is left out.

    Raises:
        ValueError: there is not one full batch.
    """
    require_at_least(1, batch_size=batch_size)
    num_usable = sum(map(_visits, manifest.shards))
    if batch_size > num_usable:
        raise ValueError(
            f"batch_size must be at most the number of usable samples, {num_usable} of "
            f"{manifest.num_samples} in the data set (times their weights); got {batch_size}. Take "
            "a smaller one (--batch-size) or more data"
        )
    return num_usable // batch_size


def epoch_order(
    manifest: Manifest, *, seed: int, epoch: int, shuffle_window: int
) -> Int64[Tensor, " usable"]:
    """Compute the order of one epoch: the ids of all usable samples; a pure function.

    The shards are shuffled and cut into windows of `shuffle_window` shards, and the samples of
    each window are shuffled together, so that only a window of shards is open at a time. A shard of
    weight w comes floor(w) times, and of its samples a random share of w - floor(w) once more.
    """
    require_at_least(1, shuffle_window=shuffle_window)
    generator = torch.Generator().manual_seed(derived_seed("order", seed, epoch))
    shards = torch.randperm(len(manifest.shards), generator=generator)
    windows = []
    for window in shards.split(shuffle_window):
        ids = torch.cat([_visited(manifest, shard, generator) for shard in window.tolist()])
        windows.append(ids[torch.randperm(len(ids), generator=generator)])
    return torch.cat(windows)


def _visits(shard: Shard) -> int:
    return round(shard.weight * shard.num_usable)


def _visited(
    manifest: Manifest, index: int, generator: torch.Generator
) -> Int64[Tensor, " visits"]:
    """List the usable ids of a shard, each as often as an epoch visits it."""
    ids, shard = manifest.usable_ids_in(index), manifest.shards[index]
    if shard.weight == 1 or len(ids) == 0:
        return ids
    whole, rest = divmod(_visits(shard), len(ids))
    some = torch.randperm(len(ids), generator=generator)[:rest]
    return torch.cat([ids.repeat(whole), ids[some]])
