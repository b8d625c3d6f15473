"""Losses of several models on the same samples, from a store, an .npz or a .csv."""

from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float64
from torch import Tensor

from drrho.reference.arrays import open_npz, read_npz
from drrho.reference.losses.store import references_in
from drrho.reference.losses.summary import sample_losses

NamedLosses = dict[str, Float64[Tensor, " samples"]]


def read_loss_table(source: str | Path, *, needed: tuple[str, ...] = ()) -> NamedLosses:
    """Read the losses of several models, sample by sample; not finite where there is none.

    Args:
        source: an .npz with one array for each model; a .csv with their names in the first line;
            or a folder of `LossWriter`, from which the samples that all models have are taken,
            with the mean over a sample's tokens.
        needed: names that must be there; from a folder no others are read, if any are given.

    Raises:
        FileNotFoundError: there is no such file or folder.
        ValueError: it lacks a name, columns differ in length, or something is no number.
    """
    path = Path(source)
    if path.is_dir():
        return _from_store(path, needed)
    if not path.is_file():
        raise FileNotFoundError(
            f"{source} does not exist; give a folder of stored losses, an .npz or a .csv"
        )
    match path.suffix:
        case ".npz":
            table = _from_npz(path)
        case ".csv":
            table = _from_csv(path)
        case _:
            raise ValueError(f"{source} must be a folder, an .npz or a .csv")
    lengths = {name: len(losses) for name, losses in table.items()}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"{source} must have one loss of every sample for each model: {lengths}")
    _require(source, needed, set(table))
    return table


def _from_npz(path: Path) -> NamedLosses:
    try:
        with open_npz(path) as archive:
            names = [name.removesuffix(".npy") for name in archive.namelist()]
            return {name: _column(path, name, read_npz(archive, name)) for name in names}
    except (KeyError, ValueError) as error:
        raise ValueError(f"{path} cannot be read: {error}; write it again by np.savez") from error


def _from_csv(path: Path) -> NamedLosses:
    with path.open(encoding="utf-8-sig") as file:
        names = [name.strip().strip('"') for name in file.readline().split(",")]
        try:
            rows = np.loadtxt(file, delimiter=",", ndmin=2, dtype=np.float64)
        except ValueError as error:
            raise ValueError(f"{path} has something that is no number: {error}") from error
    if rows.shape[1] != len(names) or len(set(names)) < len(names):
        raise ValueError(f"{path} has {rows.shape[1]} columns under the names {names}")
    return {name: _column(path, name, rows[:, k]) for k, name in enumerate(names)}


def _column(path: Path, name: str, values: np.ndarray) -> Float64[Tensor, " samples"]:
    if values.ndim != 1 or not np.issubdtype(values.dtype, np.number):
        raise ValueError(
            f"{name} in {path} must be one number for each sample, got {values.dtype} of shape "
            f"{values.shape}"
        )
    return torch.from_numpy(values.astype(np.float64))


def _from_store(folder: Path, needed: tuple[str, ...]) -> NamedLosses:
    known = references_in(folder)
    _require(folder, needed, set(known))
    by_shard = {name: sample_losses(folder, name) for name in needed or known}
    first = next(iter(by_shard.values()), {})
    common = [shard for shard in first if all(shard in shards for shards in by_shard.values())]
    if not common:
        raise ValueError(f"{folder} holds no shard of which all of {list(by_shard)} have losses")
    return {name: torch.cat([shards[c] for c in common]) for name, shards in by_shard.items()}


def _require(source: str | Path, needed: tuple[str, ...], known: set[str]) -> None:
    if missing := [name for name in needed if name not in known]:
        raise ValueError(f"{source} has no losses of {missing[0]!r}; it has: {sorted(known)}")
