"""Files that are whole: a reader finds the old content or the new, never a part."""

import hashlib
import json
import os
import re
import stat
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

PARTIAL_SUFFIX = ".partial"
CHECKSUM_NAME = "sha256"  # the last name in an object; covers all that comes before it
CHECKSUM = b',\n "sha256": "%s"\n}\n'
MOST_LEVELS = 50
URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")  # a scheme of one letter would be a drive


@contextmanager
def opened_atomically(path: Path) -> Iterator[BinaryIO]:
    """Open a file to write, which readers find absent, whole and old, or whole and new.

    The content is on the disk before it has its name, and the name before this returns. A killed
    process leaves a hidden file that ends in `PARTIAL_SUFFIX`. The folder is made if need be.

    Raises:
        IsADirectoryError: a folder has the file's name.
    """
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder, not a file to write; name a file in it")
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex}{PARTIAL_SUFFIX}")
    try:
        with partial.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    _sync_folder(path.parent)


def write_atomically(path: Path, content: bytes) -> None:
    """Write a whole file, as `opened_atomically`."""
    with opened_atomically(path) as file:
        file.write(content)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write plain data as indented JSON, as `opened_atomically`."""
    write_atomically(path, (json.dumps(content, indent=1) + "\n").encode())


def write_checked_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write plain data as `write_json`, with a checksum in the last line."""
    body = json.dumps(content, indent=1).encode().removesuffix(b"\n}")
    checksum = hashlib.sha256(body).hexdigest().encode()
    write_atomically(path, body + CHECKSUM % checksum)


def require_checksum(content: bytes, found: Any) -> None:
    """Raise ValueError if JSON that has a checksum in its last line is not what was written.

    Args:
        content: the bytes of the file.
        found: what they were parsed to.
    """
    checksum = found.get(CHECKSUM_NAME) if isinstance(found, dict) else None
    if checksum is None:  # as in files of earlier versions
        return
    body = content.removesuffix(CHECKSUM % str(checksum).encode(errors="replace"))
    if body == content or hashlib.sha256(body).hexdigest() != checksum:
        raise ValueError(
            f"it has changed since it was written; if that was meant, remove {CHECKSUM_NAME!r}"
        )


def require_regular(path: str | Path, *, most: int | None = None) -> os.stat_result:
    """Return the status of a regular file, before anything is read of it.

    Folders, pipes, sockets and devices are refused: reading them may never end, and what they hold
    has no size.

    Args:
        most: the largest size in bytes that is accepted.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no regular file, or larger.
    """
    status = os.stat(path)
    if not stat.S_ISREG(status.st_mode):
        kinds = {stat.S_IFDIR: "folder", stat.S_IFIFO: "pipe", stat.S_IFSOCK: "socket"}
        kind = kinds.get(stat.S_IFMT(status.st_mode), "device")
        raise ValueError(f"{path} is a {kind}, not a regular file; name a file")
    if most is not None and status.st_size > most:
        raise ValueError(
            f"{path} has {status.st_size:,} bytes, and at most {most:,} are read of such a file"
        )
    return status


def read_regular(path: str | Path, *, most: int) -> bytes:
    """Read a whole regular file; errors as `require_regular`."""
    require_regular(path, most=most)
    return Path(path).read_bytes()


def parse_json(content: bytes, *, strict: bool = False) -> Any:
    """Parse JSON.

    Args:
        strict: whether what our own files never hold is an error too: a name twice in an object,
            half a surrogate pair, and more than 50 levels.

    Raises:
        ValueError: the content is no JSON, or nested too deeply.
    """
    try:
        if not strict:
            return json.loads(content)
        parsed = json.loads(content.decode("utf-8-sig"), object_pairs_hook=_unique)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    _require_plain(parsed)
    return parsed


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the name {twice!r:.80} is there twice")
    return found


def _require_plain(content: Any) -> None:
    """Require few levels, and texts that can be written."""
    level = [content]
    for _ in range(MOST_LEVELS):
        for value in level:
            if isinstance(value, str):
                value.encode()  # UnicodeEncodeError, a ValueError, for half a surrogate pair
        level = [
            part
            for value in level
            if isinstance(value, list | dict)
            for part in (value if isinstance(value, list) else (*value, *value.values()))
        ]
        if not level:
            return
    raise ValueError(f"it is nested deeper than {MOST_LEVELS} levels")


def expand_paths(
    config: object,
    *names: str,
    outputs: tuple[str, ...] = ("output",),
    may_be_empty: bool = False,
) -> None:
    """Expand `~` in the paths of a frozen configuration, and require outputs on this machine.

    Every configuration of a command calls this first in `__post_init__`, so that a path means the
    same to all commands. A `Path` becomes a text; other values stay as they are.

    Args:
        may_be_empty: whether an output may be left to another configuration.

    Raises:
        ValueError: an output is a URL, or empty and may not be, or `~NAME` is the home of nobody.
    """
    for name in (*names, *outputs):
        value = getattr(config, name)
        several = isinstance(value, tuple)
        paths = [
            _expanded(
                os.fspath(path),
                name,
                is_output=name in outputs and not (may_be_empty and path == ""),
            )
            if isinstance(path, str | Path)
            else path
            for path in (value if several else (value,))
        ]
        object.__setattr__(config, name, tuple(paths) if several else paths[0])


def _expanded(path: str, name: str, *, is_output: bool) -> str:
    if is_output and (not path or "\0" in path or URL.match(path)):
        raise ValueError(
            f"{name} = {path!r} must be a path on this machine, where what is written can be "
            "claimed and replaced at once; write there, and copy it afterwards"
        )
    if is_output and path.startswith("$"):
        raise ValueError(f"{name} = {path!r} begins with a variable; write the path out")
    expanded = os.path.expanduser(path)
    if path.startswith("~") and expanded == path and not os.path.lexists(path):
        raise ValueError(f"{name} = {path!r} begins with the home of nobody; write the path out")
    return expanded


def require_on_this_machine(path: str | Path, what: str) -> None:
    """Raise ValueError where a path that is read as a file is a URL.

    Args:
        what: the kind of thing that is read.
    """
    if URL.match(str(path)) and not os.path.lexists(path):
        from drrho.runtime.errors import without_secrets  # noqa: PLC0415  # imports torch

        url = re.sub(r":/(?!/)", "://", str(path), count=1)  # a Path has lost a slash of it
        raise ValueError(
            f"{what} {without_secrets(url)} is a URL; it is read from this machine, where it "
            "is mapped into memory: copy it here. Shards alone are read at their URLs"
        )


def require_no_folder(argument: str, path: str) -> None:
    """Raise ValueError if a folder has the name of a file that is to be written at the end."""
    if Path(path).is_dir():
        raise ValueError(f"{argument} = {path!r} is a folder; name a file in it")


def rename_folder(folder: Path, name: Path) -> None:
    """Give a folder its final name, once what it holds is on the disk.

    Raises:
        OSError: there is a folder of that name that is not empty.
    """
    _sync_folder(folder)
    os.replace(folder, name)
    _sync_folder(name.parent)


def _sync_folder(folder: Path) -> None:
    """Make a rename survive a power failure, where folders can be flushed (not on Windows)."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
