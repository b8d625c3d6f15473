"""Places of the samples in a shard, row by row, and the files of each sample.

With the sizes of its files a sample is read by one range of bytes, without parsing the headers of a
tar file.
"""

import json
from collections.abc import Collection, Sequence
from itertools import accumulate
from pathlib import Path
from tarfile import BLOCKSIZE
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Int32, Int64, UInt8
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from drrho.runtime.files import parse_json, require_regular

# The extensions of a sample's files, in their order.
Shape = tuple[str, ...]
Files = list[tuple[str, int]]  # extension and bytes of each
NO_SHAPE = 255  # of a row whose files are found by parsing its headers
COLUMNS = {"start": torch.int64, "size": torch.int32, "checksum": torch.int32}
SHAPES = "shapes"  # in the head of the file of rows, for each shard
MOST_FILES = 64  # of a sample, so that the head stays small


class Spans(NamedTuple):
    """Byte ranges of the samples of a shard, row by row, and each one's `RawSample.checksum`."""

    start: Int64[Tensor, " rows"]
    size: Int32[Tensor, " rows"]
    checksum: Int32[Tensor, " rows"]

    def ranges(self, rows: Sequence[int]) -> list[tuple[int, int]]:
        """Return the byte ranges of rows, the ends excluded."""
        wanted = list(rows)
        starts = self.start.numpy()[wanted]
        ends = starts + self.size.numpy()[wanted]
        return list(zip(starts.tolist(), ends.tolist(), strict=True))


class Members(NamedTuple):
    """The files of the samples of a shard, row by row.

    A file is a header of 512 bytes and its content, filled to whole blocks of 512, and the next one
    follows: sizes give all places.

    Attributes:
        shape: number of the row's extensions in `shapes`, or `NO_SHAPE`.
        size: bytes of each file.
        shapes: extensions of a sample's files, at most 255 kinds.
    """

    shape: UInt8[Tensor, " rows"]
    size: Int32[Tensor, " files"]
    shapes: tuple[Shape, ...]

    @classmethod
    def collect(cls, samples: Sequence[dict[str, int] | None]) -> "Members":
        """Collect the sizes by extension of each sample; None for one that must be parsed."""
        shapes: dict[Shape, int] = {}
        numbers: list[int] = []
        sizes: list[int] = []
        for files in samples:
            shape = () if files is None or len(files) > MOST_FILES else tuple(files)
            if shape and len(shapes) < NO_SHAPE:
                shapes.setdefault(shape, len(shapes))
            numbers.append(shapes.get(shape, NO_SHAPE))
            if files is not None and shape in shapes:
                sizes += files.values()
        kinds = torch.tensor(numbers, dtype=torch.uint8)
        return cls(kinds, torch.tensor(sizes, dtype=torch.int32), tuple(shapes))

    def of_rows(self, rows: Sequence[int]) -> list[Files | None]:
        """List the files of some rows; None for one that must be parsed."""
        shapes, wanted = self.shape.numpy(), list(rows)
        ends = np.cumsum(_num_files(self.shapes)[shapes])[wanted].tolist()
        found: list[Files | None] = []
        for number, end in zip(shapes[wanted].tolist(), ends, strict=True):
            if number == NO_SHAPE:
                found.append(None)
                continue
            shape = self.shapes[number]
            sizes = self.size.numpy()[end - len(shape) : end].tolist()
            found.append(list(zip(shape, sizes, strict=True)))
        return found


def needed_places(files: Files, wanted: Collection[str]) -> list[tuple[str, int, int]]:
    """Return extension, first and last byte of each wanted file, from the start of the sample."""
    places, at = [], 0
    for extension, size in files:
        at += BLOCKSIZE
        if extension in wanted:
            places.append((extension, at, at + size))
        at += -(-size // BLOCKSIZE) * BLOCKSIZE
    return places


def save_rows(rows: Sequence[tuple[Spans, Members | None]]) -> bytes:
    """Serialise the rows of shards, one behind the other."""
    columns = {name: torch.cat([getattr(span, name) for span, _ in rows]) for name in COLUMNS}
    found = [members or Members.collect([None] * len(spans.start)) for spans, members in rows]
    columns["shape"] = torch.cat([members.shape for members in found])
    columns["file_size"] = torch.cat([members.size for members in found])
    return save(columns, {SHAPES: json.dumps([members.shapes for members in found])})


def load_rows(path: Path, counts: Sequence[int]) -> list[tuple[Spans, Members | None]]:
    """Map the file of rows into memory and give each shard its part, in order.

    Args:
        counts: number of rows of each shard.

    Raises:
        ValueError: the file has other columns, or others than these rows.
        FileNotFoundError: there is no such file.
    """
    require_regular(path)  # or opening a pipe would wait for a writer
    with safe_open(path, framework="pt") as file:
        names = set(file.keys())
        if missing := set(COLUMNS) - names:
            raise ValueError(f"{path} has no {missing.pop()}")
        spans = Spans(*(file.get_tensor(name) for name in COLUMNS))
        shapes = (file.metadata() or {}).get(SHAPES)
        files = None
        if shapes is not None:  # None: a manifest of an earlier version
            if not {"shape", "file_size"} <= names:
                raise ValueError(f"{path} has no files of the samples")
            files = file.get_tensor("shape"), file.get_tensor("file_size")
    kinds = {name: (column.dtype, column.ndim) for name, column in zip(COLUMNS, spans, strict=True)}
    lengths = {len(column) for column in spans if column.ndim}
    if kinds != {name: (kind, 1) for name, kind in COLUMNS.items()} or len(lengths) > 1:
        raise ValueError(f"{path} has columns of other types or lengths")
    if sum(counts) != len(spans.start):
        raise ValueError(f"{path} has {len(spans.start)} rows, and its shards {sum(counts)}")
    parts = [
        Spans(*columns) for columns in zip(*(c.split(list(counts)) for c in spans), strict=True)
    ]
    if shapes is None or files is None:
        return [(part, None) for part in parts]
    return list(zip(parts, _members(path, shapes, *files, counts=counts), strict=True))


def _members(
    path: Path, text: str, shape: Tensor, size: Tensor, *, counts: Sequence[int]
) -> list[Members]:
    shapes = _parse_shapes(parse_json(text.encode()), num_shards=len(counts))
    if (shape.dtype, size.dtype) != (torch.uint8, torch.int32) or shapes is None:
        raise ValueError(f"{path} describes the files of samples otherwise")
    if shape.shape != (sum(counts),) or size.ndim != 1:
        raise ValueError(f"{path} has the files of {len(shape)} samples, of {sum(counts)}")
    numbers = shape.split(list(counts))
    for one, known in zip(numbers, shapes, strict=True):
        if bool(((one >= len(known)) & (one != NO_SHAPE)).any()):
            raise ValueError(f"{path} has a sample of an unknown kind")
    lengths = [
        int(_num_files(known)[one.numpy()].sum())
        for one, known in zip(numbers, shapes, strict=True)
    ]
    if sum(lengths) != len(size) or (len(size) > 0 and int(size.min()) < 0):
        raise ValueError(f"{path} has the sizes of {len(size)} files, of {sum(lengths)}")
    ends = accumulate(lengths)
    return [
        Members(one, size[end - length : end], known)
        for one, length, end, known in zip(numbers, lengths, ends, shapes, strict=True)
    ]


def _parse_shapes(found: object, *, num_shards: int) -> list[tuple[Shape, ...]] | None:
    """Return the shapes of each shard; None if they are something else."""
    if not isinstance(found, list) or len(found) != num_shards:
        return None
    for shapes in found:
        if not isinstance(shapes, list) or len(shapes) > NO_SHAPE:
            return None
        for shape in shapes:
            if not isinstance(shape, list) or not 1 <= len(shape) <= MOST_FILES:
                return None
            if not all(isinstance(extension, str) for extension in shape):
                return None
    return [tuple(map(tuple, shapes)) for shapes in found]


def _num_files(shapes: Sequence[Shape]) -> np.ndarray:
    """Count the files of each shape, by its number; none of `NO_SHAPE`."""
    counts = np.zeros(NO_SHAPE + 1, np.int64)
    counts[: len(shapes)] = [len(shape) for shape in shapes]
    return counts
