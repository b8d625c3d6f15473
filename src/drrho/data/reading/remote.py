"""Calls of remote file systems, repeated where that may help; errors say host and cause."""

import time
from collections.abc import Callable
from http import HTTPStatus
from typing import Any, Protocol, TypeVar, runtime_checkable
from urllib.parse import urlsplit

import fsspec
from fsspec.config import conf

from drrho.runtime.errors import without_secrets

DELAYS = (0.5, 2.0, 8.0)  # seconds before each repetition
TIMEOUTS = (30.0, 60.0)  # seconds until a web server is connected, and between pieces of an answer
NOT_REPEATED = (ValueError, TypeError, NotImplementedError, PermissionError)
NO_RANGES = (
    "does not serve byte ranges, which reading samples needs; copy the shards to a local folder or "
    "to a server that does"
)
Result = TypeVar("Result")


@runtime_checkable
class Stream(Protocol):
    """Protocol of a seekable binary file."""

    def read(self, size: int = -1, /) -> bytes: ...
    def seek(self, offset: int, whence: int = 0, /) -> int: ...
    def tell(self) -> int: ...
    def close(self) -> None: ...


class RemoteStream:
    """A file that is being read from a remote file system, each read repeated as by `remotely`."""

    def __init__(self, url: str):
        if len(remotely(url, lambda system: system.cat_file(url, start=0, end=1))) > 1:
            raise ValueError(f"{host_of(url)} {NO_RANGES}")
        self._url = url
        stream = remotely(url, lambda system: system.open(url, "rb"))
        assert isinstance(stream, Stream)
        self._stream = stream

    def read(self, size: int = -1, /) -> bytes:
        return remotely(self._url, lambda _: self._stream.read(size))

    def seek(self, offset: int, whence: int = 0, /) -> int:
        return self._stream.seek(offset, whence)

    def tell(self) -> int:
        return self._stream.tell()

    def close(self) -> None:
        self._stream.close()


def remotely(url: str, call: Callable[[fsspec.AbstractFileSystem], Result]) -> Result:
    """Call the file system of a URL; what may pass is tried again, after longer and longer delays.

    Raises:
        FileNotFoundError: there is no such file.
        ConnectionError: the host does not answer, or answers with an error.
        ValueError: the file system is unknown, its package is not installed, or it cannot do this.
    """
    system = _file_system(url)
    for delay in (*DELAYS, None):
        try:
            return call(system)
        except Exception as error:  # every file system has its own
            # fsspec calls every failure of HTTP a missing file, with the true one as its cause.
            cause = error.__cause__ if isinstance(error, FileNotFoundError) else error
            status = getattr(cause, "status", None)
            if cause is None or status in (HTTPStatus.NOT_FOUND, HTTPStatus.GONE):
                raise FileNotFoundError(f"{without_secrets(url)} does not exist") from None
            lasting = isinstance(cause, NOT_REPEATED) if status is None else _is_lasting(status)
            if lasting or delay is None:
                times = "" if lasting else f", {len(DELAYS) + 1} times"
                message = f"{without_secrets(url)} cannot be read: {_described(cause, url)}{times}"
                kind = ValueError if isinstance(cause, ValueError) else ConnectionError
                raise kind(message) from None
            time.sleep(delay)
    raise AssertionError("unreachable")


def host_of(url: str) -> str:
    """Return the host or bucket of a URL, without user and password."""
    return urlsplit(url).netloc.rpartition("@")[2] or "its file system"


def _file_system(url: str) -> fsspec.AbstractFileSystem:
    options: dict[str, Any] = {}
    try:
        if url.startswith(("http://", "https://")) and not conf.get("http"):
            from fsspec.implementations import http  # noqa: PLC0415  # needs aiohttp

            connect, read = TIMEOUTS
            timeout = http.aiohttp.ClientTimeout(total=None, sock_connect=connect, sock_read=read)
            options["client_kwargs"] = {"timeout": timeout}
        return fsspec.core.url_to_fs(url, **options)[0]
    except (ImportError, ValueError) as error:
        raise ValueError(
            f"cannot read {without_secrets(url)}: {without_secrets(str(error))}. Besides local "
            "paths, files are read through fsspec, which needs a package for each kind of storage "
            "(s3fs, gcsfs, aiohttp, ...)"
        ) from None


def _is_lasting(status: int) -> bool:
    """Tell whether a status of HTTP will be the same if the request is repeated."""
    passing = (HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_EARLY, HTTPStatus.TOO_MANY_REQUESTS)
    return status < HTTPStatus.INTERNAL_SERVER_ERROR and status not in passing


def _described(error: BaseException, url: str) -> str:
    status = getattr(error, "status", None)
    if status is not None:
        return f"{host_of(url)} answered {status} {getattr(error, 'message', '')}".strip()
    if isinstance(error, TimeoutError) or "Timeout" in type(error).__name__:
        return f"{host_of(url)} did not answer in time"
    message = without_secrets(str(error)) or type(error).__name__
    return message if host_of(url) in message else f"{host_of(url)}: {message}"
