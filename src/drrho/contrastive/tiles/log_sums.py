"""The sums over negatives and their gradients, tile by tile and over processes.

The same function as `drrho.contrastive.exact.log_gap_means`, without a B x B matrix. The
contrastive objectives are made of its 2 B numbers, so this is the one place that has to be fast.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from drrho.contrastive.memory.temperature import Tau, as_tau
from drrho.contrastive.pairs import PairEmbeddings, check_negatives, check_pairs, pair_partition
from drrho.contrastive.tiles.strip import (
    Anchors,
    Strip,
    anchor_temperatures,
    as_tile,
    make_strip,
    wide_dtype,
)
from drrho.runtime.distributed import Partition


def tiled_log_gap_means(
    target: PairEmbeddings,
    reference: PairEmbeddings | None = None,
    *,
    temperature: Tau,
    pairs: Partition | None = None,
) -> Float[Tensor, "2 batch"]:
    """`log g` of image and text anchors: `log_gap_means`, with the pairs of all processes.

    Two passes over tiles of x: the first accumulates the sums of rows and columns, the second,
    for the gradient, forms each tile again. Memory beyond arguments, result and gradients is a
    few tiles and O(B) numbers. With K processes, which may have different numbers of pairs, sums of
    columns are combined between them, and the gradient of a text is added up where it lies.

    Args:
        target, reference, temperature: as for `log_gap_means`; of this process's pairs. The
            gradient is exact; embeddings in half precision are used as float32 numbers.
        pairs: how many pairs each process has, as `pair_partition` finds out; None asks the
            processes of the default group.

    Returns:
        `log g` of this process's anchors. The backward pass, from any losses of its own anchors on
        each process, gives each the gradient of the sum of all processes' losses.

    Raises:
        ValueError: as `log_gap_means`.

    Source: docs/mathematics.md, "Tiles".
    """
    passes = Passes(log_sums, _gradient)
    return log_gap_means_in_passes(passes, target, reference, temperature=temperature, pairs=pairs)


class Gradient(NamedTuple):
    """Gradients of one strip. Those of columns are partial sums, to be reduced over processes."""

    image: Float[Tensor, "rows dim"]
    text: Float[Tensor, "columns dim"]
    means: Anchors  # of x under an anchor's weights; zeros unless the temperature has a gradient


class Passes(NamedTuple):
    """Forward and backward pass over the tiles of a strip, in torch or in Triton.

    Attributes:
        log_sums: strip and temperatures to `log sum exp(x / tau)` over the negatives of each row
            and column, and to tiles that the backward pass may use again.
        gradient: strip, temperatures, sums, the gradient of the loss in the sums and the kept
            tiles, to `Gradient`; by keyword whether the means are needed.
    """

    log_sums: Callable[[Strip, Anchors], tuple[Anchors, list[Tensor] | None]]
    gradient: Callable[..., Gradient]


def log_gap_means_in_passes(
    passes: Passes,
    target: PairEmbeddings,
    reference: PairEmbeddings | None,
    *,
    temperature: Tau,
    pairs: Partition | None,
) -> Float[Tensor, "2 batch"]:
    """Compute `tiled_log_gap_means` by the given passes, with its collectives and its autograd."""
    check_pairs(target, reference)
    pairs = pair_partition(target) if pairs is None else pairs
    check_negatives(pairs.num_rows)
    images, texts = (None, None) if reference is None else reference
    temperature = as_tau(temperature, target.image)
    of_anchors = temperature.expand(2, len(target.image))
    anchors = anchor_temperatures(temperature, pairs, dtype=wide_dtype(target.image))
    result = _LogGapMeans.apply(passes, *target, images, texts, of_anchors, anchors, pairs)
    assert isinstance(result, Tensor)
    return result


class _LogGapMeans(torch.autograd.Function):
    @staticmethod
    def forward(  # noqa: PLR0913 - autograd sees tensors only as arguments
        ctx: Any,
        passes: Passes,
        image: Tensor,
        text: Tensor,
        reference_image: Tensor | None,
        reference_text: Tensor | None,
        temperature: Tensor,
        anchors: Anchors,
        pairs: Partition,
    ) -> Tensor:
        del temperature  # an input for its gradient alone; `anchors` has the texts of all
        reference = None
        if reference_image is not None and reference_text is not None:
            reference = PairEmbeddings(reference_image, reference_text)
        strip = make_strip(PairEmbeddings(image, text), reference, pairs)
        of_rows, of_columns = anchors.rows, pairs.own(anchors.columns)
        with torch.autocast(image.device.type, enabled=False):
            positives = strip.positives()
            sums, ctx.kept = passes.log_sums(strip, anchors)
        log_columns = pairs.log_sum_exp(sums.columns)

        ctx.save_for_backward(*strip[:4], *anchors, positives, sums.rows, log_columns)
        ctx.pairs, ctx.start, ctx.dtype = pairs, strip.start, strip.dtype
        ctx.passes = passes
        log_negatives = math.log(pairs.num_rows - 1)
        rows = sums.rows - positives / of_rows - log_negatives
        columns = pairs.own(log_columns) - positives / of_columns - log_negatives
        return torch.stack([rows, columns])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        *embeddings, of_rows, of_columns, positives, log_rows, log_columns = ctx.saved_tensors
        pairs = ctx.pairs
        strip = Strip(*embeddings, start=ctx.start, dtype=ctx.dtype)
        temperature = Anchors(of_rows, of_columns)
        sums = Anchors(log_rows, log_columns)
        grad_sums = Anchors(grad_output[0], pairs.all_gather(grad_output[1]))
        needs_temperature = ctx.needs_input_grad[5]
        with torch.autocast(strip.image.device.type, enabled=False):
            gradient = ctx.passes.gradient(
                strip, temperature, sums, grad_sums, ctx.kept, needs_temperature=needs_temperature
            )
        ctx.kept = None
        image = gradient.image.to(strip.image.dtype)
        text = pairs.reduce_scatter(gradient.text).to(strip.text.dtype)
        of_temperature = None
        if needs_temperature:
            means = [gradient.means.rows, pairs.reduce_scatter(gradient.means.columns)]
            own = torch.stack([of_rows, pairs.own(of_columns)])
            of_temperature = grad_output * (positives - torch.stack(means)) / own.square()
        return None, image, text, None, None, of_temperature, None, None


def log_sums(
    strip: Strip, temperature: Anchors, *, with_positives: bool = False
) -> tuple[Anchors, list[Tensor] | None]:
    """Compute `log sum exp(x / tau)` of each row and column of the strip, over negatives or over
    all; also returns the tiles of x if they are few enough to be kept.
    """
    sums = strip.new_anchors(fill=-math.inf)
    kept = [] if strip.keeps_tiles and not with_positives else None
    tile, scaled = strip.scratch(), strip.scratch()
    lowest = torch.finfo(strip.dtype).min
    for rows, columns in strip.tiles():
        x = strip.similarities(rows, columns, into=tile if kept is None else None)
        if kept is not None:
            kept.append(x)
        for found, tau, part, dim in (
            (sums.rows, temperature.rows, rows, 1),
            (sums.columns, temperature.columns, columns, 0),
        ):
            z = torch.mul(x, 1 / tau[part].unsqueeze(dim), out=as_tile(scaled, *x.shape))
            if not with_positives:
                strip.diagonal(z, rows, columns).fill_(-math.inf)
            # torch.logsumexp would allocate; and a row of the tile may hold nothing but a positive.
            largest = z.amax(dim=dim, keepdim=True).clamp_min_(lowest)
            of_tile = z.sub_(largest).exp_().sum(dim=dim).log_().add_(largest.squeeze(dim))
            found[part] = torch.logaddexp(found[part], of_tile)
    return sums, kept


def _gradient(
    strip: Strip,
    temperature: Anchors,
    sums: Anchors,
    grad_sums: Anchors,
    kept: list[Tensor] | None,
    *,
    needs_temperature: bool,
) -> Gradient:
    of_rows, of_columns = (a / tau for a, tau in zip(grad_sums, temperature, strict=True))
    at_positives = -(of_rows + of_columns[strip.own])
    result = Gradient(
        image=torch.zeros_like(strip.image, dtype=strip.dtype),
        text=torch.zeros_like(strip.text, dtype=strip.dtype),
        means=strip.new_anchors(),
    )
    tile, for_rows, for_columns = strip.scratch(), strip.scratch(), strip.scratch()
    for number, (rows, columns) in enumerate(strip.tiles()):
        x = strip.similarities(rows, columns, into=tile) if kept is None else kept[number]
        c, p = as_tile(for_rows, *x.shape), as_tile(for_columns, *x.shape)
        sides = (
            (c, of_rows, temperature.rows, sums.rows, result.means.rows, rows, 1),
            (p, of_columns, temperature.columns, sums.columns, result.means.columns, columns, 0),
        )
        for weights, factors, tau, total, means, part, dim in sides:
            torch.mul(x, 1 / tau[part].unsqueeze(dim), out=weights)
            weights.sub_(total[part].unsqueeze(dim)).exp_()
            strip.diagonal(weights, rows, columns).zero_()
            if needs_temperature:
                means[part] += (weights * x).sum(dim=dim)
            weights.mul_(factors[part].unsqueeze(dim))
        c.add_(p)
        strip.diagonal(c, rows, columns).copy_(at_positives[strip.rows_on_diagonal(rows, columns)])
        result.image[rows].addmm_(c, strip.text[columns].to(strip.dtype))
        result.text[columns].addmm_(c.T, strip.image[rows].to(strip.dtype))
    return result
