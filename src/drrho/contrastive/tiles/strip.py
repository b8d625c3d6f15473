"""A process's images against everyone's texts, in tiles: how every loss walks the B x B matrix.

No loss here holds that matrix. Each forms a tile of similarities, reduces it to what it needs of
the tile's rows and columns, and forms it again for the gradient.
"""

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from drrho.contrastive.pairs import PairEmbeddings
from drrho.runtime.distributed import Partition

# On a CPU the tile and its temporaries should stay near the processor; larger is slower.
CPU_TILE = 1024
# Bytes of all tiles together up to which a CPU's first pass keeps them for the second.
CPU_KEPT = 2**26
# On a GPU, where small tiles leave it idle between launches, the share of its memory for a tile
# with its temporaries, or for the tiles that are kept.
GPU_SHARE = 1 / 64
TEMPORARIES = 6


class Anchors(NamedTuple):
    """A number for each image anchor of this process and for each text anchor of all."""

    rows: Float[Tensor, " rows"]
    columns: Float[Tensor, " columns"]


class Strip(NamedTuple):
    """This process's images against the texts of all, in one precision.

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

    @property
    def keeps_tiles(self) -> bool:
        """Whether all tiles together are small enough to be kept between two passes."""
        num_bytes = len(self.image) * len(self.text) * self.dtype.itemsize
        return num_bytes <= largest_kept(self.image.device)

    def new_anchors(self, *, fill: float = 0.0) -> Anchors:
        """Equal numbers, in the precision of the similarities."""
        return Anchors(
            *(e.new_full((len(e),), fill, dtype=self.dtype) for e in (self.image, self.text))
        )

    def tiles(self) -> Iterator[tuple[slice, slice]]:
        size = tile_size(self.image.device, self.dtype)
        for top in range(0, len(self.image), size):
            for left in range(0, len(self.text), size):
                yield slice(top, top + size), slice(left, left + size)

    def scratch(self) -> "Scratch":
        """Memory for a tile, to be used for one tile after the other."""
        size = tile_size(self.image.device, self.dtype)
        num_entries = min(size, len(self.image)) * min(size, len(self.text))
        return Scratch(self.image.new_empty(num_entries, dtype=self.dtype))

    def similarities(
        self, rows: slice, columns: slice, *, into: "Scratch | None" = None
    ) -> Float[Tensor, "tile_rows tile_columns"]:
        """`x_ij = S_ij - R_ij` of a tile, in memory of its own or in that of the last tile."""
        images, texts = self.image[rows].to(self.dtype), self.text[columns].to(self.dtype)
        out = None if into is None else into.like(len(images), len(texts))
        x = torch.mm(images, texts.T, out=out)
        if self.reference_image is not None and self.reference_text is not None:
            images, texts = self.reference_image[rows], self.reference_text[columns]
            x.addmm_(images.to(self.dtype), texts.to(self.dtype).T, alpha=-1)
        return x

    def positives(self) -> Float[Tensor, " rows"]:
        """`x_ii` of this process's pairs."""
        x = _dots(self.image, self.text[self.own], self.dtype)
        if self.reference_image is not None and self.reference_text is not None:
            x -= _dots(self.reference_image, self.reference_text[self.own], self.dtype)
        return x

    def diagonal(self, tile: Tensor, rows: slice, columns: slice) -> Tensor:
        """The part of a tile that lies on the diagonal of pairs: a view, perhaps empty."""
        return tile.diagonal(self.start + rows.start - columns.start)

    def rows_on_diagonal(self, rows: slice, columns: slice) -> slice:
        """Which of this process's rows have their positive in the tile."""
        first = max(rows.start, columns.start - self.start)
        last = min(rows.stop, columns.stop - self.start, len(self.image), self.own.stop)
        return slice(first, max(first, last))


class Scratch(NamedTuple):
    """Memory that is used again and again.

    To a processor fresh memory costs more than the arithmetic of an element-wise step: the system
    clears every page of it first.
    """

    memory: Float[Tensor, " entries"]

    def like(self, num_rows: int, num_columns: int) -> Float[Tensor, "num_rows num_columns"]:
        """A tile in it, of any content."""
        return self.memory[: num_rows * num_columns].view(num_rows, num_columns)


def anchor_temperatures(
    temperature: Float[Tensor, "..."], pairs: Partition, *, dtype: torch.dtype
) -> Anchors:
    """The temperature of each anchor, without gradient; a collective unless it is one number."""
    tau = temperature.detach().to(dtype)
    num_own = pairs.sizes[pairs.rank]
    if tau.ndim == 0:
        return Anchors(tau.expand(num_own), tau.expand(pairs.num_rows))
    rows, columns = tau.expand(2, num_own)
    return Anchors(rows, pairs.gather(columns))


def make_strip(target: PairEmbeddings, reference: PairEmbeddings | None, pairs: Partition) -> Strip:
    """Gathers the texts of all processes, without a gradient; a collective."""
    return Strip(
        image=target.image,
        text=pairs.gather(target.text),
        reference_image=None if reference is None else reference.image,
        reference_text=None if reference is None else pairs.gather(reference.text),
        start=pairs.start,
        dtype=wide_dtype(target.image),
    )


def wide_dtype(embeddings: Tensor) -> torch.dtype:
    """The precision of similarities: float32, or wider if the embeddings are."""
    return torch.promote_types(embeddings.dtype, torch.float32)


def tile_size(device: torch.device, dtype: torch.dtype) -> int:
    """Rows and columns of a tile: a power of two, from the memory of the device."""
    if device.type != "cuda":
        return CPU_TILE
    memory = torch.cuda.get_device_properties(device).total_memory
    entries = GPU_SHARE * memory / (TEMPORARIES * dtype.itemsize)
    return max(CPU_TILE, 2 ** int(math.log2(math.sqrt(entries))))


def largest_kept(device: torch.device) -> int:
    """Bytes of tiles that may be kept."""
    if device.type != "cuda":
        return CPU_KEPT
    return int(GPU_SHARE * torch.cuda.get_device_properties(device).total_memory)


def _dots(left: Tensor, right: Tensor, dtype: torch.dtype) -> Tensor:
    """Inner products of the rows."""
    return torch.einsum("id,id->i", left.to(dtype), right.to(dtype))
