"""Rows of bytes that processes of a machine fill together, in a file mapped into memory."""

import hashlib
import json
import mmap
import os
import zlib
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from drrho.runtime.files import PARTIAL_SUFFIX
from drrho.runtime.locks import exclusive_file

FORMAT = b"drrho cached rows 1\n"
HEAD = 4096  # bytes in front of the tags
TAG = 8  # bytes of a row's tag
ZEROS = 2**20  # bytes written at once


class MappedRows:
    """Rows of equal length, each absent or whole, that any process may fill.

    A row has a tag: what it was made from (`source`, not 0) and the CRC-32 of its bytes. It is
    written behind the row, so that a row which a killed process left half is absent; and what a
    power failure left is found by the CRC when a process reads the row for the first time.

    Args:
        path: file of the rows, made where it is missing, of another size or another identity; None
            keeps them in memory that worker processes share if they are forked.
        identity: what the rows are, as text.

    Raises:
        OSError: the file cannot be written, or the disk has no room for it.
    """

    def __init__(self, path: Path | None, *, identity: str, num_rows: int, row_bytes: int) -> None:
        self.path, self.identity = path, identity
        self.num_rows, self.row_bytes = num_rows, row_bytes
        if path is None:
            memory: Any = mmap.mmap(-1, self.file_bytes(num_rows, row_bytes))
        else:
            memory = _map(path, self._head(), self.file_bytes(num_rows, row_bytes))
        whole = np.frombuffer(memory, np.uint8)
        self._tags = whole[HEAD : HEAD + TAG * num_rows].view(np.uint64)
        start = _rounded(HEAD + TAG * num_rows)
        self._rows = whole[start : start + num_rows * row_bytes].reshape(num_rows, row_bytes)
        self._verified = np.zeros(num_rows, np.bool_)

    @staticmethod
    def file_bytes(num_rows: int, row_bytes: int) -> int:
        """Compute the size of a file."""
        return _rounded(HEAD + TAG * num_rows) + num_rows * row_bytes

    def __reduce__(self) -> tuple[Any, ...]:
        """Map the file again in a process that is not forked."""
        arguments = {"num_rows": self.num_rows, "row_bytes": self.row_bytes}
        return _reopened, (self.path, self.identity, arguments)

    def read(self, rows: np.ndarray, sources: np.ndarray, found: np.ndarray) -> np.ndarray:
        """Copy rows into `found`, an array of their bytes; return which are there.

        Args:
            sources: what each row must have been made from; 0 counts as absent.
        """
        tags = self._tags[rows]
        present = (tags >> np.uint64(32) == sources) & (sources != 0)
        places = present.nonzero()[0]
        if len(places) == len(rows):
            np.take(self._rows, rows, axis=0, out=found)
        else:
            found[places] = self._rows[rows[places]]
        for place in places[~self._verified[rows[places]]].tolist():
            if _crc(found[place]) == int(tags[place]) & 0xFFFFFFFF:
                self._verified[rows[place]] = True
            else:
                present[place] = False
        return present

    def write(self, row: int, source: int, content: np.ndarray) -> None:
        """Fill a row."""
        flat = content.reshape(-1).view(np.uint8)
        self._tags[row] = 0
        self._rows[row] = flat
        self._tags[row] = (source << 32) | _crc(flat)
        self._verified[row] = True

    def num_present(self) -> int:
        """Count the rows that are there, from whatever source."""
        return int(np.count_nonzero(self._tags))

    def _head(self) -> bytes:
        return file_head(self.identity, self.num_rows, self.row_bytes)


def file_head(identity: str, num_rows: int, row_bytes: int) -> bytes:
    """Return the first bytes of a file of rows."""
    hashed = hashlib.sha256(identity.encode(errors="surrogateescape")).hexdigest()
    described = {"identity": hashed, "rows": num_rows, "row_bytes": row_bytes}
    return FORMAT + json.dumps(described).encode()


def _reopened(path: Path | None, identity: str, arguments: Mapping[str, int]) -> MappedRows:
    return MappedRows(path, identity=identity, **arguments)


def _map(path: Path, head: bytes, size: int) -> mmap.mmap:
    """Map a file of rows, after making it where there is none that fits."""
    mapped = _map_if_fits(path, head, size)
    if mapped is None:
        with exclusive_file(path, wait=True):
            mapped = _map_if_fits(path, head, size)  # another process may have made it
            if mapped is None:
                _make(path, head, size)
                mapped = _map_if_fits(path, head, size)
    if mapped is None:
        raise OSError(f"{path} is replaced by another program while it is made")
    return mapped


def _map_if_fits(path: Path, head: bytes, size: int) -> mmap.mmap | None:
    with suppress(FileNotFoundError):
        descriptor = os.open(path, os.O_RDWR | getattr(os, "O_NONBLOCK", 0))
        try:
            fits = os.fstat(descriptor).st_size == size
            if fits and os.pread(descriptor, HEAD, 0) == head.ljust(HEAD, b"\0"):
                return mmap.mmap(descriptor, size)
        finally:
            os.close(descriptor)
    return None


def _make(path: Path, head: bytes, size: int) -> None:
    """Make a file without rows, whose room on the disk is its own: mapped memory cannot say that a
    disk is full.
    """
    partial = path.with_name(f".{path.name}{PARTIAL_SUFFIX}")
    partial.unlink(missing_ok=True)  # of a process that was killed; the caller has the lock
    try:
        with partial.open("xb") as file:
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file.fileno(), 0, size)
            else:  # as on macOS
                for start in range(0, size, ZEROS):
                    file.write(bytes(min(ZEROS, size - start)))
                file.seek(0)
            file.write(head)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def _crc(row: np.ndarray) -> int:
    return zlib.crc32(row.data)


def _rounded(size: int) -> int:
    return -(-size // mmap.PAGESIZE) * mmap.PAGESIZE
