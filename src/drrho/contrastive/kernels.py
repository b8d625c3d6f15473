"""The sums over negatives and their gradients by kernels in Triton, for GPUs.

The same function as `drrho.contrastive.tiles.tiled_log_gap_means`. A tile of similarities stays in
the registers of a GPU's multiprocessor, and what the matrix products take and give is in half
precision where the embeddings are.
"""

import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from drrho.contrastive.risk import PairEmbeddings, check_negatives, check_pairs
from drrho.contrastive.strip import Anchors, Strip, make_strip
from drrho.distributed import Partition, ProcessGroup, partition

try:  # comes with PyTorch for CUDA
    import triton
    import triton.language as tl
    from triton.language import constexpr
except ImportError:
    triton: Any = None
    tl: Any = None
    from builtins import object as constexpr

# Rows and columns of a tile, and how much of the dimension is in shared memory at a time.
BLOCK = 128
BLOCK_OF_HALF, BLOCK_OF_FLOAT32 = 64, 32
# Rows of tiles that are worked on together, so that their texts are read once from memory.
GROUP = 8
# Three tensor-core products of float32 numbers split in two, as exact as float32; a single one in
# tf32 would be wrong by 1e-3, which a temperature of 0.01 turns into 0.1.
FLOAT32_PRODUCTS: Literal["tf32x3", "ieee"] = "tf32x3"
# What the second pass may have of its coefficients at a time.
COEFFICIENT_BYTES = 2**28
# float16 goes to 2^16; the coefficients are scaled to stay below half of that.
LARGEST_EXPONENT = 15


def fused_log_gap_means(
    target: PairEmbeddings,
    reference: PairEmbeddings | None = None,
    *,
    temperature: Float[Tensor, "..."],
    group: ProcessGroup | None = None,
) -> Float[Tensor, "2 batch"]:
    """`log g` of image and text anchors: `tiled_log_gap_means`, by kernels for CUDA GPUs.

    Memory beyond arguments, result and gradients: `B b / 16` bytes for the sums of tiles, b of the
    B pairs being this process's; 256 MiB of coefficients; and O(B d) in float32 for the gradient.

    Args:
        target, reference, temperature, group: as for `tiled_log_gap_means`. Products of half
            precision are exact and added in float32; the gradient's coefficients have 11 bits for
            bfloat16 embeddings, which have 8, and 22 for float16 embeddings, which have 11.

    Returns:
        As `tiled_log_gap_means`.

    Raises:
        ValueError: as `log_gap_means`; float64 embeddings of the target; embeddings on a CPU.
        RuntimeError: Triton is not installed.

    Source: docs/mathematics.md, "Tiles".
    """
    check_pairs(target, reference)
    _check_machine(target.image)
    processes = partition(len(target.image), group=group, device=target.image.device)
    check_negatives(processes.num_rows)
    images, texts = (None, None) if reference is None else _ready(reference)
    of_anchors = temperature.expand(2, len(target.image))
    result = _FusedLogGapMeans.apply(*_ready(target), images, texts, of_anchors, processes)
    assert isinstance(result, Tensor)
    return result


def _check_machine(embeddings: Tensor) -> None:
    if triton is None:
        raise RuntimeError(
            "fused_log_gap_means needs Triton, which PyTorch for CUDA brings: install that, or "
            "`pip install triton`; or use tiled_log_gap_means"
        )
    if embeddings.device.type != "cuda" and not _INTERPRETED:
        raise ValueError(
            "fused_log_gap_means is for embeddings on a CUDA device, got "
            f"{embeddings.device.type}; use tiled_log_gap_means there"
        )
    if embeddings.dtype == torch.float64:
        raise ValueError(
            "fused_log_gap_means computes in float32, got embeddings of the target in float64; "
            "use tiled_log_gap_means, or convert them"
        )


def _ready(pairs: PairEmbeddings) -> PairEmbeddings:
    """Both of one precision that the kernels take, rows one after another in memory."""
    dtype = torch.promote_types(pairs.image.dtype, pairs.text.dtype)
    if dtype == torch.float64:
        dtype = torch.float32
    return PairEmbeddings(*(e.to(dtype).contiguous() for e in pairs))


class _FusedLogGapMeans(torch.autograd.Function):
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
        reference = None
        if reference_image is not None and reference_text is not None:
            reference = PairEmbeddings(reference_image, reference_text)
        strip = make_strip(PairEmbeddings(image, text), reference, processes)
        of_rows, of_columns = temperature.to(strip.dtype)
        anchors = Anchors(of_rows, processes.gather(of_columns))
        with torch.autocast(image.device.type, enabled=False):
            positives = strip.positives()
            sums = _log_sums(strip, anchors)
        log_columns = processes.log_sum_exp(sums.columns)

        ctx.save_for_backward(*strip[:4], *anchors, positives, sums.rows, log_columns)
        ctx.processes, ctx.start, ctx.dtype = processes, strip.start, strip.dtype
        log_negatives = math.log(processes.num_rows - 1)
        rows = sums.rows - positives / of_rows - log_negatives
        columns = processes.own(log_columns) - positives / of_columns - log_negatives
        return torch.stack([rows, columns])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        *embeddings, of_rows, of_columns, positives, log_rows, log_columns = ctx.saved_tensors
        processes = ctx.processes
        strip = Strip(*embeddings, start=ctx.start, dtype=ctx.dtype)
        needs_temperature = ctx.needs_input_grad[4]
        with torch.autocast(strip.image.device.type, enabled=False):
            gradient = _gradient(
                strip,
                Anchors(of_rows, of_columns),
                Anchors(log_rows, log_columns),
                Anchors(upstream[0], processes.gather(upstream[1])),
                needs_temperature=needs_temperature,
            )
        image = gradient.image.to(strip.image.dtype)
        text = processes.own_of_sum(gradient.text).to(strip.text.dtype)
        of_temperature = None
        if needs_temperature:
            means = [gradient.means.rows, processes.own_of_sum(gradient.means.columns)]
            own = torch.stack([of_rows, processes.own(of_columns)])
            of_temperature = upstream * (positives - torch.stack(means)) / own.square()
        return image, text, None, None, of_temperature, None


def _log_sums(strip: Strip, temperature: Anchors) -> Anchors:
    """`log sum exp(x / tau)` over the negatives in each row and in each column of the strip."""
    if len(strip.image) == 0:
        return strip.new_anchors(fill=-math.inf)
    # Of each tile, reduced afterwards: the same sums every time, which atomic additions are not.
    of_tiles = _new_of_tiles(strip)
    _launch(_sums_kernel, strip, [*_inverse(temperature), *of_tiles])
    return Anchors(*(sums.logsumexp(dim=0) for sums in of_tiles))


class _Gradient(NamedTuple):
    """Of the strip; what is of columns is this process's part of a sum.

    `means` are those of x over an anchor's negatives under its weights, zeros unless a temperature
    needs them.
    """

    image: Float[Tensor, "rows dim"]
    text: Float[Tensor, "columns dim"]
    means: Anchors


def _gradient(
    strip: Strip,
    temperature: Anchors,
    sums: Anchors,
    arriving: Anchors,
    *,
    needs_temperature: bool,
) -> _Gradient:
    image, text = (torch.zeros_like(e, dtype=strip.dtype) for e in (strip.image, strip.text))
    result = _Gradient(image, text, strip.new_anchors())
    if len(image) == 0:
        return result
    weights = Anchors(*(a / tau for a, tau in zip(arriving, temperature, strict=True)))
    scale = _scale(weights)
    scaled = Anchors(*(a * scale for a in weights))
    factors = [e.to(_dtype_of_products(e)) for e in (strip.image, strip.text)]

    buffer = _new_coefficients(strip)
    height = buffer.shape[1]
    for top in range(0, len(image), height):
        rows = slice(top, min(top + height, len(image)))
        coefficients = buffer[:, : rows.stop - top]
        of_anchors = [
            Anchors(a.rows[rows], a.columns) for a in (_inverse(temperature), sums, scaled)
        ]
        part = _rows_of_strip(strip, rows)
        means = _fill_coefficients(
            coefficients, part, of_anchors=of_anchors, with_means=needs_temperature
        )
        result.means.rows[rows] = means.rows
        result.means.columns.add_(means.columns)
        for c in coefficients:
            image[rows] += _product(c, factors[1])
            text += _product(c.T, factors[0][rows])

    # In float32 and apart, because a positive's is as large as all its negatives' together.
    at_positives = -(weights.rows + weights.columns[strip.own])[:, None]
    image.div_(scale).addcmul_(at_positives, strip.text[strip.own].to(strip.dtype))
    text.div_(scale)[strip.own].addcmul_(at_positives, strip.image.to(strip.dtype))
    return result


def _inverse(temperature: Anchors) -> Anchors:
    return Anchors(*(1 / tau for tau in temperature))


def _scale(weights: Anchors) -> Float[Tensor, ""]:
    """A power of two that takes the largest possible coefficient near the end of float16."""
    largest = weights.rows.abs().amax() + weights.columns.abs().amax()
    exponent = LARGEST_EXPONENT - torch.frexp(largest).exponent
    return torch.ldexp(torch.ones_like(largest), exponent.clamp(-100, 100))


def _dtype_of_products(embeddings: Tensor) -> torch.dtype:
    """Half precision is float16: it holds a unit embedding in bfloat16 too, and of a coefficient
    11 bits instead of 8.
    """
    return torch.float32 if embeddings.dtype == torch.float32 else torch.float16


def _new_coefficients(strip: Strip) -> Float[Tensor, "parts part_rows columns"]:
    """Room for as many rows as COEFFICIENT_BYTES allow, or for those of one tile.

    A coefficient is the sum of the parts: one, or two where the gradient too has 11 bits.
    """
    dtype = _dtype_of_products(strip.image)
    parts = 2 if strip.image.dtype == torch.float16 else 1
    bytes_of_block = parts * BLOCK * len(strip.text) * dtype.itemsize
    num_rows = BLOCK * max(1, COEFFICIENT_BYTES // bytes_of_block)
    shape = (parts, min(num_rows, len(strip.image)), len(strip.text))
    return torch.empty(shape, dtype=dtype, device=strip.image.device)


def _rows_of_strip(strip: Strip, rows: slice) -> Strip:
    images = strip.reference_image
    return strip._replace(
        image=strip.image[rows],
        reference_image=None if images is None else images[rows],
        start=strip.start + rows.start,
    )


def _fill_coefficients(
    coefficients: Float[Tensor, "parts rows columns"],
    strip: Strip,
    *,
    of_anchors: list[Anchors],
    with_means: bool,
) -> Anchors:
    """Those of the negatives, scaled; returns the means of x, or zeros.

    `of_anchors` are 1 / tau, the log sums, and the scaled gradients of x / tau that arrive.
    """
    means = _new_of_tiles(strip) if with_means else strip.new_anchors()
    numbers = [number for anchors in of_anchors for number in anchors]
    flags = [with_means, len(coefficients) > 1]
    _launch(
        _coefficients_kernel,
        strip,
        [*numbers, coefficients[0], coefficients[-1], *means, *flags],
    )
    return Anchors(*(mean.sum(dim=0) for mean in means)) if with_means else means


def _new_of_tiles(strip: Strip) -> Anchors:
    """Numbers of each row in each tile that it crosses, and of each column: (tiles, anchors)."""
    num_rows, num_columns = len(strip.image), len(strip.text)
    shapes = ((_num_blocks(num_columns), num_rows), (_num_blocks(num_rows), num_columns))
    rows, columns = (strip.image.new_empty(shape, dtype=strip.dtype) for shape in shapes)
    return Anchors(rows, columns)


def _launch(kernel: Any, strip: Strip, arguments: list[Tensor | bool]) -> None:
    """One program for each tile of the strip."""
    num_rows, dim = strip.image.shape
    num_columns = len(strip.text)
    reference = [e for e in (strip.reference_image, strip.reference_text) if e is not None]
    embeddings = [strip.image, strip.text, *(reference or (strip.image, strip.text))]
    in_float32 = any(e.dtype == torch.float32 for e in embeddings)
    with torch.cuda.device_of(strip.image):
        kernel[(_num_blocks(num_columns), _num_blocks(num_rows))](
            *embeddings,
            *arguments,
            num_rows,
            num_columns,
            strip.start,
            dim,
            reference[0].shape[1] if reference else 0,
            with_reference=bool(reference),
            precision=FLOAT32_PRODUCTS,
            widen=_INTERPRETED,
            block=BLOCK,
            block_k=BLOCK_OF_FLOAT32 if in_float32 else BLOCK_OF_HALF,
            group=GROUP,
        )


def _num_blocks(num_anchors: int) -> int:
    return -(-num_anchors // BLOCK)


def _product(left: Tensor, right: Tensor) -> Tensor:
    """A matrix product in float32, of factors that may be in float16."""
    if left.is_cuda and left.dtype == torch.float16 and _HAS_WIDE_RESULTS:
        return torch.mm(left, right, out_dtype=torch.float32)
    return left.float() @ right.float()


_HAS_WIDE_RESULTS = "dtype" in torch.ops.aten.mm.overloads()  # since PyTorch 2.8


def _is_interpreted() -> bool:
    """Whether Triton was told, by TRITON_INTERPRET=1, to run kernels in Python: on a CPU."""
    return triton is not None and not isinstance(triton.jit(_num_blocks), triton.JITFunction)


_INTERPRETED = _is_interpreted()


def _device(function: Callable) -> Any:
    """Called by kernels."""
    return function if triton is None else triton.jit(function)


def _kernel(key: list[str]) -> Callable[[Callable], Any]:
    """Launched for each tile.

    What is tried out changes only when memory is read, so the result never depends on it.
    """

    def decorate(function: Callable) -> Any:
        if triton is None:
            return function
        stages = (3,) if _INTERPRETED else (2, 3, 4)
        configs = [triton.Config({}, num_warps=8, num_stages=n) for n in stages]
        compiled = triton.jit(function, do_not_specialize=["num_rows", "num_columns", "start"])
        return triton.autotune(configs, key)(compiled)

    return decorate


# fmt: off - arguments in lines by what they are
@_device
def _add_products(  # noqa: PLR0913
    x,
    left,
    right,
    rows,
    columns,
    num_rows,
    num_columns,
    dim,
    precision: constexpr,
    widen: constexpr,
    block_k: constexpr,
):
    """`x + left @ right.T` of these rows of both."""
    k = tl.arange(0, block_k)
    of_left = left + rows.to(tl.int64)[:, None] * dim + k[None, :]
    of_right = right + columns.to(tl.int64)[None, :] * dim + k[:, None]
    for first in range(0, dim, block_k):
        inside = k < dim - first
        a = tl.load(of_left, mask=(rows < num_rows)[:, None] & inside[None, :], other=0.0)
        b = tl.load(of_right, mask=(columns < num_columns)[None, :] & inside[:, None], other=0.0)
        if widen:  # the interpreter has no products of bfloat16
            a = a.to(tl.float32)
            b = b.to(tl.float32)
        x = tl.dot(a, b, x, input_precision=precision)
        of_left += block_k
        of_right += block_k
    return x


@_device
def _tile(  # noqa: PLR0913
    image,
    text,
    reference_image,
    reference_text,
    num_rows,
    num_columns,
    start,
    dim,
    dim_ref,
    with_reference: constexpr,
    precision: constexpr,
    widen: constexpr,
    block: constexpr,
    block_k: constexpr,
    group: constexpr,
):
    """This program's tile: its place, rows and columns, x, and which of its pairs are negatives."""
    i, j = tl.swizzle2d(
        tl.program_id(1), tl.program_id(0), tl.num_programs(1), tl.num_programs(0), group
    )
    rows = i * block + tl.arange(0, block)
    columns = j * block + tl.arange(0, block)
    x = tl.zeros((block, block), dtype=tl.float32)
    if with_reference:
        x = _add_products(
            x,
            reference_image,
            reference_text,
            rows,
            columns,
            num_rows,
            num_columns,
            dim_ref,
            precision,
            widen,
            block_k,
        )
        x = -x
    x = _add_products(
        x, image, text, rows, columns, num_rows, num_columns, dim, precision, widen, block_k
    )
    negative = (rows < num_rows)[:, None] & (columns < num_columns)[None, :]
    negative = negative & (columns[None, :] != rows[:, None] + start)
    return i, j, rows, columns, x, negative


@_device
def _log_sum_exp(z, axis: constexpr):
    largest = tl.max(z, axis)
    finite = tl.where(largest == -float("inf"), 0.0, largest)  # a tile may have no negatives
    return finite + tl.log(tl.sum(tl.exp(z - tl.expand_dims(finite, axis)), axis))


@_kernel(key=["dim", "dim_ref"])
def _sums_kernel(  # noqa: PLR0913
    image,
    text,
    reference_image,
    reference_text,
    inverse_rows,
    inverse_columns,
    sums_rows,
    sums_columns,
    num_rows,
    num_columns,
    start,
    dim,
    dim_ref,
    with_reference: constexpr,
    precision: constexpr,
    widen: constexpr,
    block: constexpr,
    block_k: constexpr,
    group: constexpr,
):
    i, j, rows, columns, x, negative = _tile(
        image,
        text,
        reference_image,
        reference_text,
        num_rows,
        num_columns,
        start,
        dim,
        dim_ref,
        with_reference,
        precision,
        widen,
        block,
        block_k,
        group,
    )
    has_row, has_column = rows < num_rows, columns < num_columns
    by_row = tl.load(inverse_rows + rows, mask=has_row, other=0.0)
    by_column = tl.load(inverse_columns + columns, mask=has_column, other=0.0)
    of_rows = _log_sum_exp(tl.where(negative, x * by_row[:, None], -float("inf")), 1)
    of_columns = _log_sum_exp(tl.where(negative, x * by_column[None, :], -float("inf")), 0)
    tl.store(sums_rows + j.to(tl.int64) * num_rows + rows, of_rows, mask=has_row)
    tl.store(sums_columns + i.to(tl.int64) * num_columns + columns, of_columns, mask=has_column)


@_kernel(key=["dim", "dim_ref", "with_means"])
def _coefficients_kernel(  # noqa: PLR0913
    image,
    text,
    reference_image,
    reference_text,
    inverse_rows,
    inverse_columns,
    sums_rows,
    sums_columns,
    scaled_rows,
    scaled_columns,
    coefficients,
    remainders,
    means_rows,
    means_columns,
    with_means: constexpr,
    with_remainders: constexpr,
    num_rows,
    num_columns,
    start,
    dim,
    dim_ref,
    with_reference: constexpr,
    precision: constexpr,
    widen: constexpr,
    block: constexpr,
    block_k: constexpr,
    group: constexpr,
):
    i, j, rows, columns, x, negative = _tile(
        image,
        text,
        reference_image,
        reference_text,
        num_rows,
        num_columns,
        start,
        dim,
        dim_ref,
        with_reference,
        precision,
        widen,
        block,
        block_k,
        group,
    )
    has_row, has_column = rows < num_rows, columns < num_columns
    inverse = tl.load(inverse_rows + rows, mask=has_row, other=0.0)
    log_sums = tl.load(sums_rows + rows, mask=has_row, other=0.0)
    scaled = tl.load(scaled_rows + rows, mask=has_row, other=0.0)
    z = x * inverse[:, None] - log_sums[:, None]
    p = tl.exp(tl.where(negative, z, -float("inf")))
    c = p * scaled[:, None]
    if with_means:
        place = means_rows + j.to(tl.int64) * num_rows + rows
        tl.store(place, tl.sum(p * x, 1), mask=has_row)

    inverse = tl.load(inverse_columns + columns, mask=has_column, other=0.0)
    log_sums = tl.load(sums_columns + columns, mask=has_column, other=0.0)
    scaled = tl.load(scaled_columns + columns, mask=has_column, other=0.0)
    z = x * inverse[None, :] - log_sums[None, :]
    p = tl.exp(tl.where(negative, z, -float("inf")))
    c += p * scaled[None, :]
    if with_means:
        place = means_columns + i.to(tl.int64) * num_columns + columns
        tl.store(place, tl.sum(p * x, 0), mask=has_column)

    places = rows.to(tl.int64)[:, None] * num_columns + columns[None, :]
    inside = has_row[:, None] & has_column[None, :]
    rounded = c.to(coefficients.dtype.element_ty)
    tl.store(coefficients + places, rounded, mask=inside)
    if with_remainders:
        remainder = c - rounded.to(tl.float32)
        tl.store(remainders + places, remainder.to(remainders.dtype.element_ty), mask=inside)


# fmt: on
