"""What every foreign format is turned into: a table of pairs of embeddings, each with a key."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Float32
from torch import Tensor

from drrho.data.manifest import Shard
from drrho.data.reading.shards import RawSample, UnusableSample, decode_metadata

HASH_CHUNK = 1 << 24  # bytes read at once


@runtime_checkable
class Digest(Protocol):
    """What hashlib's hashes have in common."""

    def update(self, content: bytes, /) -> None: ...


class EmbeddingPairs(NamedTuple):
    """Embeddings as they were stored, of any norm; finite or not.

    Attributes:
        image, text: in float32.
    """

    image: Float32[Tensor, "rows dim"]
    text: Float32[Tensor, "rows dim"]


@runtime_checkable
class Table(Protocol):
    """Rows of embeddings."""

    @property
    def embedding_dim(self) -> int:
        """The dimension d."""
        ...

    def read(self, rows: Sequence[int]) -> EmbeddingPairs:
        """Some rows, in the order asked for."""
        ...

    def place(self, row: int) -> str:
        """Where a row lies, for messages."""
        ...

    def hash_into(self, digest: Digest) -> None:
        """Hashes what is imported."""
        ...


@runtime_checkable
class Source(Protocol):
    """Embeddings that another program stored: a table, and a key for each of its rows."""

    @property
    def table(self) -> Table: ...

    @property
    def settings(self) -> dict[str, str]:
        """What was chosen of it, as text; it becomes a part of the model's identity."""
        ...

    @property
    def key_noun(self) -> str:
        """What the keys are, for messages and reasons."""
        ...

    def keys(self) -> Iterator[str]:
        """The key of each row, in order."""
        ...

    def key_of(self, shard: Shard, sample: RawSample) -> str | None:
        """The key that the row of a sample of the data set must have; None if it can have none."""
        ...


class ArrayPair(NamedTuple):
    """Two arrays on disk, mapped into memory where the format allows it."""

    image: Float[np.ndarray, "rows dim"]
    text: Float[np.ndarray, "rows dim"]


@dataclass(frozen=True, kw_only=True)
class ArrayFile:
    """One of the files (or sets of files) that a table of arrays consists of.

    Attributes:
        name: for messages.
        paths: what is hashed.
        num_rows: of both arrays.
        open: maps the arrays. It is called for every read: a table may have more files than a
            process may have open.
    """

    name: str
    paths: tuple[Path, ...]
    num_rows: int
    open: Callable[[], ArrayPair]


@dataclass(frozen=True, kw_only=True)
class ArrayTable:
    """Arrays in several files, read as one table.

    Attributes:
        files: in the order that gives the rows their numbers.
        embedding_dim: d.
    """

    files: tuple[ArrayFile, ...]
    embedding_dim: int
    _offsets: np.ndarray = field(init=False, repr=False)

    def __post_init__(self):
        offsets = accumulate((file.num_rows for file in self.files), initial=0)
        object.__setattr__(self, "_offsets", np.array(list(offsets)))

    def read(self, rows: Sequence[int]) -> EmbeddingPairs:
        """Some rows, in the order asked for."""
        wanted = np.asarray(rows, dtype=np.int64)
        found = np.empty((2, len(wanted), self.embedding_dim), dtype=np.float32)
        file_of = np.searchsorted(self._offsets, wanted, side="right") - 1
        for number in np.unique(file_of).tolist():
            places = np.flatnonzero(file_of == number)
            inside = wanted[places] - self._offsets[number]
            for into, array in zip(found, self.files[number].open(), strict=True):
                into[places] = array[inside]
        return EmbeddingPairs(*torch.from_numpy(found))

    def place(self, row: int) -> str:
        """Which row of which file a row of the table is."""
        number = int(np.searchsorted(self._offsets, row, side="right")) - 1
        return f"row {row - self._offsets[number]} of {self.files[number].name}"

    def hash_into(self, digest: Digest) -> None:
        """Hashes names and contents of all files, in order."""
        for file in self.files:
            for path in file.paths:
                hash_file(path, digest)


def hash_file(path: Path, digest: Digest) -> None:
    """Hashes the name, the size and the contents of a file."""
    digest.update(f"{path.name} {path.stat().st_size}\n".encode())
    with path.open("rb") as file:
        while chunk := file.read(HASH_CHUNK):
            digest.update(chunk)


def require_pair(name: str, image: Any, text: Any, *, num_rows: int | None = None) -> None:
    """Checks what the shapes of two arrays promise.

    Args:
        name: of the file, for messages.
        image, text: the arrays or tensors, of any kind.
        num_rows: how many rows there must be; None for any number.

    Raises:
        ValueError: they are no two tables of one shape, or have another number of rows.
    """
    shapes = tuple(image.shape), tuple(text.shape)
    if len(shapes[0]) != 2 or shapes[0] != shapes[1]:
        raise ValueError(
            f"{name}: image and text embeddings must be two arrays of one shape (rows, d), they "
            f"have the shapes {shapes[0]} and {shapes[1]}"
        )
    if num_rows is not None and shapes[0][0] != num_rows:
        raise ValueError(
            f"{name}: there are {shapes[0][0]} rows of embeddings for {num_rows} rows of keys, so "
            "one of the files is incomplete or belongs to another; fetch them again"
        )


def one_dimension(dimensions: dict[str, int]) -> int:
    """The d that all files have.

    Args:
        dimensions: d of each file, by its name.

    Raises:
        ValueError: two differ.
    """
    (first, dim), *others = dimensions.items()
    for name, other in others:
        if other != dim:
            raise ValueError(
                f"{name} has embeddings of {other} dimensions, {first} of {dim}: they are of two "
                "models; import each from a folder of its own"
            )
    return dim


def json_field(sample: RawSample, name: str) -> str | None:
    """A field of the sample's json as text; None without one."""
    try:
        value = decode_metadata(sample).get(name)
    except UnusableSample:
        return None
    return None if value is None else str(value)
