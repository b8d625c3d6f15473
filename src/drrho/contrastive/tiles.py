"""The sums over negatives and their gradients, tile by tile and over processes.

The same function as `drrho.contrastive.risk.log_gap_means`, without a B x B matrix. The contrastive
objectives are made of its 2 B numbers, so this is the one place that has to be fast.
"""

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from drrho.contrastive.risk import PairEmbeddings, check_negatives, check_pairs
from drrho.distributed import Partition, ProcessGroup, partition

# Rows and columns of a tile; tile and temporaries stay near the processor.
TILE = 1024
# Bytes of all tiles together up to which the first pass keeps them for the second.
LARGEST_KEPT = 2**26


def tiled_log_gap_means(
    target: PairEmbeddings,
    reference: PairEmbeddings | None = None,
    *,
    temperature: Float[Tensor, "..."],
    group: ProcessGroup | None = None,
) -> Float[Tensor, "2 batch"]:
    """`log g` of image and text anchors: `log_gap_means`, with the pairs of all processes.

    Two passes over tiles of x: the first accumulates the sums of rows and columns, the second,
    for the gradient, forms each tile again. Memory beyond arguments, result and gradients is a
    few tiles and O(B) numbers.

    With K processes, whose pairs are each other's negatives, a process has the strip of its own
    images against all texts. Sums of columns are combined between processes, and the gradient of
    a text is added up where it lies. Numbers of pairs may differ.

    Args:
        target, reference, temperature: as for `log_gap_means`; of this process's pairs. The
            gradient is exact; embeddings in half precision are used as float32 numbers.
        group: whose pairs belong together; None is the default group, or this process alone
            without one.

    Returns:
        Of this process's anchors. Going backward, from any losses of its own anchors on each
        process, gives each the gradient of the sum of all processes' losses.

    Raises:
        ValueError: as `log_gap_means`.

    Source: docs/mathematics.md, "Tiles".
    """
    check_pairs(target, reference)
    processes = partition(len(target.image), group=group, device=target.image.device)
    check_negatives(processes.num_rows)
    images, texts = (None, None) if reference is None else reference
    of_anchors = temperature.expand(2, len(target.image))
    result = _TiledLogGapMeans.apply(*target, images, texts, of_anchors, processes)
    assert isinstance(result, Tensor)
    return result


class _Strip(NamedTuple):
    """This process's images against the texts of all, in the precision of the sums.

    Attributes:
        image, reference_image: this process's rows.
        text, reference_text: everyone's rows.
        row_temperature, column_temperature: of image anchors and of everyone's text anchors.
        start: the column of the first row's positive.
    """

    image: Float[Tensor, "rows dim"]
    text: Float[Tensor, "columns dim"]
    reference_image: Float[Tensor, "rows dim_ref"] | None
    reference_text: Float[Tensor, "columns dim_ref"] | None
    row_temperature: Float[Tensor, " rows"]
    column_temperature: Float[Tensor, " columns"]
    start: int

    @property
    def dtype(self) -> torch.dtype:
        return self.row_temperature.dtype

    def tiles(self) -> Iterator[tuple[slice, slice]]:
        for top in range(0, len(self.image), TILE):
            for left in range(0, len(self.text), TILE):
                yield slice(top, top + TILE), slice(left, left + TILE)

    def similarities(self, rows: slice, columns: slice) -> Float[Tensor, "tile_rows tile_columns"]:
        """`x_ij` of a tile."""
        x = self.image[rows].to(self.dtype) @ self.text[columns].to(self.dtype).T
        if self.reference_image is not None and self.reference_text is not None:
            images, texts = self.reference_image[rows], self.reference_text[columns]
            x.addmm_(images.to(self.dtype), texts.to(self.dtype).T, alpha=-1)
        return x

    def positives(self, tile: Tensor, rows: slice, columns: slice) -> Tensor:
        """The part of a tile that lies on the diagonal of pairs: a view, perhaps empty."""
        return tile.diagonal(self.start + rows.start - columns.start)


class _TiledLogGapMeans(torch.autograd.Function):
    @staticmethod
    def forward(  # noqa: PLR0913 - autograd sees tensors only as arguments
        ctx: Any,
        image: Tensor,
        text: Tensor,
        reference_image: Tensor | None,
        reference_text: Tensor | None,
        temperature: Tensor,
        processes: Partition,
    ) -> Tensor:
        dtype = torch.promote_types(image.dtype, torch.float32)
        of_rows, of_columns = temperature.to(dtype)
        strip = _Strip(
            image=image,
            text=processes.gather(text),
            reference_image=reference_image,
            reference_text=None if reference_text is None else processes.gather(reference_text),
            row_temperature=of_rows,
            column_temperature=processes.gather(of_columns),
            start=processes.start,
        )
        with torch.autocast(image.device.type, enabled=False):
            positives = _dots(image, text, dtype)
            if reference_image is not None and reference_text is not None:
                positives -= _dots(reference_image, reference_text, dtype)
            log_rows, log_columns, ctx.tiles = _log_sums(strip)
        largest = processes.maximum(log_columns.clone())
        log_columns = largest + processes.sum((log_columns - largest).exp()).log()

        ctx.save_for_backward(*strip[:6], positives, log_rows, log_columns)
        ctx.processes = processes
        own_columns = processes.own(log_columns)
        log_negatives = math.log(processes.num_rows - 1)
        rows = log_rows - positives / of_rows - log_negatives
        columns = own_columns - positives / of_columns - log_negatives
        return torch.stack([rows, columns])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        *saved, positives, log_rows, log_columns = ctx.saved_tensors
        processes = ctx.processes
        strip = _Strip(*saved, start=processes.start)
        weights = _Weights(
            log_rows, log_columns, of_rows=upstream[0], of_columns=processes.gather(upstream[1])
        )
        needs_temperature = ctx.needs_input_grad[4]
        with torch.autocast(strip.image.device.type, enabled=False):
            gradient = _gradient(strip, weights, ctx.tiles, needs_temperature=needs_temperature)
        ctx.tiles = None
        image = gradient.image.to(strip.image.dtype)
        text = processes.own_of_sum(gradient.text).to(strip.text.dtype)
        temperature = None
        if needs_temperature:
            means = [gradient.row_means, processes.own_of_sum(gradient.column_means)]
            own = torch.stack([strip.row_temperature, processes.own(strip.column_temperature)])
            temperature = upstream * (positives - torch.stack(means)) / own.square()
        return image, text, None, None, temperature, None


def _dots(left: Tensor, right: Tensor, dtype: torch.dtype) -> Tensor:
    """Inner products of the rows."""
    return torch.einsum("id,id->i", left.to(dtype), right.to(dtype))


def _log_sums(strip: _Strip) -> tuple[Tensor, Tensor, list[Tensor] | None]:
    """`log sum exp(x / tau)` over the negatives in each row and in each column of the strip; and
    the tiles, if they are few enough to be kept.
    """
    log_rows = torch.full_like(strip.row_temperature, -math.inf)
    log_columns = torch.full_like(strip.column_temperature, -math.inf)
    num_bytes = len(log_rows) * len(log_columns) * log_rows.element_size()
    kept = [] if num_bytes <= LARGEST_KEPT else None
    for rows, columns in strip.tiles():
        x = strip.similarities(rows, columns)
        if kept is not None:
            kept.append(x.clone())
        strip.positives(x, rows, columns).fill_(-math.inf)
        for log_sums, temperature, part, dim in (
            (log_rows, strip.row_temperature, rows, 1),
            (log_columns, strip.column_temperature, columns, 0),
        ):
            z = x / temperature[part].unsqueeze(dim)
            log_sums[part] = torch.logaddexp(log_sums[part], z.logsumexp(dim=dim))
    return log_rows, log_columns, kept


class _Weights(NamedTuple):
    """Normalisers of the rows and columns, and the gradient that arrives at them."""

    log_rows: Float[Tensor, " rows"]
    log_columns: Float[Tensor, " columns"]
    of_rows: Float[Tensor, " rows"]
    of_columns: Float[Tensor, " columns"]


class _Gradient(NamedTuple):
    """Of the strip; what is of columns is this process's part of a sum.

    `row_means` and `column_means` are the means of x over an anchor's negatives under its
    weights, empty unless a temperature needs them.
    """

    image: Float[Tensor, "rows dim"]
    text: Float[Tensor, "columns dim"]
    row_means: Float[Tensor, " rows"]
    column_means: Float[Tensor, " columns"]


def _gradient(
    strip: _Strip, weights: _Weights, kept: list[Tensor] | None, *, needs_temperature: bool
) -> _Gradient:
    of_rows = weights.of_rows / strip.row_temperature
    of_columns = weights.of_columns / strip.column_temperature
    own = slice(strip.start, strip.start + len(of_rows))
    at_positives = -(of_rows + of_columns[own])
    result = _Gradient(
        image=torch.zeros_like(strip.image, dtype=strip.dtype),
        text=torch.zeros_like(strip.text, dtype=strip.dtype),
        row_means=torch.zeros_like(of_rows),
        column_means=torch.zeros_like(of_columns),
    )
    for number, (rows, columns) in enumerate(strip.tiles()):
        x = strip.similarities(rows, columns) if kept is None else kept[number]
        p_rows = _probabilities(x, strip.row_temperature[rows, None], weights.log_rows[rows, None])
        p_columns = _probabilities(
            x, strip.column_temperature[columns], weights.log_columns[columns]
        )
        for p in (p_rows, p_columns):
            strip.positives(p, rows, columns).zero_()
        if needs_temperature:
            result.row_means[rows] += torch.einsum("ij,ij->i", p_rows, x)
            result.column_means[columns] += torch.einsum("ij,ij->j", p_columns, x)
        c = p_rows.mul_(of_rows[rows, None]).addcmul_(p_columns, of_columns[columns])
        diagonal = strip.positives(c, rows, columns)
        first = max(0, columns.start - strip.start - rows.start)
        diagonal.copy_(at_positives[rows][first : first + len(diagonal)])
        result.image[rows].addmm_(c, strip.text[columns].to(strip.dtype))
        result.text[columns].addmm_(c.T, strip.image[rows].to(strip.dtype))
    return result


def _probabilities(x: Tensor, temperature: Tensor, log_sums: Tensor) -> Tensor:
    return torch.addcmul(-log_sums, x, 1 / temperature).exp_()
