"""Random damage of valid files, and what every reader owes: an error of ours, or the right value.

A `Reader` says which files it reads and how. `check` damages one of them, reads, and puts it back.
The memory and the time of one reading are bounded: a header that claims terabytes is no reason to
allocate them. `tests/test_damage.py` has the readers.
"""

import contextlib
import json
import os
import resource
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from drrho.runtime.errors import USER_ERRORS

MEMORY, SECONDS = 500 * 2**20, 5
Damage = Callable[[bytes], bytes]
# What stands in the place of a value: other types, signs, sizes, and what a path must not be.
ODD = (
    *(None, True, -1, 0, 1.5, 2**31, 2**63, 10**30, 1e308, float("nan"), float("-inf")),
    *("", "0", "x" * 300, "../../x", "/dev/zero", "\x00", "é\ud800"),
    *([], {}, [[]], [None], {"": None}, ["a", 1, None], {"method": "none"}),
)
NESTED, DEPTH = "@nested@", 100_000


class TookTooLong(BaseException):
    """Reading did not end in time; not an Exception, so that no reader catches it."""


@dataclass(frozen=True)
class Reader:
    """A reader of files.

    Attributes:
        read: reads the folder that it is given, and returns something that can be compared.
        files: patterns of the files that it reads.
        exact: whether what damage does cannot be right by chance: there is a checksum, or all that
            the reader returns is of another file.
    """

    read: Callable[[Path], Any]
    files: tuple[str, ...]
    exact: bool = False


def _place(size: int, share: float) -> int:
    return min(size - 1, int(share * size))


def _truncated(share: float) -> Damage:
    return lambda data: data[: _place(len(data), share)]


def _flipped(share: float, bit: int) -> Damage:
    def flip(data: bytes) -> bytes:
        place = _place(len(data), share)
        return data[:place] + bytes([data[place] ^ 1 << bit]) + data[place + 1 :]

    return flip


def _written_over(share: float, block: bytes) -> Damage:
    def write(data: bytes) -> bytes:
        place = _place(len(data), share)
        return (data[:place] + block + data[place + len(block) :])[: len(data)]

    return write


def _moved(share: float, other: float, length: int) -> Damage:
    def move(data: bytes) -> bytes:
        start, to = _place(len(data), share), _place(len(data), other)
        return _written_over(other, data[start : start + length])(data) if start != to else data

    return move


def _extended(block: bytes) -> Damage:
    return lambda data: data + block


def _in_json(share: float, change: str, value: Any, *, lines: bool) -> Damage:
    """Change one value somewhere in a JSON document, or in one line of several documents."""

    def damage(data: bytes) -> bytes:
        rows = [json.loads(line) for line in data.splitlines()] if lines else [json.loads(data)]
        places = [place for row in rows for place in _places(row)]
        holder, name = places[_place(len(places), share)]
        match change:
            case "value":
                holder[name] = value
            case "removed":
                del holder[name]
            case "exchanged":
                other, key = places[_place(len(places), 1 - share)]
                holder[name], other[key] = other[key], holder[name]
            case "nested":
                holder[name] = NESTED
        text = "\n".join(map(json.dumps, rows))
        return text.replace(f'"{NESTED}"', "[" * DEPTH + "]" * DEPTH).encode()

    return damage


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    if isinstance(value, dict | list):
        for name in list(value) if isinstance(value, dict) else range(len(value)):
            yield value, name
            yield from _places(value[name])


SHARE = st.floats(0, 1, exclude_max=True)
BYTES = st.one_of(
    st.builds(_truncated, SHARE),
    st.builds(_flipped, SHARE, st.integers(0, 7)),
    st.builds(_written_over, SHARE, st.integers(1, 4096).map(bytes)),  # a hole: zeros
    st.builds(_written_over, SHARE, st.binary(min_size=1, max_size=16)),
    st.builds(_moved, SHARE, SHARE, st.integers(1, 512)),
    st.builds(_extended, st.binary(min_size=1, max_size=64)),
    st.just(lambda data: b""),
)
CHANGES = st.sampled_from(["value", "value", "value", "removed", "exchanged", "nested"])


def damages(path: Path) -> st.SearchStrategy[Damage]:
    """Damage of a file: of its bytes, and of the values where it is JSON."""
    if path.suffix not in {".json", ".jsonl"}:
        return BYTES
    lines = path.suffix == ".jsonl"
    values = st.builds(_in_json, SHARE, CHANGES, st.sampled_from(ODD), lines=st.just(lines))
    return st.one_of(values, values, BYTES)


def check(reader: Reader, folder: Path, path: Path, damage: Damage, *, right: Any) -> None:
    """Damage a file, read, and put it back.

    Raises:
        AssertionError: what was read is wrong.
        Exception: one that is no error of ours, which names the reader's fault.
    """
    whole = path.read_bytes()
    _replace(path, damage(whole))
    try:
        with limited():
            found = reader.read(folder)
    except (*USER_ERRORS,):
        return
    finally:
        _replace(path, whole)
    assert not reader.exact or found == right, f"{path.name} is damaged, and what was read is wrong"


def _replace(path: Path, data: bytes) -> None:
    """Write a new file, so that what is mapped of the old one stays as it was."""
    beside = path.with_name(f"{path.name}.beside")
    beside.write_bytes(data)
    beside.replace(path)


@contextlib.contextmanager
def limited() -> Iterator[None]:
    """Bound the memory that the block allocates, on Linux, and its time."""

    def stop(*_: object) -> None:
        raise TookTooLong(f"not done after {SECONDS} s")

    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    status = Path("/proc/self/status")
    if status.is_file():
        (used,) = (line for line in status.read_text().splitlines() if line.startswith("VmData"))
        resource.setrlimit(resource.RLIMIT_DATA, (int(used.split()[1]) * 1024 + MEMORY, hard))
    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))


def budget() -> float:
    """Seconds of the long run of all readers (`make damage`); 0 in an ordinary run of the tests."""
    return float(os.environ.get("DRRHO_DAMAGE_SECONDS", "0"))
