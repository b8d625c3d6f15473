"""Features of both towers for every pair, computed once and kept on disk, mapped into memory."""

import hashlib
import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float32, Int64
from torch import Tensor

from drrho.data.manifest import Manifest
from drrho.data.reading.cache import OpenShards
from drrho.data.reading.images import transformed
from drrho.data.reading.shards import RawSample, decode_caption, decode_image
from drrho.models.towers.tower import ImageTower, TextTower, features_of
from drrho.runtime.files import require_regular, write_atomically
from drrho.runtime.progress import Progress

BLOCK = 8192  # pairs in a file: what an interruption can cost


@dataclass(frozen=True, kw_only=True)
class Features:
    """Features of some pairs, in the order of their ids; rows that could not be read are NaN.

    Attributes:
        blocks: arrays of `BLOCK` rows, the last of fewer, mapped into memory.
    """

    blocks: Sequence[np.ndarray]

    @property
    def dim(self) -> int:
        """Number of features."""
        return self.blocks[0].shape[1]

    def rows(self, rows: Int64[Tensor, " wanted"]) -> Float32[Tensor, "wanted dim"]:
        """Read some rows into memory, in any order."""
        found = torch.empty(len(rows), self.dim)
        numbers = (rows // BLOCK).tolist()
        for block in sorted(set(numbers)):
            mine = torch.tensor([number == block for number in numbers])
            inside = (rows[mine] - block * BLOCK).numpy()
            found[mine] = torch.from_numpy(self.blocks[block][inside])
        return found

    def are_finite(self) -> Bool[Tensor, " pairs"]:
        """Mark the rows whose features are all finite."""
        return torch.from_numpy(
            np.concatenate([np.isfinite(block).all(axis=1) for block in self.blocks])
        )


def read_captions(manifest: Manifest, ids: Int64[Tensor, " pairs"]) -> list[str | None]:
    """Read the first caption of each pair; None where it cannot be decoded."""
    shards, found = OpenShards(manifest), dict[int, str]()
    for chunk in ids.split(BLOCK):
        found |= dict(shards.readable(chunk.tolist(), [], decode=decode_caption))
    return [found.get(sample_id) for sample_id in ids.tolist()]


def features_of_pairs(
    tower: ImageTower | TextTower,
    manifest: Manifest,
    ids: Int64[Tensor, " pairs"],
    *,
    cache: Path,
    batch_size: int,
    device: torch.device,
) -> Features:
    """Compute the features of one tower, or read what an earlier call has computed.

    Blocks are written whole or not at all, so an interrupted call continues.

    Args:
        cache: folder with a folder for each tower and choice of pairs.

    Raises:
        ValueError: a shard has changed, a file of the cache is damaged, or the tower does not
            give one vector for each input.
    """
    side = "image" if isinstance(tower, ImageTower) else "text"
    folder = cache / f"{side}-{_key(tower, manifest, ids)[:16]}"
    chunks = ids.split(BLOCK)
    tower.module.to(device)
    shards, blocks = OpenShards(manifest), []
    with Progress(f"{side} features", total=len(ids), unit="pairs") as progress:
        for number, chunk in enumerate(chunks):
            file = folder / f"block-{number:05d}.npy"
            if not file.is_file():
                found = torch.cat(
                    list(_encoded(tower, shards, chunk, batch_size, device, progress))
                )
                content = io.BytesIO()
                np.save(content, found.numpy(), allow_pickle=False)
                write_atomically(file, content.getvalue())
            else:
                progress.advance(len(chunk))
            blocks.append(_open(file, rows=len(chunk)))
    if len({block.shape[1] for block in blocks}) > 1:
        raise ValueError(f"the files in {folder} have features of several sizes; remove it")
    return Features(blocks=blocks)


def _encoded(
    tower: ImageTower | TextTower,
    shards: OpenShards,
    ids: Tensor,
    batch_size: int,
    device: torch.device,
    progress: Progress,
) -> Iterator[Tensor]:
    """Yield the features of each batch; a row that cannot be decoded is NaN."""

    def pixels(sample: RawSample) -> Tensor:
        assert isinstance(tower, ImageTower)
        return transformed(tower.transform, decode_image(sample))

    is_image = isinstance(tower, ImageTower)
    lost = 0
    for batch in ids.split(batch_size):
        wanted = batch.tolist()
        found: dict[int, Any] = dict(
            shards.readable(wanted, [], decode=pixels if is_image else decode_caption)
        )
        progress.advance(len(wanted))
        if not found:
            lost += len(wanted)
            continue
        inputs = list(found.values())
        prepared = torch.stack(inputs) if is_image else tower.tokenizer(inputs)
        with torch.no_grad():
            features = features_of(tower.module, prepared.to(device), name=f"the {_side(tower)}")
        places = torch.tensor([sample_id in found for sample_id in wanted])
        block = torch.full((len(wanted), features.shape[1]), torch.nan)
        block[places] = features.cpu()
        if lost:
            yield torch.full((lost, features.shape[1]), torch.nan)
            lost = 0
        yield block
    if lost:
        raise ValueError(f"the last {lost} pairs of a block could not be decoded")


def _side(tower: ImageTower | TextTower) -> str:
    return "image tower" if isinstance(tower, ImageTower) else "text tower"


def _key(tower: ImageTower | TextTower, manifest: Manifest, ids: Tensor) -> str:
    """Hash all that the features depend on."""
    parts = [tower.identity, manifest.contents_sha256, ids.tolist()]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _open(file: Path, *, rows: int) -> np.ndarray:
    require_regular(file)
    try:
        found = np.load(file, mmap_mode="r", allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise ValueError(f"{file} is damaged ({error}); remove it, and run this again") from error
    if found.dtype != np.float32 or found.ndim != 2 or len(found) != rows:
        raise ValueError(f"{file} is no array of {rows} rows of float32; remove it")
    return found
