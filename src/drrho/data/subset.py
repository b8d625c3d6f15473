"""Subsets of a data set in which every sample keeps its id."""

from dataclasses import replace

import torch
from jaxtyping import Int64
from torch import Tensor

from drrho.data.manifest import Manifest


def restricted(manifest: Manifest, ids: Int64[Tensor, " kept"], *, reason: str) -> Manifest:
    """Restrict a manifest to some samples; the others become unusable.

    Ids, hashes and stored embeddings stay valid.

    Args:
        ids: samples to keep; those that were unusable stay so.
        reason: why all others are unusable, in the words that counts show.

    Raises:
        ValueError: none of the ids is usable.
    """
    kept = torch.zeros(manifest.num_samples, dtype=torch.bool)
    kept[ids] = True
    shards = []
    for shard, start in zip(manifest.shards, manifest.offsets[:-1], strict=True):
        dropped = (~kept[start : start + shard.num_samples]).nonzero().squeeze(1).tolist()
        shards.append(replace(shard, unusable=dict.fromkeys(dropped, reason) | shard.unusable))
    result = Manifest(shards=tuple(shards))
    if len(result.usable_ids()) == 0:
        raise ValueError(f"none of the {len(ids)} ids is of a usable sample")
    return result


def disjoint_halves(manifest: Manifest, *, generator: torch.Generator) -> tuple[Manifest, Manifest]:
    """Split a data set at random into two with half the usable samples each.

    Raises:
        ValueError: fewer than two usable samples.
    """
    ids = manifest.usable_ids()
    if len(ids) < 2:
        raise ValueError(f"only {len(ids)} samples are usable; two halves need two at least")
    half = (len(ids) + 1) // 2
    return split_at_random(manifest, half, generator=generator, reason="in the other half")


def split_at_random(
    manifest: Manifest, size: int, *, generator: torch.Generator, reason: str
) -> tuple[Manifest, Manifest]:
    """Split a data set at random into `size` usable samples and all others, as `restricted`."""
    ids = manifest.usable_ids()
    drawn = ids[torch.randperm(len(ids), generator=generator)]
    return (
        restricted(manifest, drawn[:size], reason=reason),
        restricted(manifest, drawn[size:], reason=reason),
    )
