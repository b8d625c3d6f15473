"""Reading files on local paths and behind fsspec's URLs (`s3://`, `gs://`, `https://`, ...)."""

import glob
import os
from collections import OrderedDict
from collections.abc import Sequence
from functools import partial
from itertools import accumulate
from typing import NamedTuple
from urllib.parse import urlsplit

import bracex
import fsspec

from drrho.data.reading.remote import NO_RANGES, RemoteStream, Stream, host_of, remotely
from drrho.runtime.errors import without_secrets
from drrho.runtime.files import require_regular


class FileState(NamedTuple):
    """Size in bytes and time of change of a file, to notice changes without reading it.

    Times are text as the file system has them; None where it has none.
    """

    size: int
    modified: str | None


def is_remote(url: str) -> bool:
    """Tell whether a URL names a file system, and not a local path."""
    return "://" in url


def local_path(url: str) -> str | None:
    """Return the path of a local file; None for another file system's URL."""
    if not is_remote(url):
        return url
    scheme, path = url.split("://", 1)
    return path if scheme in ("file", "local") else None


def open_file(url: str) -> Stream:
    """Open a file for reading; it is seekable.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is no regular file, the URL's file system is unknown, or its package is not
            installed.
    """
    if (path := local_path(url)) is not None:
        require_regular(path)
        return open(path, "rb")
    return RemoteStream(url)


def file_state(url: str) -> FileState:
    """Return size and time of change; errors as `open_file`."""
    if (path := local_path(url)) is not None:
        found = require_regular(path)
        # Programs can set the time of modification, but not the time of change.
        return FileState(found.st_size, f"{found.st_mtime_ns}, {found.st_ctime_ns}")
    info = remotely(url, lambda system: system.info(url))
    if not isinstance(info["size"], int):
        raise ValueError(f"{host_of(url)} does not say how large {without_secrets(url)} is")
    told = [info[name] for name in ("ETag", "etag", "LastModified", "mtime") if name in info]
    return FileState(info["size"], str(told[0]) if told else None)


def find_files(source: str) -> list[str]:
    """List the files that a path, glob or brace pattern names; matches of a glob are sorted.

    Local paths come back absolute.

    Raises:
        FileNotFoundError: a file that is named without a pattern does not exist.
        ValueError: as `open_file`.
    """
    source = os.path.expanduser(source)
    if not is_remote(source) and os.path.exists(source):
        return [os.path.abspath(source)]
    return [url for pattern in expand_braces(source) for url in _matches(pattern)]


def expand_braces(pattern: str) -> list[str]:
    """Expand `{0000..0009}`, `{a,b}` and nested braces, in the order written, as bash does.

    Raises:
        ValueError: a brace is not closed, or not opened.
    """
    depths = list(accumulate({"{": 1, "}": -1}.get(character, 0) for character in pattern))
    if depths and (min(depths) < 0 or depths[-1] != 0):
        raise ValueError(
            f"{pattern} has unbalanced braces; write them in pairs, as in x-{{0..9}}.tar"
        )
    return bracex.expand(pattern, keep_escapes=True, limit=0) or [pattern]  # of "" it gives none


def list_folder(folder: str, suffix: str) -> list[str] | None:
    """List the files in a folder with a suffix, sorted; None if it is no folder."""
    if not is_remote(folder):
        folder = os.path.expanduser(folder)
        if not os.path.isdir(folder):
            return None
        names = (name for name in os.listdir(folder) if not name.startswith("."))
        found = (name for name in names if name.lower().endswith(suffix))
        return sorted(os.path.abspath(os.path.join(folder, name)) for name in found)
    # Of a file on a web server, `isdir` would read the whole to look for links in it.
    if _has_magic(folder) or "{" in folder or urlsplit(folder).path.endswith(suffix):
        return None
    return remotely(folder, lambda system: _list_remote(system, folder, suffix))


def _list_remote(system: fsspec.AbstractFileSystem, folder: str, suffix: str) -> list[str] | None:
    if not system.isdir(folder):
        return None
    found = system.ls(folder, detail=False)
    return sorted(system.unstrip_protocol(path) for path in found if path.endswith(suffix))


class OpenFiles:
    """Reader of byte ranges that keeps at most `capacity` local files open, the last used."""

    def __init__(self, *, capacity: int):
        self._capacity = capacity
        self._descriptors: OrderedDict[str, int] = OrderedDict()
        self._with_ranges: set[str] = set()  # URLs that answer with the range asked for

    def read(self, url: str, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
        """Read byte ranges (start, end) of a file, in order; remote ones concurrently.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: as `open_file`.
        """
        if (path := local_path(url)) is None:
            return self._read_remote(url, ranges)
        descriptor = self._descriptor(path)
        return [os.pread(descriptor, end - start, start) for start, end in ranges]

    def _read_remote(self, url: str, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
        # The first range alone: a server without ranges sends the whole file for each.
        parts = [ranges] if url in self._with_ranges else [ranges[:1], ranges[1:]]
        found: list[bytes] = []
        for part in filter(None, parts):
            found += remotely(url, partial(_cat_ranges, url=url, ranges=part))
            self._with_ranges.add(url)
        return found

    def _descriptor(self, path: str) -> int:
        if path not in self._descriptors:
            if len(self._descriptors) == self._capacity:
                os.close(self._descriptors.popitem(last=False)[1])
            require_regular(path)
            self._descriptors[path] = os.open(path, os.O_RDONLY)
        self._descriptors.move_to_end(path)
        return self._descriptors[path]

    def __del__(self) -> None:
        for descriptor in self._descriptors.values():
            os.close(descriptor)


def _cat_ranges(
    system: fsspec.AbstractFileSystem, *, url: str, ranges: Sequence[tuple[int, int]]
) -> list[bytes]:
    starts, ends = map(list, zip(*ranges, strict=True))
    found = system.cat_ranges([url] * len(ranges), starts, ends, on_error="raise")
    for piece, (start, end) in zip(found, ranges, strict=True):
        if len(piece) > end - start:
            raise ValueError(f"{host_of(url)} {NO_RANGES}")
        if len(piece) < end - start:
            raise ConnectionError(f"{host_of(url)} sent {len(piece)} of {end - start} bytes")
    return found


def nothing_at(place: str) -> FileNotFoundError:
    """Make the error for a place without data."""
    return FileNotFoundError(
        f"no shards found at {without_secrets(place)}; expected a folder of .tar files or of "
        "images, a .tar, .csv or .parquet file, a glob or brace pattern, or a manifest .json"
    )


def _has_magic(url: str) -> bool:
    """Tell whether a URL is a glob pattern; the question mark of a query is none."""
    return glob.has_magic(without_secrets(url).replace("?...", ""))


def _matches(pattern: str) -> list[str]:
    if is_remote(pattern):
        if _has_magic(pattern):
            return remotely(
                pattern, lambda s: sorted(s.unstrip_protocol(str(path)) for path in s.glob(pattern))
            )
        try:
            remotely(pattern, lambda system: system.info(pattern))
        except FileNotFoundError:
            raise nothing_at(f"{pattern}, which does not exist") from None
        return [pattern]
    if os.path.exists(pattern):
        return [os.path.abspath(pattern)]
    if not glob.has_magic(pattern):
        raise nothing_at(f"{pattern}, which does not exist")
    return sorted(os.path.abspath(path) for path in glob.glob(pattern))
