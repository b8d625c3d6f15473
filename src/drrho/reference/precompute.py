"""Encoding of a data set by the reference model, shard by shard."""

import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path

import torch

from drrho.data.batch import Examples
from drrho.data.loading import NothingReadable, evaluation_batches
from drrho.data.manifest import Manifest, Shard
from drrho.encoding.encoder import EmbeddingModel
from drrho.plotting.table import in_brackets
from drrho.reference.judgement import Judgement
from drrho.reference.shard_files import ShardFiles, entries_of
from drrho.reference.store import (
    REFERENCE_CARDS,
    ReferenceCard,
    ShardEmbeddings,
    absent_in,
    has_unit_norm,
    identity_differences,
    layout_of,
    save_shard,
)
from drrho.runtime.distributed import Processes
from drrho.runtime.progress import Progress


@dataclass(frozen=True, kw_only=True)
class PrecomputeReport:
    """Counts of a folder after `precompute`.

    Attributes:
        num_samples: rows of the data set.
        absent: number of rows without embeddings, by reason.
        shards_found: shards that were complete before this run.
        joined: number of rows by how an imported row was found for them.
        judgement: how the reference does on a sample of the pairs; None if that was not asked for.
    """

    num_samples: int
    absent: dict[str, int]
    shards_found: int
    joined: dict[str, int] = field(default_factory=dict)
    judgement: Judgement | None = None

    @property
    def num_encoded(self) -> int:
        """Number of rows with embeddings."""
        return self.num_samples - sum(self.absent.values())

    def __str__(self) -> str:
        count = f"{self.num_encoded:,} of {self.num_samples:,}"
        ways = ", ".join(f"{number:,} {way}" for way, number in self.joined.items())
        found = f"; joined {ways}" if ways else ""
        return f"embeddings of {count} samples{in_brackets(self.absent)}{found}"


def precompute(
    encoder: EmbeddingModel,
    manifest: Manifest,
    folder: str | Path,
    *,
    batch_size: int,
    workers: int = 0,
    processes: Processes | None = None,
) -> PrecomputeReport:
    """Write the reference embeddings of a data set, for `ReferenceStore` to read.

    Several processes share out the shards, and write to one folder. Each shard is written whole or
    not at all. After an interruption the missing shards are encoded, to the same bytes. A sample
    that cannot be decoded, or whose embedding is not finite, is marked as absent and counted.

    Args:
        encoder: the reference model, and the view of the samples.
        folder: folder to write, made if need be.
        workers: processes that decode for each of `processes`; 0 decodes in it.
        processes: those that encode together; None is this one alone.

    Returns:
        The report on the whole data set, to every process.

    Raises:
        ValueError: the folder holds embeddings of another model or data set, a shard is not
            what the manifest says, or not one sample could be encoded.
        OSError: the disk is full; the shards that are written stay.
    """
    folder = Path(folder)
    processes = Processes() if processes is None else processes
    card = processes.on_first(lambda: _open_folder(encoder, manifest, folder=folder))
    files = REFERENCE_CARDS.files(card, folder)
    absent = processes.on_first(lambda: _absent_in_finished_shards(card, files))
    shards_found = len(absent)
    usable = [shard.num_samples - len(shard.unusable) for shard in manifest.shards]
    left = [s for s in range(len(usable)) if s not in absent]
    unfinished = left[processes.rank :: processes.size]
    absent = dict(absent) if processes.is_first else {}
    processes.on_first(
        lambda: require_space(folder, [manifest.shards[s] for s in left], encoder.embedding_dim)
    )
    with Progress(
        "encode" if processes.size == 1 else f"encode, the first of {processes.size} processes",
        total=sum(usable[s] for s in unfinished),
        visible=processes.is_first,
    ) as progress:
        encoded = _encode_shards(
            encoder,
            [manifest.shards[s] for s in unfinished],
            batch_size=batch_size,
            workers=workers,
            progress=progress,
        )
        for s, embeddings in zip(unfinished, encoded, strict=True):
            save_shard(files, card.shards[s], embeddings)
            absent[s] = embeddings.absent
    absent = {s: rows for found in processes.all_gather_object(absent) for s, rows in found.items()}
    reasons = Counter(reason for rows in absent.values() for reason in rows.values())
    if reasons.total() == manifest.num_samples:
        raise ValueError(
            f"not one of {manifest.num_samples} samples could be encoded: {dict(reasons)}; the "
            f"data set or the model cannot be right, and {folder} is of no use"
        )
    return PrecomputeReport(
        num_samples=manifest.num_samples,
        absent=dict(reasons),
        shards_found=shards_found,
    )


def stored_bytes(num_samples: int, embedding_dim: int) -> int:
    """Compute the size of a store: image and text in float16, and a flag of presence."""
    return num_samples * (2 * embedding_dim * torch.float16.itemsize + 1)


def require_space(folder: Path, shards: Sequence[Shard], embedding_dim: int) -> None:
    """Raise OSError, before any work, if a store of these shards does not fit on the disk."""
    needed = stored_bytes(sum(shard.num_samples for shard in shards), embedding_dim)
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise OSError(
            f"the embeddings take {needed / 1e9:.1f} GB and {folder} has {free / 1e9:.1f} GB free; "
            "choose a folder on a larger disk"
        )


def _open_folder(encoder: EmbeddingModel, manifest: Manifest, *, folder: Path) -> ReferenceCard:
    """Read the card of the folder, or write a new one before anything else."""
    card = ReferenceCard(
        model=encoder.identity,
        embedding_dim=encoder.embedding_dim,
        shards=entries_of(manifest.shards),
        trained_on=encoder.trained_on,
    )
    if not REFERENCE_CARDS.exists(folder):
        REFERENCE_CARDS.save(card, folder)
        return card
    found = REFERENCE_CARDS.load(folder)
    _require_same(found, card, folder=folder)
    return found


def _require_same(found: ReferenceCard, wanted: ReferenceCard, *, folder: Path) -> None:
    """Raise ValueError if a folder was begun with another model or data set."""
    remedy = "choose another folder, or remove this one"
    if found.model != wanted.model:
        differing = identity_differences(found.model, wanted.model)
        raise ValueError(
            f"{folder} holds embeddings of another model: {'; '.join(differing)}; {remedy}"
        )
    pairs = zip(found.shards, wanted.shards, strict=False)
    differing = [f"{a.shard}, not {b.shard}" for a, b in pairs if a.contents != b.contents]
    if differing or len(found.shards) != len(wanted.shards):
        where = f"; the first to differ is {differing[0]}" if differing else ""
        raise ValueError(
            f"{folder} holds embeddings of another data set: {_describe(found)}, not "
            f"{_describe(wanted)}{where}; {remedy}"
        )


def _describe(card: ReferenceCard) -> str:
    num_samples = sum(shard.num_samples for shard in card.shards)
    return f"{num_samples} samples in {len(card.shards)} shards from {card.shards[0].shard} on"


def _absent_in_finished_shards(card: ReferenceCard, files: ShardFiles) -> dict[int, dict[int, str]]:
    """List the rows without embeddings, with reasons, of each shard whose file is there."""
    return {
        s: absent_in(files, entry, files.open(entry, layout_of(entry, card.embedding_dim)))
        for s, entry in enumerate(card.shards)
        if files.exists(entry)
    }


def _encode_shards(
    encoder: EmbeddingModel,
    shards: list[Shard],
    *,
    batch_size: int,
    workers: int,
    progress: Progress,
) -> Iterator[ShardEmbeddings]:
    """Yield the embeddings of each shard in turn; one loader serves them all."""
    manifest = Manifest(shards=tuple(shards))
    absent = [dict(shard.unusable) for shard in shards]
    batches = evaluation_batches(
        manifest,
        encoder.transform,
        batch_size=batch_size,
        workers=workers,
        parts=("caption",),
        view=encoder.view,
    )
    noted = _note_absent(batches, manifest, absent=absent, progress=progress)
    groups = groupby(noted, key=lambda batch: manifest.locate(int(batch.sample_ids[0]))[0])
    readable_shard, group = next(groups, (None, ()))
    for s, shard in enumerate(shards):
        block = ShardEmbeddings.empty(shard.num_samples, encoder.embedding_dim, absent=absent[s])
        if readable_shard == s:
            for batch in group:
                _encode_batch(encoder, batch, into=block, offset=manifest.offsets[s])
            # This looks one batch ahead, so all that this shard lacks has been noted.
            readable_shard, group = next(groups, (None, ()))
        yield block


def _note_absent(
    batches: Iterator[Examples],
    manifest: Manifest,
    *,
    absent: list[dict[int, str]],
    progress: Progress,
) -> Iterator[Examples]:
    """Pass batches through and record the samples they skipped in `absent`, by shard and row."""
    try:
        for batch in batches:
            _note(batch.skipped, manifest, absent=absent)
            progress.advance(len(batch.sample_ids) + len(batch.skipped))
            yield batch
    except NothingReadable as error:
        _note(error.skipped, manifest, absent=absent)
        progress.advance(len(error.skipped))


def _note(
    skipped: tuple[tuple[int, str], ...], manifest: Manifest, *, absent: list[dict[int, str]]
) -> None:
    for sample_id, reason in skipped:
        shard, row = manifest.locate(sample_id)
        absent[shard][row] = reason


def _encode_batch(
    encoder: EmbeddingModel, batch: Examples, *, into: ShardEmbeddings, offset: int
) -> None:
    """Fill in the rows of a batch; those whose embeddings are not finite become absent."""
    images, texts = encoder.encode_pairs(batch.images, batch.first_captions)
    good = has_unit_norm(images) & has_unit_norm(texts)
    rows = batch.sample_ids - offset
    into.image[rows[good]] = images[good].half()
    into.text[rows[good]] = texts[good].half()
    into.present[rows[good]] = True
    into.absent.update(dict.fromkeys(rows[~good].tolist(), "embedding is not finite"))
