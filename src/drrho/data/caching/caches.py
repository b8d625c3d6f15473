"""Caches of a run's training data: images behind their transform's fixed part, and token ids."""

import hashlib
import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from drrho.data.caching.mapped import MappedRows
from drrho.data.caching.tokenizers import describe_tokenizer
from drrho.data.caching.transforms import SplitTransform, pixels_of
from drrho.data.manifest import Manifest
from drrho.data.reading.storage import local_path
from drrho.runtime.memory import free_memory

Mode = Literal["auto", "file", "memory", "off"]
Transform = Callable[[Image.Image], Tensor]
Tokenizer = Callable[[list[str]], Tensor]
# "auto" keeps images that take at most these shares of the memory and of the disk that are free.
SHARE_OF_MEMORY, SHARE_OF_DISK = 0.25, 0.5
FOLDER = ".drrho-cache"  # beside the manifest
MOST_FILES = 4  # of one kind for one manifest: other transforms and tokenizers


@dataclass(frozen=True, kw_only=True)
class Caches:
    """What is kept of a data set between visits, and the transform in its parts.

    Attributes:
        size: width and height of the images.
        note: what is kept, or why nothing is, in a line.
    """

    split: SplitTransform
    pixels: MappedRows | None = None
    size: tuple[int, int] | None = None
    tokens: MappedRows | None = None
    note: str = ""

    @property
    def context_length(self) -> int:
        """Number of token ids of a text."""
        assert self.tokens is not None
        return self.tokens.row_bytes // 4

    def keep_pixels(self, row: int, source: int, image: Image.Image) -> None:
        """Keep the image that the fixed part gave, where it has the size of all."""
        if self.pixels is not None and image.size == self.size and image.mode == "RGB":
            self.pixels.write(row, source, pixels_of(image))

    def keep_tokens(self, row: int, source: int, tokens: Tensor) -> None:
        """Keep the token ids of a caption."""
        if self.tokens is not None and tokens.numel() == self.context_length:
            self.tokens.write(row, source, tokens.to(torch.int32).numpy())

    def read_pixels(self, rows: np.ndarray, sources: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the images of rows, channels first, and which are there."""
        assert self.pixels is not None
        assert self.size is not None
        width, height = self.size
        found = np.empty((len(rows), self.pixels.row_bytes), np.uint8)
        present = self.pixels.read(rows, sources, found)
        return found.reshape(-1, 3, height, width), present

    def read_tokens(self, rows: np.ndarray, sources: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the token ids of rows and which are there."""
        assert self.tokens is not None
        found = np.zeros((len(rows), self.tokens.row_bytes), np.uint8)
        present = self.tokens.read(rows, sources, found)
        return found.view(np.int32), present


@dataclass(frozen=True)
class _Place:
    """Folder of cache files, the beginning of their names, and the contents of the data."""

    folder: Path | None
    prefix: str
    contents: str = field(repr=False)

    def path(self, kind: str, description: str) -> Path | None:
        """Name a file; remove files of other contents, and the oldest of the other files."""
        if self.folder is None:
            return None
        hashed = hashlib.sha256(description.encode(errors="surrogateescape")).hexdigest()[:12]
        path = self.folder / f"{self.prefix}.{self.contents[:12]}-{hashed}.{kind}"
        with suppress(OSError):
            self._drop_others(path, kind)
        return path

    def _drop_others(self, path: Path, kind: str) -> None:
        assert self.folder is not None
        others = [
            other
            for other in self.folder.glob(f"*.{kind}")
            if other != path and other.name.rsplit(".", 2)[0] == self.prefix
        ]
        same = [o for o in others if o.name.startswith(f"{self.prefix}.{self.contents[:12]}-")]
        same.sort(key=lambda other: other.stat().st_mtime, reverse=True)
        for other in {*others} - {*same[: MOST_FILES - 1]}:
            other.unlink(missing_ok=True)


def open_caches(
    manifest: Manifest,
    split: SplitTransform,
    tokenizer: Tokenizer | None,
    *,
    mode: Mode = "auto",
    draft: bool = False,
    beside: str | None = None,
) -> Caches:
    """Open the caches of a data set, made where they are missing.

    Args:
        split: training transform; images are kept behind its fixed part.
        tokenizer: tokenizer of first captions; None where others are drawn.
        draft: whether JPEGs are decoded at a smaller scale.
        beside: manifest or folder beside which the files are kept; None keeps all in memory.

    Raises:
        ValueError: images are to be kept, and the transform has no fixed part.
        OSError: they are to be kept in a file, and there is no room for it.
    """
    if mode == "off":
        return Caches(split=split, note="nothing is cached")
    size = split.fixed_size()
    place = _find_place(manifest, None if mode == "memory" else beside)
    tokens, token_note = _open_tokens(manifest, tokenizer, place)
    if size is None:
        why = (
            "images are not cached: their transform begins with a random step, or one that is not "
            "known to be fixed"
        )
        if mode != "auto":
            raise ValueError(f"loading.cache = {mode!r} has no effect; {why}; take 'auto' or 'off'")
        return Caches(split=split, tokens=tokens, note=f"{why}{token_note}")
    pixels, note = _open_pixels(manifest, split, place, size=size, mode=mode, draft=draft)
    return Caches(split=split, pixels=pixels, size=size, tokens=tokens, note=note + token_note)


def _open_pixels(
    manifest: Manifest,
    split: SplitTransform,
    place: _Place,
    *,
    size: tuple[int, int],
    mode: Mode,
    draft: bool,
) -> tuple[MappedRows | None, str]:
    row_bytes = 3 * size[0] * size[1]
    num_bytes = MappedRows.file_bytes(manifest.num_samples, row_bytes)
    shown = (
        f"{manifest.num_samples:,} images of {size[0]} x {size[1]}, {num_bytes / 2**20:,.0f} MiB"
    )
    if mode == "auto" and (lack := _lack(num_bytes, place)):
        return None, f"images are not cached: {shown} would be more than {lack}"
    description = f"pixels {split.description} {size} draft {draft}"
    path = place.path("pixels", description)
    if mode == "file" and path is None:
        raise ValueError(
            "loading.cache = 'file': no folder can be written; take 'memory' or 'auto'"
        )
    try:
        rows = MappedRows(
            path,
            identity=f"{place.contents} {description}",
            num_rows=manifest.num_samples,
            row_bytes=row_bytes,
        )
    except OSError as error:
        if mode == "file":
            raise OSError(f"loading.cache = 'file' needs {num_bytes:,} bytes: {error}") from error
        return None, f"images are not cached: {error}"
    where = "memory" if path is None else str(path)
    return rows, f"caches {shown}, in {where}; {rows.num_present():,} are there"


def _open_tokens(
    manifest: Manifest, tokenizer: Tokenizer | None, place: _Place
) -> tuple[MappedRows | None, str]:
    described = None if tokenizer is None else describe_tokenizer(tokenizer)
    if described is None:
        return None, ""
    length, description = described
    num_bytes = MappedRows.file_bytes(manifest.num_samples, 4 * length)
    if _lack(num_bytes, place):
        return None, ""
    try:
        rows = MappedRows(
            place.path("tokens", description),
            identity=f"{place.contents} {description}",
            num_rows=manifest.num_samples,
            row_bytes=4 * length,
        )
    except OSError:
        return None, ""
    return rows, f"; token ids, {num_bytes / 2**20:,.0f} MiB"


def _lack(num_bytes: int, place: _Place) -> str:
    """Say what has too little room; empty if there is enough."""
    if num_bytes > SHARE_OF_MEMORY * free_memory():
        return f"{SHARE_OF_MEMORY:.0%} of the free memory (loading.cache = 'file' takes the disk)"
    folder = place.folder
    if folder is not None and num_bytes > SHARE_OF_DISK * shutil.disk_usage(folder).free:
        return f"{SHARE_OF_DISK:.0%} of the free disk at {folder}"
    return ""


def _find_place(manifest: Manifest, beside: str | None) -> _Place:
    """Find the first folder that can be written: beside the manifest, or the user's for caches."""
    described = repr([shard.contents for shard in manifest.shards])
    contents = hashlib.sha256(described.encode()).hexdigest()
    if beside is None:
        return _Place(None, "", contents)
    found = local_path(beside)
    path = beside if found is None else os.path.abspath(os.path.expanduser(found))
    is_manifest = path.endswith(".json")
    stem = Path(path).stem if is_manifest else "data"
    hashed = hashlib.sha256(path.encode(errors="surrogateescape")).hexdigest()[:8]
    user = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "drrho"
    places = [(user, f"{stem}-{hashed}")]
    if found is not None:
        folder = Path(path) if os.path.isdir(path) else Path(path).parent
        places.insert(0, (folder / FOLDER, stem))
    for place, prefix in places:
        with suppress(OSError):
            place.mkdir(parents=True, exist_ok=True)
            if os.access(place, os.W_OK):
                return _Place(place, prefix, contents)
    return _Place(None, "", contents)
