"""Random pairs that have embeddings in a stored reference."""

import torch
from jaxtyping import Int64
from torch import Tensor

from drrho.data.manifest import Manifest
from drrho.reference.reader import Reference


def drawn_ids(
    manifest: Manifest, store: Reference | None, *, count: int, generator: torch.Generator
) -> Int64[Tensor, " pairs"]:
    """Draw ids of at most `count` usable pairs, ascending, without replacement.

    With a store, pairs without embeddings are left out; ValueError if fewer than two are left.
    """
    usable = manifest.usable_ids()
    drawn = usable[torch.randperm(len(usable), generator=generator)[:count]]
    if store is not None and len(drawn) > 0:
        drawn = drawn[store.gather(drawn).present]
    if len(drawn) < 2:
        raise ValueError(
            f"the data set has {len(usable)} usable pairs, of which the reference knows "
            f"{len(drawn)}; two are needed"
        )
    return drawn.sort().values
