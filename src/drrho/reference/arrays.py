"""Arrays and tensors of files that may come from anyone: nothing larger than the file is made."""

import math
import zipfile
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from drrho.runtime.files import require_regular

# A compressed array may take so many times the bytes that it has in the file, or so many bytes.
MAX_EXPANSION = 100
MAX_SMALL = 2**26
HEADERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}


def open_npz(source: Path | BytesIO) -> zipfile.ZipFile:
    """Open an .npz file; raises ValueError if it is none."""
    if isinstance(source, Path):
        require_regular(source)
    try:
        return zipfile.ZipFile(source)
    except Exception as error:  # whatever a damaged directory can raise
        raise ValueError(f"it is no .npz file ({error})") from error


def read_npz(archive: zipfile.ZipFile, name: str) -> np.ndarray:
    """Read one array of an .npz file.

    Raises:
        KeyError: there is no such array.
        ValueError: it is damaged, of Python objects, or larger than the file can hold.
    """
    info = archive.getinfo(f"{name}.npy")
    require_expansion(info.file_size, info.compress_size)
    try:
        with archive.open(info) as member:
            shape, fortran, dtype = read_header(member, size=info.file_size)
            content = np.frombuffer(bytearray(member.read()), dtype, count=math.prod(shape))
    except Exception as error:  # whatever damaged members can raise
        raise ValueError(f"its array {name!r} is damaged ({error})") from error
    return content.reshape(shape, order="F" if fortran else "C")


def read_header(stream: Any, *, size: int) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Read the header of an .npy file of `size` bytes: shape, whether in Fortran's order, type.

    Raises:
        ValueError: it is damaged, of Python objects, or the file is smaller or larger.
    """
    version = np.lib.format.read_magic(stream)
    if version not in HEADERS:
        raise ValueError(f"its .npy version is {version}")
    try:
        shape, fortran, dtype = HEADERS[version](stream)
    except Exception as error:  # the header is parsed as Python: whatever that raises
        raise ValueError(f"its .npy header is damaged ({error})") from error
    if dtype.hasobject:
        raise ValueError("it holds Python objects, which are not read")
    needed, there = math.prod(shape) * dtype.itemsize, size - stream.tell()
    if min(shape, default=0) < 0 or needed != there:
        raise ValueError(
            f"an array {shape} of {dtype} takes {needed:,} bytes, and it has {there:,}"
        )
    return shape, fortran, dtype


def require_expansion(size: int, compressed: int) -> None:
    """Raise ValueError if a few compressed bytes stand for very many."""
    if size > max(MAX_SMALL, MAX_EXPANSION * compressed):
        raise ValueError(f"{compressed:,} compressed bytes claim to be {size:,}")


def plain_tensor(value: Any) -> Tensor:
    """Return a tensor of real numbers whose memory is as large as it says, without its gradient.

    Raises:
        ValueError: it is something else, such as a view that repeats a few numbers.
    """
    if not isinstance(value, Tensor) or value.layout != torch.strided or value.is_meta:
        raise ValueError(f"a {type(value).__name__} is no plain tensor")
    if not value.is_floating_point():
        raise ValueError(f"its numbers are {value.dtype}, not of floating point")
    if value.nbytes > value.untyped_storage().nbytes():
        raise ValueError(f"a tensor {tuple(value.shape)} lies in fewer bytes than it has numbers")
    return value.detach()
