"""Triton kernels over tiles of similarities, and their launches."""

# Triton compiles the kernels' source; its names are not Python's.
# pyright: basic, reportArgumentType=false, reportCallIssue=false, reportIndexIssue=false
# pyright: reportAttributeAccessIssue=false, reportOperatorIssue=false
# ruff: noqa: N803, PLR0913

from typing import Any, NamedTuple

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
    """A program's tile, the slice of the embeddings it multiplies at a time, and its resources."""

    rows: int
    columns: int
    inner: int
    warps: int
    stages: int

    def counts(self, num_rows: int, num_columns: int) -> tuple[int, int]:
        """Tiles down and across."""
        return -(-num_rows // self.rows), -(-num_columns // self.columns)


def launch_log_sums(
    strip: Strip,
    temperature: Anchors,
    of_rows: Float[Tensor, "column_blocks rows"],
    of_columns: Float[Tensor, "row_blocks columns"],
    *,
    blocks: Blocks,
) -> None:
    """Fills in the logarithms of the sums of each tile's rows and columns."""
    grid = blocks.counts(len(strip.image), len(strip.text))
    _log_sums_kernel[grid](
        *_embeddings(strip),
        *_in_memory(temperature),
        of_rows,
        of_columns,
        *_sizes(strip),
        **_options(strip, blocks),
    )


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
    """Fills in C of docs/mathematics.md, "Tiles", with zeros for the positives, `factors` being
    a / tau and b / tau; returns the weighted means of x where they are needed, those of columns
    of this strip's rows alone.
    """
    grid = blocks.counts(len(strip.image), len(strip.text))
    row_means = column_means = temperature.rows  # not written
    if needs_means:
        row_means = temperature.rows.new_empty(grid[1], len(strip.image))
        column_means = temperature.rows.new_empty(grid[0], len(strip.text))
    _coefficients_kernel[grid](
        *_embeddings(strip),
        *_in_memory(temperature),
        *_in_memory(sums),
        *_in_memory(factors),
        into,
        row_means,
        column_means,
        *_sizes(strip),
        NEEDS_MEANS=needs_means,
        **_options(strip, blocks),
    )
    return Anchors(row_means.sum(dim=0), column_means.sum(dim=0)) if needs_means else None


def _embeddings(strip: Strip) -> list[Tensor]:
    """Contiguous, the reference's images negative: the kernel adds one product to the other.

    Without a reference the target's again, which are not read.
    """
    pairs = [strip.image, strip.text]
    if strip.reference_image is None or strip.reference_text is None:
        pairs *= 2
    else:
        pairs += [-strip.reference_image, strip.reference_text]
    return [embeddings.contiguous() for embeddings in pairs]


def _in_memory(anchors: Anchors) -> list[Tensor]:
    """A number for each anchor, also where one was expanded."""
    return [numbers.contiguous() for numbers in anchors]


def _sizes(strip: Strip) -> list[int]:
    reference_dim = 0 if strip.reference_image is None else strip.reference_image.shape[1]
    return [len(strip.image), len(strip.text), strip.start, strip.image.shape[1], reference_dim]


def _options(strip: Strip, blocks: Blocks) -> dict[str, Any]:
    return {
        "HAS_REFERENCE": strip.reference_image is not None,
        "WIDEN": interpreted(),  # the interpreter multiplies bfloat16's bits as integers
        "BLOCK_ROWS": blocks.rows,
        "BLOCK_COLUMNS": blocks.columns,
        "BLOCK_INNER": blocks.inner,
        "num_warps": blocks.warps,
        "num_stages": blocks.stages,
    }


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
        """`x + left[i] right[j]^T`, the embeddings being of `dim` numbers."""
        k = tl.arange(0, BLOCK_INNER)
        for first in range(0, dim, BLOCK_INNER):
            inside = first + k < dim
            at_left = left + i.to(tl.int64)[:, None] * dim + (first + k)[None, :]
            at_right = right + j.to(tl.int64)[:, None] * dim + (first + k)[None, :]
            a = tl.load(at_left, mask=(i < num_rows)[:, None] & inside[None, :], other=0.0)
            b = tl.load(at_right, mask=(j < num_columns)[:, None] & inside[None, :], other=0.0)
            if WIDEN:
                a, b = a.to(tl.float32), b.to(tl.float32)
            # TensorFloat-32 would leave three digits, which a temperature of 0.01 blows up.
            x = tl.dot(a, tl.trans(b), x, input_precision="ieee")
        return x

    @triton.jit
    def _similarities(
        image,
        text,
        reference_image,
        reference_text,
        i,
        j,
        num_rows,
        num_columns,
        dim,
        reference_dim,
        HAS_REFERENCE: tl.constexpr,
        WIDEN: tl.constexpr,
        BLOCK_ROWS: tl.constexpr,
        BLOCK_COLUMNS: tl.constexpr,
        BLOCK_INNER: tl.constexpr,
    ):
        x = tl.zeros((BLOCK_ROWS, BLOCK_COLUMNS), dtype=tl.float32)
        x = _add_product(x, image, text, i, j, num_rows, num_columns, dim, WIDEN, BLOCK_INNER)
        if HAS_REFERENCE:
            x = _add_product(
                x,
                reference_image,
                reference_text,
                i,
                j,
                num_rows,
                num_columns,
                reference_dim,
                WIDEN,
                BLOCK_INNER,
            )
        return x

    @triton.jit
    def _log_sum_exp(z, AXIS: tl.constexpr):
        """Of entries some of which, perhaps all, are minus infinity."""
        largest = tl.max(z, axis=AXIS)
        largest = tl.where(largest == float("-inf"), 0.0, largest)
        total = tl.sum(tl.exp(z - tl.expand_dims(largest, AXIS)), axis=AXIS)
        found = largest + tl.log(tl.where(total > 0, total, 1.0))
        return tl.where(total > 0, found, float("-inf"))

    @triton.jit
    def _log_sums_kernel(
        image,
        text,
        reference_image,
        reference_text,
        row_temperature,
        column_temperature,
        of_rows,
        of_columns,
        num_rows,
        num_columns,
        start,
        dim,
        reference_dim,
        HAS_REFERENCE: tl.constexpr,
        WIDEN: tl.constexpr,
        BLOCK_ROWS: tl.constexpr,
        BLOCK_COLUMNS: tl.constexpr,
        BLOCK_INNER: tl.constexpr,
    ):
        row_block, column_block = tl.program_id(0), tl.program_id(1)
        i = row_block * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
        j = column_block * BLOCK_COLUMNS + tl.arange(0, BLOCK_COLUMNS)
        x = _similarities(
            image,
            text,
            reference_image,
            reference_text,
            i,
            j,
            num_rows,
            num_columns,
            dim,
            reference_dim,
            HAS_REFERENCE,
            WIDEN,
            BLOCK_ROWS,
            BLOCK_COLUMNS,
            BLOCK_INNER,
        )
        tau_rows = tl.load(row_temperature + i, mask=i < num_rows, other=1.0)
        tau_columns = tl.load(column_temperature + j, mask=j < num_columns, other=1.0)
        negative = (start + i)[:, None] != j[None, :]
        negative = negative & (i < num_rows)[:, None] & (j < num_columns)[None, :]
        z = tl.where(negative, x / tau_rows[:, None], float("-inf"))
        at = of_rows + column_block.to(tl.int64) * num_rows + i
        tl.store(at, _log_sum_exp(z, 1), mask=i < num_rows)
        z = tl.where(negative, x / tau_columns[None, :], float("-inf"))
        at = of_columns + row_block.to(tl.int64) * num_columns + j
        tl.store(at, _log_sum_exp(z, 0), mask=j < num_columns)

    @triton.jit
    def _coefficients_kernel(
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
        row_means,
        column_means,
        num_rows,
        num_columns,
        start,
        dim,
        reference_dim,
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
        x = _similarities(
            image,
            text,
            reference_image,
            reference_text,
            i,
            j,
            num_rows,
            num_columns,
            dim,
            reference_dim,
            HAS_REFERENCE,
            WIDEN,
            BLOCK_ROWS,
            BLOCK_COLUMNS,
            BLOCK_INNER,
        )
        in_rows, in_columns = i < num_rows, j < num_columns
        inside = in_rows[:, None] & in_columns[None, :]
        positive = (start + i)[:, None] == j[None, :]
        tau = tl.load(row_temperature + i, mask=in_rows, other=1.0)
        total = tl.load(row_sums + i, mask=in_rows, other=0.0)
        factor = tl.load(row_factors + i, mask=in_rows, other=0.0)
        p = tl.where(inside & (positive == 0), tl.exp(x / tau[:, None] - total[:, None]), 0.0)
        if NEEDS_MEANS:
            at = row_means + column_block.to(tl.int64) * num_rows + i
            tl.store(at, tl.sum(p * x, axis=1), mask=in_rows)
        c = p * factor[:, None]
        tau = tl.load(column_temperature + j, mask=in_columns, other=1.0)
        total = tl.load(column_sums + j, mask=in_columns, other=0.0)
        factor = tl.load(column_factors + j, mask=in_columns, other=0.0)
        p = tl.where(inside & (positive == 0), tl.exp(x / tau[None, :] - total[None, :]), 0.0)
        if NEEDS_MEANS:
            at = column_means + row_block.to(tl.int64) * num_columns + j
            tl.store(at, tl.sum(p * x, axis=0), mask=in_columns)
        c += p * factor[None, :]
        at = coefficients + i.to(tl.int64)[:, None] * num_columns + j[None, :]
        tl.store(at, c.to(coefficients.dtype.element_ty), mask=inside)
