"""Checkpoint files: written whole or not at all, verified when read.

One file per checkpoint, `step-00000100.pt`, in a folder of their own. What is in it is the business
of `drrho.training.state`; here it is a dictionary of tensors and plain values.
"""

import pickle
import re
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from drrho.files import PARTIAL_SUFFIX, opened_atomically

FILE_NAME = re.compile(r"step-(\d{8,})\.pt")


class CheckpointError(RuntimeError):
    """A checkpoint cannot be read, or belongs to another run."""


def save_checkpoint(contents: Mapping[str, Any], folder: Path, *, step: int, keep: int) -> Path:
    """Writes the checkpoint of `step` and deletes all but the newest `keep` up to this step.

    The contents go to a temporary file in the same folder, which is flushed to the disk and
    renamed: at every moment each `step-*.pt` is complete, whenever the process is killed. Older
    ones are deleted only once the new one is safe. Files of later steps (left by a run that was
    resumed further back) are not touched.

    Returns:
        Path of the new file.

    Raises:
        ValueError: `keep` is not positive.
        OSError: the disk is full or the folder cannot be written; earlier checkpoints remain.
    """
    if keep < 1:
        raise ValueError(f"keep must be at least 1, got {keep}")
    path = folder / f"step-{step:08d}.pt"
    with opened_atomically(path) as file:
        torch.save(dict(contents), file)
    superseded = [old for old in list_checkpoints(folder) if _step_of(old) <= step][:-keep]
    for old in superseded:
        old.unlink()
    for abandoned in folder.glob("*" + PARTIAL_SUFFIX):
        abandoned.unlink()
    return path


def list_checkpoints(folder: Path) -> list[Path]:
    """All checkpoints in the folder, oldest step first; a folder that does not exist has none."""
    if not folder.is_dir():
        return []
    return sorted((p for p in folder.iterdir() if FILE_NAME.fullmatch(p.name)), key=_step_of)


def latest_checkpoint(folder: Path) -> Path | None:
    """The checkpoint of the highest step, read or unread; None if there is none."""
    return next(reversed(list_checkpoints(folder)), None)


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Reads one checkpoint to CPU memory; no code from the file is run.

    Raises:
        CheckpointError: the file is truncated or damaged, or no checkpoint.
    """
    try:
        # torch.load notices a truncated file but not a flipped bit; the archive's checksums do.
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
        if damaged is not None:
            raise zipfile.BadZipFile(f"checksum of {damaged} does not match")
        return torch.load(path, map_location="cpu", weights_only=True)
    except (zipfile.BadZipFile, pickle.UnpicklingError, OSError, RuntimeError) as error:
        raise CheckpointError(f"checkpoint {path} cannot be read: {error}") from error


def load_latest_checkpoint(folder: Path) -> tuple[Path, dict[str, Any]] | None:
    """The newest readable checkpoint; None if the folder has no checkpoints at all.

    A damaged file is named in a warning, stays where it is, and the one before it is used.

    Raises:
        CheckpointError: there are checkpoints, but none can be read: starting again from nothing
            is then the user's decision.
    """
    damaged: list[str] = []
    for path in reversed(list_checkpoints(folder)):
        try:
            contents = load_checkpoint(path)
        except CheckpointError as error:
            damaged.append(str(error))
            continue
        for message in damaged:
            warnings.warn(f"{message}; continuing from {path.name} instead", stacklevel=2)
        return path, contents
    if damaged:
        raise CheckpointError(
            "no checkpoint can be read; restore one from a backup, or move the folder away to "
            "start again:\n  " + "\n  ".join(damaged)
        )
    return None


def _step_of(path: Path) -> int:
    match = FILE_NAME.fullmatch(path.name)
    assert match is not None, f"{path} is not named like a checkpoint"
    return int(match.group(1))
