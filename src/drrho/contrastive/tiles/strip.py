"""The strip of the similarity matrix that one process computes, cut into tiles.

A process has the strip of its own images against the texts of all. A loss forms one tile at a time,
reduces it to sums of rows and columns, and forms it again for the gradient.
"""

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from drrho.contrastive.pairs import PairEmbeddings
from drrho.runtime.distributed import Partition

# On a CPU a tile and its temporaries should fit into the cache.
CPU_TILE = 1024
# On a GPU, which small tiles would leave idle between launches, the share of its memory for a tile
# with its temporaries.
GPU_SHARE = 1 / 64
TEMPORARIES = 6

Scratch = Float[Tensor, " entries"]


class Anchors(NamedTuple):
    """One number per image anchor of this process (rows) and per text anchor of all (columns)."""

    rows: Float[Tensor, " rows"]
    columns: Float[Tensor, " columns"]


class Strip(NamedTuple):
    """The similarities of this process's images to the texts of all processes, to be computed.

    Attributes:
        image, reference_image: this process's rows.
        text, reference_text: everyone's rows.
        start: the column of the first row's positive.
        dtype: of the similarities, float32 or wider; embeddings may be narrower.
    """

    image: Float[Tensor, "rows dim"]
    text: Float[Tensor, "columns dim"]
    reference_image: Float[Tensor, "rows dim_ref"] | None
    reference_text: Float[Tensor, "columns dim_ref"] | None
    start: int
    dtype: torch.dtype

    @property
    def own(self) -> slice:
        """The columns of this process's texts."""
        return slice(self.start, self.start + len(self.image))

    def new_anchors(self, *, fill: float = 0.0) -> Anchors:
        """Allocate a number for every anchor, in the precision of the similarities."""
        return Anchors(
            *(e.new_full((len(e),), fill, dtype=self.dtype) for e in (self.image, self.text))
        )

    def tiles(self) -> Iterator[tuple[slice, slice]]:
        size = tile_size(self.image.device, self.dtype)
        for top in range(0, len(self.image), size):
            for left in range(0, len(self.text), size):
                yield slice(top, top + size), slice(left, left + size)

    def scratch(self) -> Scratch:
        """Allocate memory for one tile after the other: allocation costs more than arithmetic."""
        size = tile_size(self.image.device, self.dtype)
        num_entries = min(size, len(self.image)) * min(size, len(self.text))
        return self.image.new_empty(num_entries, dtype=self.dtype)

    def similarities(
        self, rows: slice, columns: slice, *, into: Scratch | None = None
    ) -> Float[Tensor, "tile_rows tile_columns"]:
        """Compute `x_ij = S_ij - R_ij` of a tile, into scratch memory if it is given."""
        images, texts = self.image[rows].to(self.dtype), self.text[columns].to(self.dtype)
        out = None if into is None else as_tile(into, len(images), len(texts))
        x = torch.mm(images, texts.T, out=out)
        if self.reference_image is not None and self.reference_text is not None:
            images, texts = self.reference_image[rows], self.reference_text[columns]
            x.addmm_(images.to(self.dtype), texts.to(self.dtype).T, alpha=-1)
        return x

    def positives(self) -> Float[Tensor, " rows"]:
        """Compute `x_ii` of this process's pairs."""
        x = _dots(self.image, self.text[self.own], self.dtype)
        if self.reference_image is not None and self.reference_text is not None:
            x -= _dots(self.reference_image, self.reference_text[self.own], self.dtype)
        return x

    def diagonal(self, tile: Tensor, rows: slice, columns: slice) -> Tensor:
        """View the positives in a tile; there may be none."""
        return tile.diagonal(self.start + rows.start - columns.start)

    def rows_on_diagonal(self, rows: slice, columns: slice) -> slice:
        """Find this process's rows whose positive is in the tile."""
        first = max(rows.start, columns.start - self.start)
        last = min(rows.stop, columns.stop - self.start, len(self.image), self.own.stop)
        return slice(first, max(first, last))


class KeptTiles:
    """The tiles of a strip that its first pass leaves to later ones, as far as a budget goes.

    A tile has the same bits whether it was kept or is formed again.
    """

    def __init__(self, num_bytes: float):
        self._left = num_bytes
        self._tiles: dict[tuple[int, int], Tensor] = {}

    def tile(
        self, strip: Strip, rows: slice, columns: slice, *, into: Scratch
    ) -> Float[Tensor, "tile_rows tile_columns"]:
        """Return a tile that was kept; or form it, in memory of its own while there is room."""
        place = rows.start, columns.start
        kept = self._tiles.get(place)
        if kept is not None:
            return kept
        heights, widths = rows.indices(len(strip.image)), columns.indices(len(strip.text))
        num_bytes = len(range(*heights)) * len(range(*widths)) * strip.dtype.itemsize
        if num_bytes > self._left:
            return strip.similarities(rows, columns, into=into)
        self._left -= num_bytes
        self._tiles[place] = strip.similarities(rows, columns)
        return self._tiles[place]

    def clear(self) -> None:
        """Free the memory; whoever needs a tile once more has it formed again."""
        self._left = 0
        self._tiles.clear()


def as_tile(
    scratch: Scratch, num_rows: int, num_columns: int
) -> Float[Tensor, "num_rows num_columns"]:
    """View scratch memory as a tile, uninitialised."""
    return scratch[: num_rows * num_columns].view(num_rows, num_columns)


def anchor_temperatures(
    temperature: Float[Tensor, "..."], pairs: Partition, *, dtype: torch.dtype
) -> Anchors:
    """Expand temperatures to the anchors, without gradient; a collective unless there is one."""
    tau = temperature.detach().to(dtype)
    num_own = pairs.sizes[pairs.rank]
    if tau.ndim == 0:
        return Anchors(tau.expand(num_own), tau.expand(pairs.num_rows))
    rows, columns = tau.expand(2, num_own)
    return Anchors(rows, pairs.all_gather(columns))


def one_temperature(temperature: Anchors) -> bool:
    """Whether `anchor_temperatures` expanded a single number."""
    rows, columns = temperature
    return rows.stride() == columns.stride() == (0,) and rows.data_ptr() == columns.data_ptr()


def make_strip(target: PairEmbeddings, reference: PairEmbeddings | None, pairs: Partition) -> Strip:
    """Gather the texts of all processes, without a gradient; a collective."""
    return Strip(
        image=target.image,
        text=pairs.all_gather(target.text),
        reference_image=None if reference is None else reference.image,
        reference_text=None if reference is None else pairs.all_gather(reference.text),
        start=pairs.start,
        dtype=wide_dtype(target.image),
    )


def wide_dtype(embeddings: Tensor) -> torch.dtype:
    """The precision of similarities: float32, or wider if the embeddings are."""
    return torch.promote_types(embeddings.dtype, torch.float32)


def tile_size(device: torch.device, dtype: torch.dtype) -> int:
    """Number of rows and columns of a tile: a power of two, from the memory of the device."""
    if device.type != "cuda":
        return CPU_TILE
    memory = torch.cuda.get_device_properties(device).total_memory
    entries = GPU_SHARE * memory / (TEMPORARIES * dtype.itemsize)
    return max(CPU_TILE, 2 ** int(math.log2(math.sqrt(entries))))


def _dots(left: Tensor, right: Tensor, dtype: torch.dtype) -> Tensor:
    """Compute the inner products of corresponding rows."""
    return torch.einsum("id,id->i", left.to(dtype), right.to(dtype))
