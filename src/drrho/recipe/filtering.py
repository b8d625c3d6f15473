"""Filtering by a reference: pairs that it finds unlike are left out before training.

The filter marks rows of the manifest. Sample ids stay what they are, and every batch is full.
"""

import hashlib
import math
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float32
from torch import Tensor

from drrho.data.manifest import Manifest
from drrho.reference.reader import Reference
from drrho.runtime.checks import require_finite
from drrho.runtime.distributed import Processes
from drrho.runtime.files import expand_paths
from drrho.runtime.progress import Progress


@dataclass(frozen=True, kw_only=True)
class Filtering:
    """Filter that keeps the pairs whose image and text are similar for a reference, as in DFN.

    A pair without reference embeddings is left out too. Exactly one of kept_fraction and threshold
    is given.

    Attributes:
        kept_fraction: share of the pairs to keep, those with the largest similarity `R_ii`, in
            (0, 1). Pairs that tie with the last of them are kept.
        threshold: smallest similarity `R_ii` of a pair to keep, a cosine.
        reference: folder of stored embeddings to filter by; None takes the recipe's reference.
    """

    kept_fraction: float | None = None
    threshold: float | None = None
    reference: str | None = None

    def __post_init__(self):
        expand_paths(self, "reference", outputs=())
        if (self.kept_fraction is None) == (self.threshold is None):
            raise ValueError(
                "filtering takes one of kept_fraction and threshold, got "
                f"{self.kept_fraction} and {self.threshold}"
            )
        if self.kept_fraction is not None and not 0 < self.kept_fraction < 1:
            raise ValueError(
                f"filtering.kept_fraction must be in (0, 1), got {self.kept_fraction}; leave "
                "filtering out to keep all"
            )
        require_finite(**{"filtering.threshold": self.threshold})


@dataclass(frozen=True, kw_only=True)
class FilterReport:
    """Result of a filter.

    Attributes:
        threshold: smallest similarity that is kept.
        num_pairs: usable pairs of the data set.
        num_kept: pairs that are kept.
        num_below: pairs left out for their similarity.
        num_without: pairs left out since the reference has no embeddings of them.
        kept_sha256: checksum of the table of rows that are kept.
    """

    threshold: float
    num_pairs: int
    num_kept: int
    num_below: int
    num_without: int
    kept_sha256: str

    def __str__(self) -> str:
        return (
            f"{self.num_kept:,} of {self.num_pairs:,} pairs kept, similarity at least "
            f"{self.threshold:.4f}; {self.num_below:,} below, {self.num_without:,} without "
            "reference embeddings"
        )


def filtered(
    manifest: Manifest,
    store: Reference,
    config: Filtering,
    processes: Processes,
) -> tuple[Manifest, FilterReport]:
    """Mark the rows of the manifest that the filter leaves out; a collective.

    Every process reads its share of the shards and all decide alike, so the result does not depend
    on their number. A process needs about 20 bytes a sample while it decides, and 1 afterwards.

    Raises:
        ValueError: nothing is left.
    """
    similarities = _similarities(manifest, store, processes)
    values = torch.cat([values[~values.isnan()] for values in similarities])
    num_pairs = sum(shard.num_usable for shard in manifest.shards)
    threshold = _threshold(values, config)
    kept = [found >= threshold for found in similarities]  # false for NaN
    num_kept = sum(int(rows.sum()) for rows in kept)
    if num_kept == 0:
        highest = f"; the highest similarity is {float(values.max()):.4f}" if len(values) else ""
        raise ValueError(
            f"filtering leaves none of {num_pairs:,} pairs: threshold = {config.threshold}"
            f"{highest}; {num_pairs - len(values):,} have no reference embeddings"
        )
    digest = hashlib.sha256()
    for rows in kept:
        digest.update(rows.numpy().tobytes())
    report = FilterReport(
        threshold=threshold,
        num_pairs=num_pairs,
        num_kept=num_kept,
        num_below=len(values) - num_kept,
        num_without=num_pairs - len(values),
        kept_sha256=digest.hexdigest(),
    )
    shards = zip(manifest.shards, kept, strict=True)
    return Manifest(shards=tuple(replace(s, left_out=~rows) for s, rows in shards)), report


def _similarities(
    manifest: Manifest, store: Reference, processes: Processes
) -> list[Float32[Tensor, " rows"]]:
    """Gather `R_ii` of each row of each shard; NaN where it is unusable or has no embeddings."""
    own: dict[int, Tensor] = {}
    shards = range(processes.rank, len(manifest.shards), processes.size)
    with Progress(
        "filtering", total=len(shards), unit="shards", visible=processes.is_first
    ) as progress:
        for shard in shards:
            usable = manifest.usable_ids_in(shard) - manifest.offsets[shard]
            found = store.similarities_in(shard)
            own[shard] = torch.full_like(found, math.nan)
            own[shard][usable] = found[usable]
            progress.advance(1)
    of_all: dict[int, Tensor] = {}
    for part in processes.all_gather_object(own):
        of_all |= part
    return [of_all[shard] for shard in range(len(manifest.shards))]


def _threshold(values: Float32[Tensor, " pairs"], config: Filtering) -> float:
    if config.threshold is not None:
        return config.threshold
    assert config.kept_fraction is not None
    if len(values) == 0:
        return math.inf
    num_kept = max(1, round(config.kept_fraction * len(values)))
    return float(values.kthvalue(len(values) - num_kept + 1).values)
