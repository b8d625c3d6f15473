"""Tables of embeddings with a key for each row, which every foreign format is read as."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float

from drrho.contrastive.pairs import PairEmbeddings
from drrho.data.manifest import Shard
from drrho.data.reading.shards import RawSample, UnusableSample, decode_metadata

HASH_CHUNK = 1 << 24  # bytes read at once


@runtime_checkable
class Table(Protocol):
    """Rows of embeddings in files."""

    @property
    def embedding_dim(self) -> int:
        """The dimension d."""
        ...

    def read(self, rows: Sequence[int]) -> PairEmbeddings:
        """Read some rows, in the order asked for; of any norm, finite or not."""
        ...

    def place(self, row: int) -> str:
        """Describe the place of a row, for messages."""
        ...

    def contents(self) -> Iterator[bytes]:
        """Yield what is imported, piece by piece, to be hashed."""
        ...


@dataclass(frozen=True, kw_only=True)
class Source:
    """Embeddings that another program stored: a table, and a key for each of its rows.

    Each format is a dataclass of its options, whose `open(manifest)` makes a source. It raises
    FileNotFoundError for a missing file, ModuleNotFoundError without the package that reads it,
    and ValueError for a file that is damaged or does not fit another.

    Attributes:
        settings: options of the format, as text; they become a part of the model's identity.
        key_noun: what the keys are, for messages and reasons.
        keys: lists the key of each row, in order.
        key_of: gives the key of a sample's row; None if it can have none.
        joined: counts samples by how their key was found, where there are several ways.
    """

    table: Table
    settings: dict[str, str]
    key_noun: str
    keys: Callable[[], Iterable[str]]
    key_of: Callable[[Shard, RawSample], str | None]
    joined: Counter[str] = field(default_factory=Counter)


class ArrayPair(NamedTuple):
    """Image and text embeddings on disk, mapped into memory where the format allows it."""

    image: Float[np.ndarray, "rows dim"]
    text: Float[np.ndarray, "rows dim"]


@dataclass(frozen=True, kw_only=True)
class ArrayFile:
    """One file, or set of files, of a table of arrays.

    Attributes:
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
    """

    files: tuple[ArrayFile, ...]
    embedding_dim: int
    _offsets: np.ndarray = field(init=False, repr=False)

    def __post_init__(self):
        offsets = accumulate((file.num_rows for file in self.files), initial=0)
        object.__setattr__(self, "_offsets", np.array(list(offsets)))

    @classmethod
    def of(cls, files: Iterable[ArrayFile]) -> "ArrayTable":
        """Make the table of some files, all of embeddings of one dimension."""
        files = tuple(files)
        dim = files[0].open().image.shape[1]
        for file in files:
            if (other := file.open().image.shape[1]) != dim:
                raise ValueError(
                    f"{file.name} has embeddings of {other} dimensions, {files[0].name} of {dim}: "
                    "they are of two models; import each from a folder of its own"
                )
        return cls(files=files, embedding_dim=dim)

    def read(self, rows: Sequence[int]) -> PairEmbeddings:
        wanted = np.asarray(rows, dtype=np.int64)
        found = np.empty((2, len(wanted), self.embedding_dim), dtype=np.float32)
        file_of = np.searchsorted(self._offsets, wanted, side="right") - 1
        for number in np.unique(file_of).tolist():
            places = np.flatnonzero(file_of == number)
            inside = wanted[places] - self._offsets[number]
            for into, array in zip(found, self.files[number].open(), strict=True):
                into[places] = array[inside]
        return PairEmbeddings(*torch.from_numpy(found))

    def place(self, row: int) -> str:
        number = int(np.searchsorted(self._offsets, row, side="right")) - 1
        return f"row {row - self._offsets[number]} of {self.files[number].name}"

    def contents(self) -> Iterator[bytes]:
        for path in (path for file in self.files for path in file.paths):
            yield f"{path.name} {path.stat().st_size}\n".encode()
            with path.open("rb") as content:
                while chunk := content.read(HASH_CHUNK):
                    yield chunk


def require_pair(name: str, image: Any, text: Any, *, num_rows: int | None = None) -> None:
    """Raise ValueError unless two arrays have one shape (rows, d), and `num_rows` if given."""
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


def find_files(folder: Path, pattern: str, *, remedy: str) -> list[Path]:
    """List the files of a folder that match a pattern, sorted; at least one."""
    paths = sorted(folder.glob(pattern))
    if not paths:
        name = pattern.removeprefix("**/").removeprefix("*")
        raise FileNotFoundError(f"{folder} holds no {name} file; {remedy}")
    return paths


def json_field(sample: RawSample, name: str) -> str | None:
    """Return a field of the sample's json as text; None without one."""
    try:
        value = decode_metadata(sample).get(name)
    except UnusableSample:
        return None
    return None if value is None else str(value)
