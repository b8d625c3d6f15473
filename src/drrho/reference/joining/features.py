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
                found = _encoded(tower, shards, chunk, batch_size, device, progress)
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
) -> Float32[Tensor, "pairs dim"]:
    """Encode the pairs of a block; a row that cannot be decoded is NaN."""
    batches = _images if isinstance(tower, ImageTower) else _texts
    places: list[int] = []
    parts: list[Tensor] = []
    for rows, inputs in batches(tower, shards, ids, batch_size):
        if rows:
            with torch.no_grad():
                features = features_of(tower.module, inputs.to(device), name=_name(tower))
            places += rows
            parts.append(features.cpu())
            progress.advance(len(rows))
    if not parts:
        raise ValueError(f"none of {len(ids)} pairs, from id {int(ids[0])} on, could be decoded")
    found = torch.full((len(ids), parts[0].shape[1]), torch.nan)
    found[places] = torch.cat(parts)
    return found


def _images(
    tower: Any, shards: OpenShards, ids: Tensor, batch_size: int
) -> Iterator[tuple[list[int], Tensor]]:
    """Yield batches of transformed images with their rows."""

    def pixels(sample: RawSample) -> Tensor:
        return transformed(tower.transform, decode_image(sample))

    for start in range(0, len(ids), batch_size):
        wanted = ids[start : start + batch_size].tolist()
        found = dict(shards.readable(wanted, [], decode=pixels))
        rows = [start + row for row, sample_id in enumerate(wanted) if sample_id in found]
        yield rows, torch.stack(list(found.values())) if found else torch.empty(0)


def _texts(
    tower: Any, shards: OpenShards, ids: Tensor, batch_size: int
) -> Iterator[tuple[list[int], Tensor]]:
    """Yield batches of token ids with their rows, texts of similar length together."""
    captions = dict(shards.readable(ids.tolist(), [], decode=decode_caption))
    rows = [row for row, sample_id in enumerate(ids.tolist()) if sample_id in captions]
    found = {row: captions[int(ids[row])] for row in rows}
    rows.sort(key=lambda row: len(found[row]))
    for start in range(0, len(rows), batch_size):
        batch = rows[start : start + batch_size]
        yield batch, tower.tokenizer([found[row] for row in batch])


def _name(tower: ImageTower | TextTower) -> str:
    return "the image tower" if isinstance(tower, ImageTower) else "the text tower"


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
