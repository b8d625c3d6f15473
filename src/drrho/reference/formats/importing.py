"""Import of foreign embeddings into a store of a data set, joined by key."""

import hashlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import torch

from drrho.data.manifest import Manifest
from drrho.data.reading.cache import OpenShards
from drrho.data.reading.shards import RawSample
from drrho.reference.formats.source import Source
from drrho.reference.precompute import PrecomputeReport, require_space
from drrho.reference.shard_files import entries_of
from drrho.reference.store import REFERENCE_CARDS, ReferenceCard, ShardEmbeddings, save_shard
from drrho.runtime.progress import Progress

DIGEST_BYTES = 16  # of a key: two of a billion are alike with a chance of 1e-21
ROWS_AT_ONCE = 1024
SHOWN_KEYS = 3
NOT_FINITE = "imported embedding is not finite"
ZERO = "imported embedding is zero"


def import_embeddings(
    source: Source, manifest: Manifest, folder: str | Path, *, model: str
) -> PrecomputeReport:
    """Write a store of a data set from embeddings that another program stored.

    Every sample is looked up by its key; what is found is scaled to unit length. A sample without
    a row, or whose row is zero or not finite, is marked as absent and counted. The card is
    written last: a folder that was interrupted is no store.

    Args:
        folder: folder to write; it must hold no store.
        model: name of the model, for the card, which also has the format and a hash of the files.

    Raises:
        FileExistsError: there is a store in the folder.
        ValueError: a key is there twice, no sample has a row, or a file is damaged.
        OSError: the disk is too small.
    """
    folder = Path(folder)
    if REFERENCE_CARDS.exists(folder):
        raise FileExistsError(f"{folder} holds embeddings already; choose another folder")
    folder.mkdir(parents=True, exist_ok=True)
    require_space(folder, manifest.num_samples, source.table.embedding_dim)
    rows_by_key = _rows_by_key(source)
    card = ReferenceCard(
        model=_identity(source, model),
        embedding_dim=source.table.embedding_dim,
        shards=entries_of(manifest.shards),
    )
    files = REFERENCE_CARDS.files(card, folder)
    lookup = _Lookup(source, manifest, rows_by_key)
    reasons: Counter[str] = Counter()
    with Progress("import", total=manifest.num_samples) as progress:
        for index, entry in enumerate(card.shards):
            embeddings = lookup.of_shard(index)
            save_shard(files, entry, embeddings)
            reasons.update(embeddings.absent.values())
            progress.advance(entry.num_samples, absent=reasons.total())
    if reasons.total() == manifest.num_samples:
        counts = ", ".join(f"{count} {reason}" for reason, count in reasons.items())
        rows = list(islice(source.keys(), SHOWN_KEYS))
        raise ValueError(
            f"not one of {manifest.num_samples} samples has imported embeddings ({counts}). They "
            f"are joined by {source.key_noun}; the samples have keys like "
            f"{lookup.seen or 'none'}, the imported rows like {rows}: is it of another "
            "data set?"
        )
    REFERENCE_CARDS.save(card, folder)
    return PrecomputeReport(
        num_samples=manifest.num_samples,
        absent=dict(reasons),
        shards_found=0,
        joined=dict(source.joined),
    )


@dataclass
class _Lookup:
    """Rows of a source for the samples of a data set."""

    source: Source
    manifest: Manifest
    rows_by_key: dict[bytes, int]

    def __post_init__(self) -> None:
        self.samples = OpenShards(self.manifest)
        self.seen: list[str] = []  # some keys, for messages

    def of_shard(self, index: int) -> ShardEmbeddings:
        shard = self.manifest.shards[index]
        block = ShardEmbeddings.empty(
            shard.num_samples, self.source.table.embedding_dim, absent=dict(shard.unusable)
        )
        usable = self.manifest.usable_ids_in(index)
        for ids in usable.split(ROWS_AT_ONCE):
            found = dict(self._found(index, self.samples.read(ids.tolist()), block.absent))
            if found:
                self._fill(block, found)
        return block

    def _found(
        self, index: int, samples: list[RawSample], absent: dict[int, str]
    ) -> Iterator[tuple[int, int]]:
        """Yield row of the shard and row of the source of the samples that have one."""
        for sample in samples:
            key = self.source.key_of(self.manifest.shards[index], sample)
            if key is None:
                absent[sample.row] = f"no {self.source.key_noun}"
                continue
            if len(self.seen) < SHOWN_KEYS:
                self.seen.append(key)
            row = self.rows_by_key.get(_digest(key))
            if row is None:
                absent[sample.row] = f"no imported row of its {self.source.key_noun}"
            else:
                yield sample.row, row

    def _fill(self, block: ShardEmbeddings, found: dict[int, int]) -> None:
        rows = torch.tensor(list(found))
        pairs = self.source.table.read(list(found.values()))
        norms = torch.stack([embeddings.norm(dim=1) for embeddings in pairs])
        finite, positive = norms.isfinite().all(dim=0), (norms > 0).all(dim=0)
        good = finite & positive
        for into, embeddings, norm in zip((block.image, block.text), pairs, norms, strict=True):
            into[rows[good]] = (embeddings[good] / norm[good, None]).half()
        block.present[rows[good]] = True
        block.absent.update(dict.fromkeys(rows[~finite].tolist(), NOT_FINITE))
        block.absent.update(dict.fromkeys(rows[finite & ~positive].tolist(), ZERO))


def _rows_by_key(source: Source) -> dict[bytes, int]:
    rows: dict[bytes, int] = {}
    for row, key in enumerate(source.keys()):
        first = rows.setdefault(_digest(key), row)
        if first != row:
            raise ValueError(
                f"the {source.key_noun} {key!r} is there twice: {source.table.place(first)} and "
                f"{source.table.place(row)}; which of them a sample has cannot be told"
            )
    return rows


def _identity(source: Source, model: str) -> dict[str, str]:
    digest = hashlib.sha256()
    for content in source.table.contents():
        digest.update(content)
    return {"architecture": model, **source.settings, "files_sha256": digest.hexdigest()}


def _digest(key: str) -> bytes:
    return hashlib.blake2b(key.encode(errors="surrogateescape"), digest_size=DIGEST_BYTES).digest()
