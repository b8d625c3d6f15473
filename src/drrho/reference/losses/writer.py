"""Writing the losses of a reference, from the user's own evaluation loop."""

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from drrho.data.items import require_file_name
from drrho.data.manifest import Manifest
from drrho.reference.losses.store import (
    LOSS_CARDS,
    LossCard,
    LossUnit,
    ShardLosses,
    load_losses_so_far,
    save_losses,
)
from drrho.reference.rows import locate
from drrho.reference.shard_files import ShardFiles, entries_of
from drrho.runtime.locks import exclusive

SECONDS_BETWEEN_FLUSHES = 30.0  # about what a killed process loses at most
FLUSHING_SHARE = 0.1  # of the time, at most, where a flush takes long


class LossWriter:
    """Writer of the losses of a reference, in batches of any order. Made by `LossWriter.open`.

        identity = "resnet50, weights 7ad3ba5f, cross-entropy"
        with LossWriter.open("losses", manifest, reference="resnet50", identity=identity) as writer:
            rest = Subset(dataset, writer.unwritten_ids().tolist())
            for sample_ids, images, labels in DataLoader(rest, batch_size=256):
                losses = cross_entropy(model(images), labels, reduction="none")
                writer.write(sample_ids, losses)

    A shard is written when it is complete, and others about every half minute and at the end, so
    an interrupted run loses little, and the next one continues with the ids that are left. A loss
    that is given again replaces the earlier one. One that is not finite is stored like any other.

    In memory are a byte for each sample and what was given since the last write. Where several
    processes evaluate, one of them gathers the batches of all and writes.
    """

    def __init__(self, files: ShardFiles, manifest: Manifest, *, unit: LossUnit) -> None:
        self._files = files
        self._unit: LossUnit = unit
        self._entries = [files.find(shard) for shard in manifest.shards]
        self._offsets = torch.tensor(manifest.offsets)
        self._written = [
            load_losses_so_far(files, entry, unit=unit).written.clone() for entry in self._entries
        ]
        self._pending: dict[int, list[_Given]] = defaultdict(list)
        self._next_flush = time.monotonic() + SECONDS_BETWEEN_FLUSHES
        self._closed = False

    @classmethod
    @contextmanager
    def open(
        cls,
        folder: str | Path,
        manifest: Manifest,
        *,
        reference: str,
        identity: str,
        unit: LossUnit = "sample",
    ) -> Iterator["LossWriter"]:
        """Begin to write the losses of a reference, or continue.

        Args:
            folder: folder of the losses of any number of references; made if need be.
            manifest: the data set; shards that were not there before are added.
            reference: name under which the losses will be found.
            identity: description of the model, its weights and its loss; for instance a
                repository with its revision, or a hash of the weights.
            unit: "token" if each token of a sample has a loss.

        Raises:
            ValueError: under this name are losses of another identity or unit, two shards have
                the same contents, an argument cannot be used, or a file is damaged.
            BlockingIOError: another process writes the losses of this reference.
        """
        require_file_name("reference", reference)
        _refuse_equal_shards(manifest)
        path = Path(folder) / reference
        wanted = LossCard(identity=identity, unit=unit, shards=entries_of(manifest.shards))
        with exclusive(path):
            card = _begin(path, wanted, manifest)
            writer = cls(LOSS_CARDS.files(card, path), manifest, unit=unit)
            try:
                yield writer
            finally:
                writer.flush()
                writer._closed = True
            writer._write_empty_shards()

    def unwritten_ids(self) -> Int64[Tensor, " unwritten"]:
        """List the ids of the samples without a loss so far, ascending."""
        return torch.cat(self._written).logical_not().nonzero().squeeze(1)

    def write(self, sample_ids: Int64[Tensor, " batch"], losses: Float[Tensor, "..."]) -> None:
        """Add the losses of a batch of samples, from any device; they become float32.

        Args:
            losses: shape (batch,).

        Raises:
            IndexError: an id is not in the manifest.
            ValueError: there is not one loss for each sample, the writer is of tokens, or it is
                closed.
        """
        self._require("sample", "write_tokens")
        if losses.shape != sample_ids.shape:
            raise ValueError(
                f"losses has shape {tuple(losses.shape)} for {len(sample_ids)} samples; give one "
                'loss for each, as reduction="none" does'
            )
        self._take(sample_ids, losses, None)

    def write_tokens(
        self,
        sample_ids: Int64[Tensor, " batch"],
        losses: Float[Tensor, "..."],
        mask: Bool[Tensor, "..."],
    ) -> None:
        """Add the losses of the tokens of a batch of samples; they become float32.

        Args:
            losses: shape (batch, length), as `drrho.steering.token_losses` returns them.
            mask: shape (batch, length); tokens that count. The others are not stored.

        Raises:
            IndexError: an id is not in the manifest.
            ValueError: the shapes do not fit, the writer is of samples, or it is closed.
        """
        self._require("token", "write")
        if losses.ndim != 2 or losses.shape != mask.shape or len(losses) != len(sample_ids):
            raise ValueError(
                f"losses has shape {tuple(losses.shape)} and mask {tuple(mask.shape)} for "
                f"{len(sample_ids)} samples; both must be ({len(sample_ids)}, length)"
            )
        self._take(sample_ids, losses, mask.cpu())

    def flush(self) -> None:
        """Write the losses that are in memory."""
        started = time.monotonic()
        for shard in list(self._pending):
            self._save(shard)
        ended = time.monotonic()
        pause = max(SECONDS_BETWEEN_FLUSHES, (ended - started) / FLUSHING_SHARE)
        self._next_flush = ended + pause

    def _take(
        self,
        sample_ids: Int64[Tensor, " batch"],
        losses: Float[Tensor, "batch ..."],
        mask: Bool[Tensor, "batch length"] | None,
    ) -> None:
        losses = losses.detach().to("cpu", torch.float32)
        for part in locate(sample_ids, self._offsets):
            values, lengths = losses[part.places], None
            if mask is not None:
                counted = mask[part.places]
                values, lengths = values[counted], counted.sum(dim=1).tolist()
            self._pending[part.shard].append(_Given(part.rows, values, lengths))
            written = self._written[part.shard]
            was_complete = bool(written.all())
            written[part.rows] = True
            if written.all() and not was_complete:
                self._save(part.shard)
        if time.monotonic() >= self._next_flush:
            self.flush()

    def _save(self, shard: int) -> None:
        entry = self._entries[shard]
        before = load_losses_so_far(self._files, entry, unit=self._unit)
        save_losses(self._files, entry, _joined(before, self._pending[shard]))
        del self._pending[shard]  # only now: an interruption loses nothing

    def _write_empty_shards(self) -> None:
        """Write empty shards, so that missing losses are recorded explicitly."""
        for entry in self._entries:
            if not self._files.exists(entry):
                none = ShardLosses.none_of(entry.num_samples, unit=self._unit)
                save_losses(self._files, entry, none)

    def _require(self, unit: LossUnit, other: str) -> None:
        if self._closed:
            raise ValueError("the writer is closed; write inside its `with` block")
        if self._unit != unit:
            raise ValueError(
                f"this writer was opened for one loss for each {self._unit}; use {other}, or open "
                f'it with unit="{unit}"'
            )


class _Given(NamedTuple):
    """Losses of some rows of a shard, concatenated; for tokens also the number of each row."""

    rows: Tensor
    losses: Tensor
    lengths: list[int] | None


def _refuse_equal_shards(manifest: Manifest) -> None:
    """Raise on shards of equal contents, which would overwrite each other."""
    known: dict[tuple[int, str, str], str] = {}
    for shard in manifest.shards:
        other = known.setdefault(shard.contents, shard.url)
        if other != shard.url:
            raise ValueError(
                f"{other} and {shard.url} hold the same samples, whose losses could not be told "
                "apart; list a shard once, or give manifest_of_items bytes that differ between "
                "items, such as the label or the position too"
            )


def _begin(path: Path, wanted: LossCard, manifest: Manifest) -> LossCard:
    """Write the card of the folder, before anything else, or read and extend it."""
    card = wanted
    if LOSS_CARDS.exists(path):
        found = LOSS_CARDS.load(path)
        if (found.identity, found.unit) != (wanted.identity, wanted.unit):
            raise ValueError(
                f"{path} holds losses of {found.identity!r}, one for each {found.unit}, not of "
                f"{wanted.identity!r}, one for each {wanted.unit}; choose another reference name, "
                "or remove this folder"
            )
        known = {entry.contents for entry in found.shards}
        added = [shard for shard in manifest.shards if shard.contents not in known]
        if not added:
            return found
        card = replace(found, shards=(*found.shards, *entries_of(added, found=found.shards)))
    LOSS_CARDS.save(card, path)
    return card


def _joined(before: ShardLosses, given: list[_Given]) -> ShardLosses:
    """Merge a shard with the losses given since; a later loss of a row replaces an earlier one."""
    written = before.written.clone()
    for part in given:
        written[part.rows] = True
    if before.offsets is None:
        losses = before.losses.clone()
        for part in given:
            losses[part.rows] = part.losses
        return ShardLosses(losses=losses, written=written, offsets=None)
    tokens = list(before.losses.split(before.offsets.diff().tolist()))
    for part in given:
        assert part.lengths is not None
        for row, piece in zip(part.rows.tolist(), part.losses.split(part.lengths), strict=True):
            tokens[row] = piece
    lengths = torch.tensor([0, *map(len, tokens)])
    losses = torch.cat([torch.empty(0), *tokens])
    return ShardLosses(losses=losses, written=written, offsets=lengths.cumsum(0))
