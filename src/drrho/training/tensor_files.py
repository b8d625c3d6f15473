"""Tensors of a checkpoint, written and read by torch.distributed.checkpoint.

Every process writes its share, and any number of processes can read it. The imports take seconds,
so this module is imported only where tensors are written or read.
"""

import math
import pickle
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

from drrho.runtime.distributed import Processes
from drrho.runtime.errors import CheckpointError
from drrho.training.checkpoint import SAVED_DTYPES, describe_tensor

# The classes that the index of tensors, a pickle, consists of; no others are loaded.
INDEX_CLASSES = {
    "torch.distributed.checkpoint.metadata": {
        *("Metadata", "TensorStorageMetadata", "TensorProperties", "ChunkStorageMetadata"),
        *("MetadataIndex", "StorageMeta", "_MEM_FORMAT_ENCODING"),
    },
    "torch.distributed.checkpoint.filesystem": {"_StorageInfo"},
    "torch.serialization": {"_get_layout"},
    "torch": {"Size", *SAVED_DTYPES},
    "pathlib": {"PosixPath", "WindowsPath"},
    "pathlib._local": {"PosixPath", "WindowsPath"},
}


def write_tensors(tensors: dict[str, Tensor], folder: Path, processes: Processes) -> None:
    """Write tensors in host memory; a collective of the background group.

    Raises:
        OSError: this process could not write.
        CheckpointError: another could not.
    """
    try:
        save(
            tensors,
            storage_writer=FileSystemWriter(folder, single_file_per_rank=True),
            process_group=processes.background,
            no_dist=processes.size == 1,
        )
    except CheckpointException as error:
        raise _cause(error, processes.rank) from error


def describe_tensors(path: Path) -> dict[str, str]:
    """Describe the whole shape and the dtype of every tensor in a checkpoint, by name.

    Raises:
        CheckpointError: the index is damaged, or lists something that is not a tensor.
    """
    return {
        name: describe_tensor(entry.size, entry.properties.dtype)
        for name, entry in _index(path).items()
    }


def read_into(tensors: dict[str, Tensor], path: Path, processes: Processes) -> None:
    """Overwrite tensors with the tensors of a checkpoint, by name; a collective.

    Args:
        tensors: tensors to overwrite; DTensors get their process's shard.
        path: checkpoint that `read_values` has verified.

    Raises:
        CheckpointError: a tensor is not there, or has another shape.
    """
    _index(path)  # raises unless all entries are tensors: others would be unpickled
    try:
        load(
            tensors,
            storage_reader=_TensorReader(path),
            process_group=processes.host,
            no_dist=processes.size == 1,
        )
    except (CheckpointException, RuntimeError, ValueError) as error:
        raise CheckpointError(f"checkpoint {path} cannot be read: {error}") from error


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read the full tensors of a checkpoint into host memory; CheckpointError if damaged."""
    tensors = {
        name: torch.empty(entry.size, dtype=entry.properties.dtype)
        for name, entry in _index(path).items()
    }
    read_into(tensors, path, Processes())
    return tensors


class _TensorReader(FileSystemReader):
    """Reader of a checkpoint's index that runs no code from it."""

    def read_metadata(self, *_arguments: Any, **_names: Any) -> Metadata:
        with open(Path(self.path) / ".metadata", "rb") as file:
            metadata = _IndexUnpickler(file).load()
        metadata.storage_meta.load_id = self.load_id
        return metadata


class _IndexUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if name not in INDEX_CLASSES.get(module, ()):
            raise pickle.UnpicklingError(f"its index names {module}.{name}")
        return super().find_class(module, name)


def _index(path: Path) -> dict[str, TensorStorageMetadata]:
    try:
        metadata = _TensorReader(path).read_metadata()
        _check_index(metadata, path)
    except Exception as error:  # a damaged pickle raises anything
        raise CheckpointError(f"checkpoint {path} cannot be read: {error}") from error
    return metadata.state_dict_metadata  # pyright: ignore[reportReturnType]


def _check_index(metadata: Metadata, path: Path) -> None:
    """Raise ValueError unless all entries are tensors, in files of the folder that hold them."""
    described = 0
    for name, entry in metadata.state_dict_metadata.items():
        if not isinstance(entry, TensorStorageMetadata):
            raise ValueError(f"{name} is no tensor")
        if any(size < 0 for size in entry.size):
            raise ValueError(f"{name} has the shape {tuple(entry.size)}")
        described += math.prod(entry.size) * entry.properties.dtype.itemsize
    held = sum(file.stat().st_size for file in path.iterdir())
    if described > held:
        raise ValueError(f"its index describes {described:,} bytes, its files have {held:,}")
    for place in metadata.storage_data.values():
        if Path(place.relative_path).name != place.relative_path:
            raise ValueError(f"its index names {place.relative_path!r}, which is not in the folder")


def _cause(error: CheckpointException, rank: int) -> Exception:
    """Return this process's own failure, or an error that names the processes that failed."""
    failures = {where: failure for where, (failure, _) in error.failures.items()}
    if isinstance(own := failures.get(rank), Exception):
        return own
    listed = "; ".join(f"process {where}: {failure!r}" for where, failure in failures.items())
    return CheckpointError(f"the checkpoint could not be written: {listed}")
