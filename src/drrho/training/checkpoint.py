"""Checkpoints: written whole or not at all, by all processes together, verified when read.

`step-00000100/` holds the tensors (`drrho.training.tensor_files`) and `checkpoint.json`: plain
values, and size and CRC-32 of all other files.
"""

import json
import re
import shutil
import warnings
import zlib
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from torch import Tensor

from drrho.runtime.checks import require_at_least
from drrho.runtime.distributed import Processes
from drrho.runtime.errors import CheckpointError
from drrho.runtime.files import PARTIAL_SUFFIX, rename_folder, write_json

FOLDER_NAME = re.compile(r"step-(\d{8,})")
VALUES_FILE = "checkpoint.json"


class CheckpointWriter:
    """Writer of checkpoints while training goes on. Every process of the run makes the same calls.

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
        write_tensors(tensors, partial, self._processes)
        # It is a collective: when it returns, every process has written its share.
        if self._processes.is_first:
            files = {file.name: _size_and_checksum(file) for file in sorted(partial.iterdir())}
            write_json(partial / VALUES_FILE, {"files": files, "values": values})
            if path.exists():  # of the same step, before the run was resumed
                shutil.rmtree(path)
            rename_folder(partial, path)
            _delete_superseded(self._folder, path, keep=keep)


def _partial(path: Path) -> Path:
    return path.with_name(f".{path.name}{PARTIAL_SUFFIX}")


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
        document = json.loads((path / VALUES_FILE).read_bytes())
        files, values = document["files"], document["values"]
        for name, expected in files.items():
            if _size_and_checksum(path / name) != expected:
                raise OSError(f"the checksum of {name} does not match")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"checkpoint {path} cannot be read: {error}") from error
    return values


def read_latest_values(folder: Path) -> tuple[Path, dict[str, Any]] | None:
    """Read the values of the newest readable checkpoint; None if the folder has no checkpoint.

    A damaged one is named in a warning, stays where it is, and the one before it is used.

    Raises:
        CheckpointError: there are checkpoints, but none can be read.
    """
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
        shutil.rmtree(old)
    for abandoned in folder.glob(f".*{PARTIAL_SUFFIX}"):
        shutil.rmtree(abandoned)


def _step_of(path: Path) -> int:
    match = FOLDER_NAME.fullmatch(path.name)
    assert match is not None, f"{path} is not named like a checkpoint"
    return int(match.group(1))
