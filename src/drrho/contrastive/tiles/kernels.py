"""The sums over negatives and their gradients for CUDA, in Triton.

`drrho.contrastive.tiles.log_sums` with a kernel in the place of each pass: a tile of similarities
stays on the chip while it is reduced to its sums, or turned into the coefficients of the gradient,
which torch multiplies with the embeddings.

It has been tested in Triton's interpreter only and has never run on a GPU, so it is used only where
it is asked for, by `impl="triton"`. `benchmarks/kernels.py` measures it against the tiles.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from drrho.contrastive.memory.temperature import Tau
from drrho.contrastive.pairs import PairEmbeddings
from drrho.contrastive.tiles import triton
from drrho.contrastive.tiles.log_sums import Gradient, Passes, log_gap_means_in_passes
from drrho.contrastive.tiles.strip import Anchors, KeptTiles, Strip
from drrho.contrastive.tiles.tiling import DEFAULT_TILING
from drrho.contrastive.tiles.triton import Blocks
from drrho.runtime.distributed import Partition

# A program holds a tile in float32 on the chip; half precision has room for a larger one.
HALF_BLOCKS = Blocks(rows=128, columns=128, inner=64, warps=8, stages=3)
SINGLE_BLOCKS = Blocks(rows=64, columns=64, inner=32, warps=4, stages=2)
# Bytes of coefficients, rows of them against all columns, between kernel and product.
COEFFICIENT_BYTES = 2**28


def fused_log_gap_means(
    target: PairEmbeddings,
    reference: PairEmbeddings | None = None,
    *,
    temperature: Tau,
    pairs: Partition | None = None,
) -> Float[Tensor, "2 batch"]:
    """`log g` of image and text anchors: `tiled_log_gap_means` for CUDA.

    Products of half-precision embeddings are exact and added up in float32. The coefficients of
    the gradient, but for the positives', are rounded to the embeddings' precision, scaled so that
    none is lost, before they are multiplied with the embeddings (PyTorch 2.8 or newer). Memory
    beyond arguments, result and gradients: partial sums of 8 B^2 / 128 bytes, and coefficients of
    at most 2^28 bytes.

    Raises:
        RuntimeError: Triton is not installed.
        TypeError: embeddings that are not float32, bfloat16 or float16.
        ValueError: embeddings on the CPU (where Triton is not interpreted), or as
            `tiled_log_gap_means`.

    Source: docs/mathematics.md, "Tiles".
    """
    _check_device(target.image)
    passes = Passes(_log_sums, _gradient)
    return log_gap_means_in_passes(
        passes, target, reference, temperature=temperature, pairs=pairs, tiling=DEFAULT_TILING
    )


def _check_device(image: Tensor) -> None:
    if not triton.is_available():
        raise RuntimeError(
            "fused_log_gap_means needs Triton, which comes with PyTorch for CUDA; elsewhere "
            "`pip install triton`, or take impl='tiles' (tiled_log_gap_means)"
        )
    if image.dtype not in (torch.float32, torch.bfloat16, torch.float16):
        raise TypeError(
            "fused_log_gap_means takes float32, bfloat16 or float16 embeddings, got "
            f"{image.dtype}; convert them, or take impl='tiles' (tiled_log_gap_means)"
        )
    if image.device.type != "cuda" and not triton.interpreted():
        raise ValueError(
            f"fused_log_gap_means needs a GPU, got embeddings on {image.device}; move "
            "them, or take impl='tiles' (tiled_log_gap_means)"
        )


def _blocks(strip: Strip) -> Blocks:
    return HALF_BLOCKS if strip.image.dtype.itemsize == 2 else SINGLE_BLOCKS


def _log_sums(strip: Strip, temperature: Anchors, *, kept: KeptTiles) -> Anchors:
    """Compute `log sum exp(x / tau)` over the negatives of each row and column of the strip."""
    del kept  # x is formed again
    if len(strip.image) == 0:
        return strip.new_anchors(fill=-math.inf)
    return triton.launch_log_sums(strip, temperature, blocks=_blocks(strip))


def _gradient(
    strip: Strip,
    temperature: Anchors,
    sums: Anchors,
    grad_sums: Anchors,
    _kept: KeptTiles,  # x is formed again
    *,
    needs_temperature: bool,
) -> Gradient:
    of_rows, of_columns = (a / tau for a, tau in zip(grad_sums, temperature, strict=True))
    result = Gradient(
        image=torch.zeros_like(strip.image, dtype=strip.dtype),
        text=torch.zeros_like(strip.text, dtype=strip.dtype),
        means=strip.new_anchors(),
    )
    if len(strip.image) == 0:
        return result
    scale = _power_of_two(of_rows, of_columns)
    factors = Anchors(of_rows * scale, of_columns * scale)
    blocks = _blocks(strip)
    for rows in _parts(strip, blocks):
        part = strip._replace(
            image=strip.image[rows],
            reference_image=None if strip.reference_image is None else strip.reference_image[rows],
            start=strip.start + rows.start,
        )
        coefficients = part.image.new_empty(len(part.image), len(part.text))
        means = triton.launch_coefficients(
            part,
            Anchors(temperature.rows[rows], temperature.columns),
            Anchors(sums.rows[rows], sums.columns),
            Anchors(factors.rows[rows], factors.columns),
            into=coefficients,
            needs_means=needs_temperature,
            blocks=blocks,
        )
        if means is not None:
            result.means.rows[rows] = means.rows
            result.means.columns.add_(means.columns)
        result.image[rows] = _product(coefficients, part.text)
        result.text.add_(_product(coefficients.T, part.image))
    result.image.div_(scale)
    result.text.div_(scale)
    # A positive's coefficient is minus the sum of all others of its row: rounded to half precision
    # it would leave a rounding error as large as the gradient.
    of_positives = -(of_rows + of_columns[strip.own])[:, None]
    result.image.addcmul_(of_positives, strip.text[strip.own].to(strip.dtype))
    result.text[strip.own].addcmul_(of_positives, strip.image.to(strip.dtype))
    return result


def _product(coefficients: Tensor, embeddings: Tensor) -> Tensor:
    """Multiply in the embeddings' precision and accumulate in float32."""
    if coefficients.dtype == torch.float32:
        return coefficients @ embeddings
    if coefficients.device.type == "cuda":
        return torch.mm(coefficients, embeddings, out_dtype=torch.float32)
    return coefficients.float() @ embeddings.float()


def _power_of_two(of_rows: Tensor, of_columns: Tensor) -> Tensor:
    """A power of two that scales the largest coefficient to between one and four, on the device.

    Coefficients are of the order of a weight over B, which float16 would round to zero.
    """
    largest = torch.maximum(of_rows.abs().max(), of_columns.abs().max())
    exponent = torch.where(largest > 0, largest.log2().floor(), torch.zeros_like(largest))
    return torch.exp2(-exponent)


def _parts(strip: Strip, blocks: Blocks) -> list[slice]:
    """Split the rows into whole blocks whose coefficients take at most COEFFICIENT_BYTES."""
    row_bytes = len(strip.text) * strip.image.element_size()
    height = max(1, COEFFICIENT_BYTES // (row_bytes * blocks.rows)) * blocks.rows
    num_rows = len(strip.image)
    return [slice(top, min(top + height, num_rows)) for top in range(0, num_rows, height)]
