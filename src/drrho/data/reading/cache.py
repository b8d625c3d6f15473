"""Random access to samples by id."""

import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, TypeVar

import numpy as np

from drrho.data.manifest import UPRIGHT, Manifest, Shard
from drrho.data.reading.layout import Layout
from drrho.data.reading.shards import (
    RawSample,
    UnusableSample,
    cut_sample,
    parse_sample,
    read_range,
    renamed,
)
from drrho.data.reading.sources import Rows, open_rows
from drrho.data.reading.storage import FileState, OpenFiles, file_state
from drrho.runtime.errors import without_secrets
from drrho.runtime.records import from_json

Decoded = TypeVar("Decoded")
OPEN_FILES = 64
REMEDY = (
    "if the shard is right as it is now, remove the manifest, run `drrho index` again, and compute "
    "its reference again"
)


class OpenShards:
    """Samples of a data set by id: read, compared with the manifest and parsed, but not decoded.

    A sample is read at its place in the shard, so memory holds no more than a batch (and of tables
    the paths and captions), and processes that share out a batch share out the reading too.
    """

    def __init__(self, manifest: Manifest):
        self._manifest = manifest
        self._files = OpenFiles(capacity=OPEN_FILES)
        self._states: dict[int, FileState] = {}
        self._sources: dict[int, Rows] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {"manifest": self._manifest}  # a worker opens files and tables of its own

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)

    def read(self, sample_ids: list[int]) -> list[RawSample]:
        """Read samples by id, in the order given.

        Raises:
            FileNotFoundError: a shard is not there.
            ValueError: a shard is not what it was when it was indexed, or its samples are in no
                file.
        """
        by_shard: dict[int, list[tuple[int, int]]] = {}
        for place, sample_id in enumerate(sample_ids):
            shard, row = self._manifest.locate(sample_id)
            by_shard.setdefault(shard, []).append((row, place))
        found: dict[int, RawSample] = {}
        for shard, wanted in by_shard.items():
            rows, places = zip(*sorted(wanted), strict=True)  # in the order of the file
            found |= zip(places, self._rows(shard, rows), strict=True)
        return [found[place] for place in range(len(sample_ids))]

    def sources(self, sample_ids: list[int]) -> tuple[np.ndarray, np.ndarray]:
        """Say of which files samples are, for what is kept of them.

        Returns:
            Whether a shard's size and time of change tell that it is the file of before, and a
            number for each that differs between files that these tell apart; never 0.

        Raises:
            FileNotFoundError, ValueError: as `read`.
        """
        shards = [self._manifest.locate(sample_id)[0] for sample_id in sample_ids]
        found = {index: self._source(index) for index in sorted(set(shards))}
        numbers = [found[index] for index in shards]
        sources = np.array([number or 1 for number in numbers], np.uint64)
        return np.array([number is not None for number in numbers], np.bool_), sources

    def readable(
        self,
        sample_ids: list[int],
        skipped: list[tuple[int, str]],
        *,
        decode: Callable[[RawSample], Decoded],
    ) -> Iterator[tuple[int, Decoded]]:
        """Yield the samples that decode, with their ids; the others are appended to `skipped`."""
        for sample_id, sample in zip(sample_ids, self.read(sample_ids), strict=True):
            try:
                decoded = decode(sample)
            except UnusableSample as unusable:
                skipped.append((sample_id, unusable.reason))
            else:
                yield sample_id, decoded

    def _source(self, index: int) -> int | None:
        """Return a number for the state of a shard's file; None if it has none that tells."""
        layout = self._manifest.shards[index].layout
        if layout is not None and layout.get("kind") != "tar":
            return None  # images have files of their own
        with _naming(self._manifest.shards[index]):
            state = self._state(index)
        if state.modified is None:
            return None
        return zlib.crc32(f"{state.size} {state.modified}".encode()) | 1

    def _state(self, index: int) -> FileState:
        """Return the state of a shard's file, whose size is that which was indexed."""
        if index not in self._states:
            self._states[index] = _require_size(self._manifest.shards[index])
        return self._states[index]

    def _rows(self, index: int, rows: Sequence[int]) -> Iterator[RawSample]:
        shard = self._manifest.shards[index]
        shown = without_secrets(shard.url)
        if shard.spans is None:
            raise ValueError(f"the samples of {shown} lie in no file that could be read")
        with _naming(shard):
            samples = self._read(index, rows)
        checksums = shard.spans.checksum.numpy()[list(rows)].tolist()
        for row, sample, checksum in zip(rows, samples, checksums, strict=True):
            if sample is None or sample.checksum != checksum:
                raise ValueError(
                    f"shard {shown} has another image, caption or key in row {row} than when "
                    f"it was indexed; {REMEDY}"
                )
            yield replace(sample, upright=True) if shard.decoding >= UPRIGHT else sample

    def _read(self, index: int, rows: Sequence[int]) -> list[RawSample | None]:
        shard = self._manifest.shards[index]
        layout = None
        if shard.layout is not None:
            where = f"the layout of {without_secrets(shard.url)}"
            layout = from_json(Layout, shard.layout, where=where, strict=True)
        if layout is None or layout.kind == "tar":
            self._state(index)
            return self._read_tar(shard, rows, layout)
        if index not in self._sources:
            self._sources[index] = open_rows(shard.url, layout)
        source = self._sources[index]
        return [source[row] if row < source.num_rows else None for row in rows]

    def _read_tar(
        self, shard: Shard, rows: Sequence[int], layout: Layout | None
    ) -> list[RawSample | None]:
        """Read rows of a tar file: by the places of their files where the manifest has them."""
        assert shard.spans is not None
        files = [None] * len(rows) if shard.members is None else shard.members.of_rows(rows)
        plans = [None if one is None else read_range(one, layout) for one in files]
        ranges = [
            (start, end if plan is None else min(end, start + plan[0]))
            for (start, end), plan in zip(shard.spans.ranges(rows), plans, strict=True)
        ]
        if outside := [r for r in ranges if not 0 <= r[0] <= r[1] <= (shard.size or 0)]:
            raise ValueError(
                f"the manifest of {without_secrets(shard.url)} places a sample at bytes "
                f"{outside[0]} of {shard.size}: it is damaged; {REMEDY}"
            )
        found = [
            parse_sample(content, row=row)
            if plan is None
            else cut_sample(content, plan[1], row=row)
            for row, content, plan in zip(
                rows, self._files.read(shard.url, ranges), plans, strict=True
            )
        ]
        if layout is None:
            return found
        return [None if sample is None else renamed(sample, layout) for sample in found]


@contextmanager
def _naming(shard: Shard) -> Iterator[None]:
    """Name the shard in the error of a file that is not there."""
    try:
        yield
    except FileNotFoundError:
        raise FileNotFoundError(
            f"shard {without_secrets(shard.url)} does not exist. If the data moved, run `drrho "
            "index` again"
        ) from None


def _require_size(shard: Shard) -> FileState:
    state = file_state(shard.url)
    size = state.size
    if size != shard.size:
        raise ValueError(
            f"shard {without_secrets(shard.url)} has {size:,} bytes, and had {shard.size} when "
            f"it was indexed; {REMEDY}"
        )
    return state
