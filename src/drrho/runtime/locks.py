"""Claims of folders and files for one process."""

import errno
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

LOCK_NAME = ".lock"
NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP}


@contextmanager
def exclusive(folder: Path, *, wait: bool = False) -> Iterator[None]:
    """Claim a folder for this process, so that no other works in it.

    The operating system ends the claim with the process, however it dies. On NFS Linux passes the
    claim on to the server, so that it holds between machines, unless the file system is mounted
    with `nolock` or `local_lock`: then it holds between the processes of one machine. A file
    system without locks gets a warning.

    Args:
        folder: made if need be.
        wait: for the process that works there, for as long as it takes.

    Raises:
        BlockingIOError: another process works there, and this one is not to wait.
        NotADirectoryError: the folder, or one above it, is a file.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise NotADirectoryError(
            f"{folder} is to be a folder, and there is a file of that name or above; choose "
            "another name"
        ) from None
    with _claim(folder / LOCK_NAME, f"{folder}; wait for it, or use another folder", wait=wait):
        yield


@contextmanager
def exclusive_file(path: Path, *, wait: bool = False) -> Iterator[None]:
    """Claim the name of a file for this process while it is written, as `exclusive` a folder.

    The lock is a hidden file beside it, which is removed at the end.

    Raises:
        BlockingIOError: another process writes the file, and this one is not to wait.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = path.with_name(f".{path.name}.lock")
    with _claim(lock, f"{path}; wait for it, or use another name", wait=wait):
        try:
            yield
        finally:
            with suppress(OSError):  # Windows does not remove what is open
                lock.unlink()


def is_claimed(folder: Path) -> bool:
    """Tell whether a process of this machine works in a folder, without touching its claim.

    Only Linux says so; elsewhere the answer is no.
    """
    with suppress(OSError, ValueError):
        lock = os.stat(folder / LOCK_NAME)
        held = Path("/proc/locks").read_text(encoding="ascii").split("\n")
        # The kernel writes 1: FLOCK ADVISORY WRITE 6960 fe:00:5579081 0 EOF
        inodes = {line.split()[5].rpartition(":")[2] for line in held if "FLOCK " in line}
        return str(lock.st_ino) in inodes
    return False


@contextmanager
def _claim(path: Path, where: str, *, wait: bool) -> Iterator[None]:
    lock = FileLock(path, blocking=wait)
    try:
        lock.acquire(poll_interval=0.05)
    except Timeout as error:
        raise BlockingIOError(f"another process is at work in {where}") from error
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        warnings.warn(
            f"the file system of {path.parent} has no locks ({os.strerror(error.errno or 0)}): see "
            "to it that no other process works there, or have it mounted with locks",
            stacklevel=4,
        )
    try:
        yield
    finally:
        lock.release()
