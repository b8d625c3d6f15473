"""Encoding a data set once with the reference model, shard by shard."""

import dataclasses
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from drrho.data.loading import NothingReadable, evaluation_batches
from drrho.data.manifest import Manifest, Shard
from drrho.progress import Progress
from drrho.reference.encoder import ReferenceEncoder
from drrho.reference.store import (
    FILE_NAME,
    NORM_TOLERANCE,
    ReferenceCard,
    ReferenceShard,
    ShardEmbeddings,
    load_shard,
    save_shard,
)


@dataclass(frozen=True, kw_only=True)
class PrecomputeReport:
    """What is in the folder after `precompute`.

    Attributes:
        num_samples: rows of the data set.
        num_encoded: rows with embeddings.
        absent: how many rows have none, by reason.
        shards_found: shards that were complete before this run.
    """

    num_samples: int
    num_encoded: int
    absent: dict[str, int]
    shards_found: int


def precompute(
    encoder: ReferenceEncoder,
    manifest: Manifest,
    folder: str | Path,
    *,
    batch_size: int,
    workers: int = 0,
) -> PrecomputeReport:
    """Writes the reference embeddings of a data set, for `ReferenceStore` to read.

    Each shard is written whole or not at all. Run again after an interruption it encodes the
    shards that are missing, to the same bytes as without it. A sample that cannot be decoded,
    or whose embedding is not finite, is marked as absent and counted.

    Args:
        encoder: the reference model.
        manifest: the data set.
        folder: where to write; made if need be.
        batch_size: most samples encoded at once.
        workers: processes that decode; 0 decodes in this one.

    Raises:
        ValueError: the folder holds embeddings of another model or data set, a shard is not
            what the manifest says, or not one sample could be encoded.
    """
    if len(manifest.usable_ids()) == 0:
        raise ValueError(
            f"none of the {manifest.num_samples} samples has an image and a caption: "
            f"{_count([shard.unusable for shard in manifest.shards])}"
        )
    folder = Path(folder)
    card = _open_folder(encoder, manifest, folder=folder)
    absent = _absent_in_finished_shards(card, folder)
    report_found = len(absent)
    unfinished = [s for s in range(len(card.shards)) if s not in absent]
    total = sum(shard.num_samples for shard in manifest.shards)
    missing = sum(manifest.shards[s].num_samples for s in unfinished)
    with Progress("encode", total=total, initial=total - missing) as progress:
        shards = [manifest.shards[s] for s in unfinished]
        encoded = _encode(encoder, shards, batch_size=batch_size, workers=workers)
        for s, embeddings in zip(unfinished, encoded, strict=True):
            save_shard(folder, card, entry=card.shards[s], embeddings=embeddings)
            absent[s] = embeddings.absent
            progress.advance(card.shards[s].num_samples)
    ...


def _open_folder(encoder: ReferenceEncoder, manifest: Manifest, *, folder: Path) -> ReferenceCard:
    """The card of the folder, written first so that the folder is known if this is cut short."""
    files = _file_names(manifest.shards)
    card = ReferenceCard(
        model=encoder.identity,
        embedding_dim=encoder.embedding_dim,
        shards=tuple(
            ReferenceShard(
                shard=Path(shard.url).name,
                file=file,
                num_samples=shard.num_samples,
                keys_sha256=shard.keys_sha256,
                content_sha256=shard.content_sha256,
            )
            for shard, file in zip(manifest.shards, files, strict=True)
        ),
    )
    if not (folder / FILE_NAME).exists():
        folder.mkdir(parents=True, exist_ok=True)
        card.save(folder)
        return card
    found = ReferenceCard.load(folder)
    _require_same_model(found, card, folder=folder)
    _require_same_data(found, card, folder=folder)
    return found
