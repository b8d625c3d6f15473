"""Triton kernels over tiles of similarities, and their launches."""

# Triton compiles the kernels' source; its names are not Python's.
# pyright: basic, reportArgumentType=false, reportCallIssue=false, reportIndexIssue=false
# pyright: reportAttributeAccessIssue=false, reportOperatorIssue=false
# ruff: noqa: N803, PLR0913

from typing import NamedTuple

from jaxtyping import Float
from torch import Tensor

from drrho.contrastive.tiles.strip import Anchors, Strip

try:
    import triton
    import triton.language as tl
except ImportError:  # without CUDA, PyTorch does not bring it
    triton = None


def is_available() -> bool:
    """Whether Triton is installed."""
    return triton is not None


def interpreted() -> bool:
    """Whether kernels run in Triton's interpreter, on the CPU: TRITON_INTERPRET=1."""
    return triton is not None and triton.knobs.runtime.interpret


class Blocks(NamedTuple):
    """Launch parameters: a program's tile, the slice of the embeddings it multiplies at a time,
    warps and pipeline stages.
    """

    rows: int
    columns: int
    inner: int
    warps: int
    stages: int

    def counts(self, num_rows: int, num_columns: int) -> tuple[int, int]:
        """Count the tiles down and across."""
        return -(-num_rows // self.rows), -(-num_columns // self.columns)


def launch_log_sums(strip: Strip, temperature: Anchors, *, blocks: Blocks) -> Anchors:
    """Launch the first pass: `log sum exp(x / tau)` over the negatives of each row and column."""
    found = _per_tile(strip, blocks)
    unread = temperature.rows
    _launch(strip, temperature, found, 5 * [unread], blocks, GRADIENT=False, NEEDS_MEANS=False)
    return Anchors(found.rows.logsumexp(dim=0), found.columns.logsumexp(dim=0))


def launch_coefficients(
    strip: Strip,
    temperature: Anchors,
    sums: Anchors,
    factors: Anchors,
    *,
    into: Float[Tensor, "rows columns"],
    needs_means: bool,
    blocks: Blocks,
) -> Anchors | None:
    """Launch the second pass: the coefficients C of docs/mathematics.md, "Tiles", of the negatives.

    Args:
        strip, temperature: as for the first pass.
        sums: sums that the first pass found; column sums are added up over processes.
        factors: a / tau and b / tau, the gradients in the sums over the temperatures.
        into: gets C, with zeros for the positives.
        needs_means: whether to return something.
        blocks: how the strip is cut.

    Returns:
        The means of x over the negatives, under the weights of each row and (of this strip's rows
        alone) of each column.
    """
    found = _per_tile(strip, blocks) if needs_means else temperature  # which is not written
    operands = [*_in_memory(sums), *_in_memory(factors), into]
    _launch(strip, temperature, found, operands, blocks, GRADIENT=True, NEEDS_MEANS=needs_means)
    return Anchors(found.rows.sum(dim=0), found.columns.sum(dim=0)) if needs_means else None


def _per_tile(strip: Strip, blocks: Blocks) -> Anchors:
    """Allocate a number for each row in each block of columns, and for each column in each block
    of rows.
    """
    num_rows, num_columns = len(strip.image), len(strip.text)
    row_blocks, column_blocks = blocks.counts(num_rows, num_columns)
    return Anchors(
        strip.image.new_empty(column_blocks, num_rows, dtype=strip.dtype),
        strip.image.new_empty(row_blocks, num_columns, dtype=strip.dtype),
    )


def _launch(
    strip: Strip,
    temperature: Anchors,
    found: Anchors,
    operands: list[Tensor],
    blocks: Blocks,
    **options: bool,
) -> None:
    reference_dim = 0 if strip.reference_image is None else strip.reference_image.shape[1]
    _tile_kernel[blocks.counts(len(strip.image), len(strip.text))](
        *_embeddings(strip),
        *_in_memory(temperature),
        *operands,
        *found,
        len(strip.image),
        len(strip.text),
        strip.start,
        strip.image.shape[1],
        reference_dim,
        HAS_REFERENCE=strip.reference_image is not None,
        WIDEN=interpreted(),  # the interpreter multiplies bfloat16's bits as integers
        BLOCK_ROWS=blocks.rows,
        BLOCK_COLUMNS=blocks.columns,
        BLOCK_INNER=blocks.inner,
        num_warps=blocks.warps,
        num_stages=blocks.stages,
        **options,
    )


def _embeddings(strip: Strip) -> list[Tensor]:
    """Embeddings in memory, the reference's images negated: the kernel adds up two products.

    Without a reference the target's again, which are not read.
    """
    pairs = [strip.image, strip.text]
    if strip.reference_image is None or strip.reference_text is None:
        pairs *= 2
    else:
        pairs += [-strip.reference_image, strip.reference_text]
    return [embeddings.contiguous() for embeddings in pairs]


def _in_memory(anchors: Anchors) -> list[Tensor]:
    """Contiguous numbers of anchors, also where one was expanded."""
    return [numbers.contiguous() for numbers in anchors]


if triton is not None:

    @triton.jit
    def _add_product(
        x,
        left,
        right,
        i,
        j,
        num_rows,
        num_columns,
        dim,
        WIDEN: tl.constexpr,
        BLOCK_INNER: tl.constexpr,
    ):
        """Compute `x + left[i] right[j]^T` of embeddings of `dim` numbers."""
        k = tl.arange(0, BLOCK_INNER)
        for first in range(0, dim, BLOCK_INNER):
            inside = first + k < dim
            at_left = left + i.to(tl.int64)[:, None] * dim + (first + k)[None, :]
            at_right = right + j.to(tl.int64)[:, None] * dim + (first + k)[None, :]
            a = tl.load(at_left, mask=(i < num_rows)[:, None] & inside[None, :], other=0.0)
            b = tl.load(at_right, mask=(j < num_columns)[:, None] & inside[None, :], other=0.0)
            if WIDEN:
                a, b = a.to(tl.float32), b.to(tl.float32)
            # TensorFloat-32 would leave three digits, which a temperature of 0.01 amplifies.
            x = tl.dot(a, tl.trans(b), x, input_precision="ieee")
        return x

    @triton.jit
    def _logits(x, negative, temperature, anchors, inside, AXIS: tl.constexpr):
        """`x / tau` of the negatives of anchors along an axis; minus infinity elsewhere."""
        tau = tl.load(temperature + anchors, mask=inside, other=1.0)
        return tl.where(negative, x / tl.expand_dims(tau, AXIS), float("-inf"))

    @triton.jit
    def _weights(z, sums, anchors, inside, AXIS: tl.constexpr):
        """The softmax of logits whose `log sum exp` is known."""
        total = tl.load(sums + anchors, mask=inside, other=0.0)
        return tl.exp(z - tl.expand_dims(total, AXIS))

    @triton.jit
    def _log_sum_exp(z, AXIS: tl.constexpr):
        """`log sum exp` of entries; some or all of them may be minus infinity."""
        largest = tl.max(z, axis=AXIS)
        largest = tl.where(largest == float("-inf"), 0.0, largest)
        total = tl.sum(tl.exp(z - tl.expand_dims(largest, AXIS)), axis=AXIS)
        found = largest + tl.log(tl.where(total > 0, total, 1.0))
        return tl.where(total > 0, found, float("-inf"))

    @triton.jit
    def _tile_kernel(
        image,
        text,
        reference_image,
        reference_text,
        row_temperature,
        column_temperature,
        row_sums,
        column_sums,
        row_factors,
        column_factors,
        coefficients,
        of_rows,
        of_columns,
        num_rows,
        num_columns,
        start,
        dim,
        reference_dim,
        GRADIENT: tl.constexpr,
        NEEDS_MEANS: tl.constexpr,
        HAS_REFERENCE: tl.constexpr,
        WIDEN: tl.constexpr,
        BLOCK_ROWS: tl.constexpr,
        BLOCK_COLUMNS: tl.constexpr,
        BLOCK_INNER: tl.constexpr,
    ):
        row_block, column_block = tl.program_id(0), tl.program_id(1)
        i = row_block * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
        j = column_block * BLOCK_COLUMNS + tl.arange(0, BLOCK_COLUMNS)
        x = tl.zeros((BLOCK_ROWS, BLOCK_COLUMNS), dtype=tl.float32)
        x = _add_product(x, image, text, i, j, num_rows, num_columns, dim, WIDEN, BLOCK_INNER)
        if HAS_REFERENCE:
            a, b, size = reference_image, reference_text, reference_dim
            x = _add_product(x, a, b, i, j, num_rows, num_columns, size, WIDEN, BLOCK_INNER)
        in_rows, in_columns = i < num_rows, j < num_columns
        inside = in_rows[:, None] & in_columns[None, :]
        negative = ((start + i)[:, None] != j[None, :]) & inside
        at_rows = of_rows + column_block.to(tl.int64) * num_rows + i
        at_columns = of_columns + row_block.to(tl.int64) * num_columns + j
        z = _logits(x, negative, row_temperature, i, in_rows, 1)
        if GRADIENT:
            p = _weights(z, row_sums, i, in_rows, 1)
            if NEEDS_MEANS:
                tl.store(at_rows, tl.sum(p * x, axis=1), mask=in_rows)
            c = p * tl.load(row_factors + i, mask=in_rows, other=0.0)[:, None]
            z = _logits(x, negative, column_temperature, j, in_columns, 0)
            p = _weights(z, column_sums, j, in_columns, 0)
            if NEEDS_MEANS:
                tl.store(at_columns, tl.sum(p * x, axis=0), mask=in_columns)
            c += p * tl.load(column_factors + j, mask=in_columns, other=0.0)[None, :]
            at = coefficients + i.to(tl.int64)[:, None] * num_columns + j[None, :]
            tl.store(at, c.to(coefficients.dtype.element_ty), mask=inside)
        else:
            tl.store(at_rows, _log_sum_exp(z, 1), mask=in_rows)
            z = _logits(x, negative, column_temperature, j, in_columns, 0)
            tl.store(at_columns, _log_sum_exp(z, 0), mask=in_columns)
