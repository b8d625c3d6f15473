"""Mapping arrays of an .npz file into memory."""

import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

LOCAL_HEADER = struct.Struct("<26xHH")  # of a zip member; at its end the lengths of two fields


def map_npz_array(path: Path, name: str) -> np.ndarray:
    """Map one array of an .npz file into memory.

    np.savez stores its arrays as they are, so their bytes lie in one piece and can be mapped;
    np.load would read each whole. What np.savez_compressed wrote has to be read whole.

    Raises:
        ValueError: the file is damaged, has no such array, or one of Python objects.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            info = archive.getinfo(f"{name}.npy")
            with archive.open(info) as member:
                if info.compress_type != zipfile.ZIP_STORED:
                    return np.lib.format.read_array(member, allow_pickle=False)
                shape, fortran, dtype = _read_header(member)
                header_bytes = member.tell()
        with path.open("rb") as file:
            file.seek(info.header_offset)
            name_bytes, extra_bytes = LOCAL_HEADER.unpack(file.read(LOCAL_HEADER.size))
    except KeyError:
        raise ValueError(f"{path} has no array {name!r}") from None
    except (zipfile.BadZipFile, struct.error, EOFError, ValueError) as error:
        raise ValueError(f"{path} cannot be read ({error}); fetch or write it again") from error
    if dtype.hasobject:
        raise ValueError(f"array {name!r} of {path} holds Python objects, which are not read")
    offset = info.header_offset + LOCAL_HEADER.size + name_bytes + extra_bytes + header_bytes
    return np.memmap(
        path, dtype, mode="r", offset=offset, shape=shape, order="F" if fortran else "C"
    )


def _read_header(member: Any) -> tuple[tuple[int, ...], bool, np.dtype]:
    readers: dict[tuple[int, int], Callable[[Any], Any]] = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }
    version = np.lib.format.read_magic(member)
    if version not in readers:
        raise ValueError(f"its .npy version is {version}")
    return readers[version](member)
