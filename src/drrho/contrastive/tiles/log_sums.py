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
    KeptTiles,
    Strip,
    anchor_temperatures,
    as_tile,
    make_strip,
    one_temperature,
    wide_dtype,
)
from drrho.contrastive.tiles.tiling import DEFAULT_TILING, Tiling, kept_bytes
from drrho.runtime.distributed import Partition


def tiled_log_gap_means(
    target: PairEmbeddings,
    reference: PairEmbeddings | None = None,
    *,
    temperature: Tau,
    pairs: Partition | None = None,
    tiling: Tiling = DEFAULT_TILING,
) -> Float[Tensor, "2 batch"]:
    """`log g` of image and text anchors: `log_gap_means`, with the pairs of all processes.

    Two passes over tiles of x: the first accumulates the sums of rows and columns and keeps tiles
    within a budget of memory; the second, for the gradient, forms the others again. Memory beyond
    arguments, result and gradients is that budget, a few tiles and O(B) numbers. With K processes,
    which may have different numbers of pairs, sums of columns are combined between them, and the
    gradient of a text is added up on the process that holds it.

    Args:
        target, reference, temperature: as for `log_gap_means`; of this process's pairs. The
            gradient is exact; embeddings in half precision are used as float32 numbers.
        pairs: how many pairs each process has, as `pair_partition` finds out; None asks the
            processes of the default group.
        tiling: the memory of tiles that are kept, which changes no bit of the result.

    Returns:
        `log g` of this process's anchors. The backward pass, from any losses of its own anchors on
        each process, gives each the gradient of the sum of all processes' losses.

    Raises:
        ValueError: as `log_gap_means`.

    Source: docs/mathematics.md, "Tiles".
    """
    passes = Passes(log_sums, _gradient)
    return log_gap_means_in_passes(
        passes, target, reference, temperature=temperature, pairs=pairs, tiling=tiling
    )


class Gradient(NamedTuple):
    """Gradients of one strip. Those of columns are partial sums, to be reduced over processes."""

    image: Float[Tensor, "rows dim"]
    text: Float[Tensor, "columns dim"]
    means: Anchors  # of x under an anchor's weights; zeros unless the temperature has a gradient


class Passes(NamedTuple):
    """Forward and backward pass over the tiles of a strip, in torch or in Triton.

    Attributes:
        log_sums: strip and temperatures to `log sum exp(x / tau)` over the negatives of each row
            and column; by keyword where tiles may be kept.
        gradient: strip, temperatures, sums, the gradient of the loss in the sums and the kept
            tiles, to `Gradient`; by keyword whether the means are needed.
    """

    log_sums: Callable[..., Anchors]
    gradient: Callable[..., Gradient]


def log_gap_means_in_passes(
    passes: Passes,
    target: PairEmbeddings,
    reference: PairEmbeddings | None,
    *,
    temperature: Tau,
    pairs: Partition | None,
    tiling: Tiling,
) -> Float[Tensor, "2 batch"]:
    """Compute `tiled_log_gap_means` by the given passes, with its collectives and its autograd."""
    check_pairs(target, reference)
    pairs = pair_partition(target) if pairs is None else pairs
    check_negatives(pairs.num_rows)
    images, texts = (None, None) if reference is None else reference
    temperature = as_tau(temperature, target.image)
    of_anchors = temperature.expand(2, len(target.image))
    anchors = anchor_temperatures(temperature, pairs, dtype=wide_dtype(target.image))
    kept = KeptTiles(kept_bytes(tiling, target, pairs))
    result = _LogGapMeans.apply(passes, *target, images, texts, of_anchors, anchors, pairs, kept)
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
        kept: KeptTiles,
    ) -> Tensor:
        del temperature  # an input for its gradient alone; `anchors` has the texts of all
        reference = None
        if reference_image is not None and reference_text is not None:
            reference = PairEmbeddings(reference_image, reference_text)
        strip = make_strip(PairEmbeddings(image, text), reference, pairs)
        of_rows, of_columns = anchors.rows, pairs.own(anchors.columns)
        with torch.autocast(image.device.type, enabled=False):
            positives = strip.positives()
            sums = passes.log_sums(strip, anchors, kept=kept)
        log_columns = pairs.log_sum_exp(sums.columns)

        ctx.save_for_backward(*strip[:4], *anchors, positives, sums.rows, log_columns)
        ctx.pairs, ctx.start, ctx.dtype = pairs, strip.start, strip.dtype
        ctx.passes, ctx.kept = passes, kept
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
        ctx.kept.clear()
        image = gradient.image.to(strip.image.dtype)
        text = pairs.reduce_scatter(gradient.text).to(strip.text.dtype)
        of_temperature = None
        if needs_temperature:
            means = [gradient.means.rows, pairs.reduce_scatter(gradient.means.columns)]
            own = torch.stack([of_rows, pairs.own(of_columns)])
            of_temperature = grad_output * (positives - torch.stack(means)) / own.square()
        return None, image, text, None, None, of_temperature, None, None, None


def log_sums(
    strip: Strip,
    temperature: Anchors,
    *,
    with_positives: bool = False,
    kept: KeptTiles | None = None,
) -> Anchors:
    """Compute `log sum exp(x / tau)` of each row and column of the strip, over negatives or over
    all; tiles of x are left in `kept`.
    """
    kept = KeptTiles(0) if kept is None else kept
    sums = strip.new_anchors(fill=-math.inf)
    tile, scaled, shifted = strip.scratch(), strip.scratch(), strip.scratch()
    alike = one_temperature(temperature)
    lowest = torch.finfo(strip.dtype).min
    for rows, columns in strip.tiles():
        x = kept.tile(strip, rows, columns, into=tile)
        z, spare = as_tile(scaled, *x.shape), as_tile(shifted, *x.shape)
        for found, tau, part, dim in (
            (sums.rows, temperature.rows, rows, 1),
            (sums.columns, temperature.columns, columns, 0),
        ):
            if dim == 1 or not alike:  # one temperature has the same z along the columns
                torch.mul(x, 1 / tau[part].unsqueeze(dim), out=z)
                if not with_positives:
                    strip.diagonal(z, rows, columns).fill_(-math.inf)
            # torch.logsumexp would allocate; and a row of the tile may hold nothing but a positive.
            largest = z.amax(dim=dim, keepdim=True).clamp_min_(lowest)
            exponentials = torch.sub(z, largest, out=spare if dim == 1 and alike else z).exp_()
            of_tile = exponentials.sum(dim=dim).log_().add_(largest.squeeze(dim))
            found[part] = torch.logaddexp(found[part], of_tile)
    return sums


def _gradient(
    strip: Strip,
    temperature: Anchors,
    sums: Anchors,
    grad_sums: Anchors,
    kept: KeptTiles,
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
    alike = one_temperature(temperature)
    for rows, columns in strip.tiles():
        x = kept.tile(strip, rows, columns, into=tile)
        c, p = as_tile(for_rows, *x.shape), as_tile(for_columns, *x.shape)
        sides = (
            (c, of_rows, temperature.rows, sums.rows, result.means.rows, rows, 1),
            (p, of_columns, temperature.columns, sums.columns, result.means.columns, columns, 0),
        )
        for weights, factors, tau, total, means, part, dim in sides:
            if dim == 1 or not alike:
                torch.mul(x, 1 / tau[part].unsqueeze(dim), out=p)
            torch.sub(p, total[part].unsqueeze(dim), out=weights).exp_()
            strip.diagonal(weights, rows, columns).zero_()
            if needs_temperature:
                means[part] += (weights * x).sum(dim=dim)
            weights.mul_(factors[part].unsqueeze(dim))
        c.add_(p)
        strip.diagonal(c, rows, columns).copy_(at_positives[strip.rows_on_diagonal(rows, columns)])
        result.image[rows].addmm_(c, strip.text[columns].to(strip.dtype))
        result.text[columns].addmm_(c.T, strip.image[rows].to(strip.dtype))
    return result
