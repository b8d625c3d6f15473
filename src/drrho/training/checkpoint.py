"""Checkpoints: written whole or not at all, by all processes together, verified when read.

`step-00000100/` holds the tensors (`drrho.training.tensor_files`) and `checkpoint.json`: plain
values, size and CRC-32 of all other files, and a checksum of both.
"""

import os
import re
import shutil
import warnings
import zlib
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from drrho.runtime.checks import require_at_least
from drrho.runtime.distributed import Processes
from drrho.runtime.errors import CheckpointError
from drrho.runtime.files import PARTIAL_SUFFIX, rename_folder, write_checked_json
from drrho.runtime.records import read_checked

FOLDER_NAME = re.compile(r"step-(\d{8,})")
VALUES_FILE = "checkpoint.json"
SAVED_DTYPES = frozenset(
    {"float64", "float32", "float16", "bfloat16", "complex128", "complex64"}
    | {"int64", "int32", "int16", "int8", "uint8", "bool"}
)
# Words of torch's errors, of no class of their own, where it cannot write a file.
OF_A_FILE = ("unexpected pos", "enforce fail", "StreamWriter", "file write failed")
REPLACED_SUFFIX = ".replaced"  # of a checkpoint while another of its step takes its place
# torch warns at every save in a single process, where this is intended. The filter is set here and
# not in `tensor_files`, which may be imported inside a block that restores the filters at its end.
warnings.filterwarnings("ignore", message="torch.distributed is disabled, unavailable or uninit")


@dataclass(frozen=True, kw_only=True)
class _Document:
    """Content of `checkpoint.json`: values, size and CRC-32 of files, and a SHA-256 of both."""

    files: Mapping[str, tuple[int, int]]
    values: Mapping[str, Any]
    sha256: str | None = None  # which earlier versions did not write


class CheckpointWriter:
    """Writer of checkpoints while training continues. All processes make the same calls.

    The files are written into a hidden folder, flushed to the disk, and the folder renamed: at
    every moment each `step-*` is complete, whenever a process is killed. Older ones are deleted
    only once the new one is safe. Those of later steps, left by a run that was resumed further
    back, are not touched.

    Args:
        folder: folder of the checkpoints, visible to all processes.
    """

    def __init__(self, folder: Path, processes: Processes) -> None:
        self._folder = folder
        self._processes = processes
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._unfinished: Future[None] | None = None

    def start(
        self, tensors: Mapping[str, Tensor], values: Mapping[str, Any], *, step: int, keep: int
    ) -> Path:
        """Start to write the checkpoint of `step`, and keep the newest `keep`; a collective.

        Returns when the tensors are copied to host memory, so that training may change them.

        Args:
            tensors: tensors of this process; sharded ones are DTensors, all others are equal on
                all processes.
            values: plain data; the first process's are written.

        Returns:
            The folder that will hold the checkpoint.

        Raises:
            OSError: an earlier checkpoint could not be written.
        """
        require_at_least(1, keep=keep)
        self.wait()
        path = self._folder / f"step-{step:08d}"
        partial = _partial(path)
        if self._processes.is_first:
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
        self._processes.barrier()
        copies = {name: _copied(tensor) for name, tensor in tensors.items()}
        self._unfinished = self._thread.submit(
            self._write, copies, dict(values), path=path, keep=keep
        )
        return path

    def wait(self) -> None:
        """Wait until everything is on the disk.

        Raises:
            OSError: the disk is full or the folder cannot be written; earlier checkpoints remain.
            CheckpointError: another process could not write its share.
        """
        unfinished, self._unfinished = self._unfinished, None
        if unfinished is not None:
            unfinished.result()

    def _write(
        self, tensors: dict[str, Tensor], values: dict[str, Any], *, path: Path, keep: int
    ) -> None:
        # Takes seconds to import, which commands without a checkpoint need not wait for.
        from drrho.training.tensor_files import write_tensors  # noqa: PLC0415

        partial = _partial(path)
        try:
            write_tensors(tensors, partial, self._processes)
            # It is a collective: when it returns, every process has written its share.
            if self._processes.is_first:
                _finish(partial, values)
                _put_in_place(partial, path)
                _delete_superseded(self._folder, path, keep=keep)
        except (OSError, RuntimeError) as error:
            if not isinstance(error, OSError) and not any(it in str(error) for it in OF_A_FILE):
                raise  # of another process, which was lost
            raise OSError(_failure(error, path, tensors)) from error


def _finish(partial: Path, values: Mapping[str, Any]) -> None:
    """Write the values, and the checksums of all files."""
    files = {file.name: _size_and_checksum(file) for file in sorted(partial.iterdir())}
    write_checked_json(partial / VALUES_FILE, {"files": files, "values": values})


def _put_in_place(partial: Path, path: Path) -> None:
    """Give a whole checkpoint its name; one that has it, of an earlier attempt, is removed then.

    Whenever the process is killed, one of them is there, or `recover_replaced` finds it.
    """
    if path.exists():
        rename_folder(path, _replaced(path))
    rename_folder(partial, path)
    recover_replaced(path.parent)


def recover_replaced(folder: Path) -> None:
    """Complete the replacement of a checkpoint, or undo it, after a process was killed."""
    for replaced in folder.glob(f".step-*{REPLACED_SUFFIX}"):
        path = replaced.with_name(replaced.name.removeprefix(".").removesuffix(REPLACED_SUFFIX))
        if path.exists():
            shutil.rmtree(replaced)
        else:
            rename_folder(replaced, path)


def _partial(path: Path) -> Path:
    return path.with_name(f".{path.name}{PARTIAL_SUFFIX}")


def _replaced(path: Path) -> Path:
    return path.with_name(f".{path.name}{REPLACED_SUFFIX}")


def _failure(error: Exception, path: Path, tensors: Mapping[str, Tensor]) -> str:
    """Say in a sentence why a checkpoint could not be written, and whether the disk is full."""
    needed = sum(tensor.nbytes for tensor in tensors.values())
    free = shutil.disk_usage(path.parent).free
    reason = str(error).partition("\n")[0]
    # torch reports a full disk as an unexpected position in a file.
    if free < needed or "unexpected pos" in reason:
        reason = f"no space left, {free:,} bytes are free and about {needed:,} are needed"
    return (
        f"checkpoint {path} could not be written: {reason}. Earlier checkpoints are kept; free "
        "space or mend the folder, and start the run again to continue"
    )


def describe_tensor(shape: torch.Size, dtype: torch.dtype) -> str:
    """Describe a tensor, such as "shape (3, 2)", with its dtype if that is not float32."""
    kind = "" if dtype == torch.float32 else f" of {_name(dtype)}"
    return f"shape {tuple(shape)}{kind}"


def why_not_readable(tensor: Tensor) -> str | None:
    """Say why a tensor could be written and not read back; None if it can be read."""
    if tensor.layout is not torch.strided:
        return f"has the layout {tensor.layout}"
    if _name(tensor.dtype) not in SAVED_DTYPES:
        return f"has the dtype {_name(tensor.dtype)}"
    return "has no content, being on device 'meta'" if tensor.is_meta else None


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def list_checkpoints(folder: Path) -> list[Path]:
    """List the checkpoints in a folder, oldest step first; none where there is no folder."""
    if not folder.is_dir():
        return []
    return sorted((p for p in folder.iterdir() if FOLDER_NAME.fullmatch(p.name)), key=_step_of)


def latest_checkpoint(folder: Path) -> Path | None:
    """Find the checkpoint of the highest step, readable or not; None if there is none."""
    return next(reversed(list_checkpoints(folder)), None)


def read_values(path: Path) -> dict[str, Any]:
    """Read the plain values of a checkpoint, after all its files have been verified.

    Raises:
        CheckpointError: a file is missing, truncated or damaged.
    """
    try:
        document = read_checked(path / VALUES_FILE, _Document)
        for name, expected in document.files.items():
            if Path(name).name != name:
                raise OSError(f"{VALUES_FILE} names the file {name!r}, which is not in the folder")
            if _size_and_checksum(path / name) != list(expected):
                raise OSError(f"the checksum of {name} does not match")
    except (OSError, ValueError) as error:
        raise CheckpointError(f"checkpoint {path} cannot be read: {error}") from error
    return dict(document.values)


def read_latest_values(folder: Path) -> tuple[Path, dict[str, Any]] | None:
    """Read the values of the newest readable checkpoint; None if the folder has no checkpoint.

    A damaged one is named in a warning, stays where it is, and the one before it is used.

    Raises:
        CheckpointError: there are checkpoints, but none can be read; or there were some.
    """
    if folder.is_dir():
        recover_replaced(folder)
        if not any(folder.iterdir()):
            raise CheckpointError(lost_message(folder))
    damaged: list[str] = []
    for path in reversed(list_checkpoints(folder)):
        try:
            values = read_values(path)
        except CheckpointError as error:
            damaged.append(str(error))
            continue
        for message in damaged:
            warnings.warn(f"{message}; continuing from {path.name} instead", stacklevel=2)
        return path, values
    if damaged:
        raise CheckpointError(
            "no checkpoint can be read; restore one from a backup, or move the folder away to "
            "start again:\n  " + "\n  ".join(damaged)
        )
    return None


def lost_message(folder: Path) -> str:
    """Say that a run had checkpoints and has none."""
    return (
        f"{folder} has no checkpoint any more, and there was one: the run would begin anew. "
        "Restore it from a backup, or move the folder of the run away to begin anew"
    )


def _copied(tensor: Tensor) -> Tensor:
    """Copy a tensor to host memory; a DTensor keeps its placement."""
    tensor = tensor.detach()
    return tensor.clone() if tensor.device.type == "cpu" else tensor.cpu()


def _size_and_checksum(file: Path) -> list[int]:
    size, checksum = 0, 0
    with file.open("rb") as content:
        while block := content.read(2**22):
            size += len(block)
            checksum = zlib.crc32(block, checksum)
    return [size, checksum]


def _delete_superseded(folder: Path, newest: Path, *, keep: int) -> None:
    step = _step_of(newest)
    for old in [p for p in list_checkpoints(folder) if _step_of(p) <= step][:-keep]:
        os.replace(old, _partial(old))  # half deleted, it would look like a damaged one
    for abandoned in folder.glob(f".*{PARTIAL_SUFFIX}"):
        shutil.rmtree(abandoned)


def _step_of(path: Path) -> int:
    match = FOLDER_NAME.fullmatch(path.name)
    assert match is not None, f"{path} is not named like a checkpoint"
    return int(match.group(1))
