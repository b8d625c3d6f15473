"""Encoding of a data set by the reference model, shard by shard."""

import shutil
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path

import torch

from drrho.data.batch import Examples
from drrho.data.examples import batches_of_views
from drrho.data.loading import NothingReadable
from drrho.data.manifest import Manifest
from drrho.data.views import View
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
    (report,) = precompute_views(
        encoder,
        manifest,
        {encoder.view: Path(folder)},
        batch_size=batch_size,
        workers=workers,
        processes=processes,
    )
    return report


def precompute_views(
    encoder: EmbeddingModel,
    manifest: Manifest,
    folders: Mapping[View | None, Path],
    *,
    batch_size: int,
    workers: int = 0,
    processes: Processes | None = None,
) -> list[PrecomputeReport]:
    """Write the embeddings of several views, each to its folder, as `precompute` writes one.

    An image is read and decoded once for all views that lack its shard; the files are those that
    each view alone would have.
    """
    processes = Processes() if processes is None else processes
    stores = [
        _open_store(encoder.of_view(view), manifest, folder, processes)
        for view, folder in folders.items()
    ]
    usable = [shard.num_samples - len(shard.unusable) for shard in manifest.shards]
    lacking = [
        [place for place, store in enumerate(stores) if s not in store.absent]
        for s in range(len(usable))
    ]
    left = [s for s, places in enumerate(lacking) if places]
    number = sum(manifest.shards[s].num_samples * len(lacking[s]) for s in left)
    processes.on_first(
        lambda: require_space(next(iter(folders.values())), number, encoder.embedding_dim)
    )
    own = left[processes.rank :: processes.size]
    written: list[dict[int, dict[int, str]]] = [{} for _ in stores]
    with Progress(
        "encode" if processes.size == 1 else f"encode, the first of {processes.size} processes",
        total=sum(usable[s] * len(lacking[s]) for s in own),
        visible=processes.is_first,
    ) as progress:
        for places, group in groupby(own, key=lacking.__getitem__):
            shards = list(group)
            encoded = _encode_shards(
                encoder,
                Manifest(shards=tuple(manifest.shards[s] for s in shards)),
                views=[stores[place].view for place in places],
                batch_size=batch_size,
                workers=workers,
                progress=progress,
            )
            for s, blocks in zip(shards, encoded, strict=True):
                for place, block in zip(places, blocks, strict=True):
                    save_shard(stores[place].files, stores[place].card.shards[s], block)
                    written[place][s] = block.absent
    parts = processes.all_gather_object(written)
    return [
        store.report([part[place] for part in parts], manifest)
        for place, store in enumerate(stores)
    ]


@dataclass(frozen=True, kw_only=True)
class _Store:
    """The folder of a view; `absent` has the rows without embeddings of each finished shard."""

    view: View | None
    folder: Path
    card: ReferenceCard
    files: ShardFiles
    absent: dict[int, dict[int, str]]

    def report(
        self, written: list[dict[int, dict[int, str]]], manifest: Manifest
    ) -> PrecomputeReport:
        """Count the rows of finished shards and of those that processes have written.

        Raises:
            ValueError: not one sample could be encoded.
        """
        rows = [*self.absent.values(), *(found for part in written for found in part.values())]
        reasons = Counter(reason for found in rows for reason in found.values())
        if reasons.total() == manifest.num_samples:
            raise ValueError(
                f"not one of {manifest.num_samples} samples could be encoded: {dict(reasons)}; "
                f"the data set or the model cannot be right, and {self.folder} is of no use"
            )
        return PrecomputeReport(
            num_samples=manifest.num_samples,
            absent=dict(reasons),
            shards_found=len(self.absent),
        )


def _open_store(
    encoder: EmbeddingModel, manifest: Manifest, folder: Path, processes: Processes
) -> _Store:
    card = processes.on_first(lambda: _open_folder(encoder, manifest, folder=folder))
    files = REFERENCE_CARDS.files(card, folder)
    absent = processes.on_first(lambda: _absent_in_finished_shards(card, files))
    return _Store(view=encoder.view, folder=folder, card=card, files=files, absent=absent)


def stored_bytes(num_samples: int, embedding_dim: int) -> int:
    """Compute the size of a store: image and text in float16, and a flag of presence."""
    return num_samples * (2 * embedding_dim * torch.float16.itemsize + 1)


def require_space(folder: Path, num_samples: int, embedding_dim: int) -> None:
    """Raise OSError, before any work, if embeddings of so many samples do not fit on the disk."""
    needed = stored_bytes(num_samples, embedding_dim)
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
    """Raise ValueError if a folder holds embeddings by another model or of another data set."""
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
    manifest: Manifest,
    *,
    views: Sequence[View | None],
    batch_size: int,
    workers: int,
    progress: Progress,
) -> Iterator[list[ShardEmbeddings]]:
    """Yield the embeddings of each shard in turn, of all views; one loader serves them all."""
    absent = [[dict(shard.unusable) for shard in manifest.shards] for _ in views]
    batches = batches_of_views(
        manifest,
        encoder.transform,
        batch_size=batch_size,
        workers=workers,
        parts=("caption",),
        views=views,
    )
    noted = _note_absent(batches, manifest, absent=absent, progress=progress)
    groups = groupby(noted, key=lambda batch: _shard_of(batch, manifest))
    readable_shard, group = next(groups, (None, ()))
    for s, shard in enumerate(manifest.shards):
        blocks = [
            ShardEmbeddings.empty(shard.num_samples, encoder.embedding_dim, absent=rows[s])
            for rows in absent
        ]
        if readable_shard == s:
            for batch in group:
                for one, block in zip(batch, blocks, strict=True):
                    _encode_batch(encoder, one, into=block, offset=manifest.offsets[s])
            # This looks one batch ahead, so all that this shard lacks has been noted.
            readable_shard, group = next(groups, (None, ()))
        yield blocks


def _shard_of(batch: tuple[Examples, ...], manifest: Manifest) -> int:
    first = next(int(one.sample_ids[0]) for one in batch if len(one.sample_ids) > 0)
    return manifest.locate(first)[0]


def _note_absent(
    batches: Iterator[tuple[Examples, ...]],
    manifest: Manifest,
    *,
    absent: list[list[dict[int, str]]],
    progress: Progress,
) -> Iterator[tuple[Examples, ...]]:
    """Pass batches through and record the samples that they skipped in `absent`: by view, shard
    and row.
    """
    try:
        for batch in batches:
            for one, rows in zip(batch, absent, strict=True):
                _note(one.skipped, manifest, absent=rows)
                progress.advance(len(one.sample_ids) + len(one.skipped))
            yield batch
    except NothingReadable as error:
        for rows in absent:
            _note(error.skipped, manifest, absent=rows)
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
    if len(batch.sample_ids) == 0:
        return
    images, texts = encoder.encode_pairs(batch.images, batch.first_captions)
    good = has_unit_norm(images) & has_unit_norm(texts)
    rows = batch.sample_ids - offset
    into.image[rows[good]] = images[good].half()
    into.text[rows[good]] = texts[good].half()
    into.present[rows[good]] = True
    into.absent.update(dict.fromkeys(rows[~good].tolist(), "embedding is not finite"))
