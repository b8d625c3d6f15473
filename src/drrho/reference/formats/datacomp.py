"""Embeddings of OpenAI's CLIP in the metadata of DataComp's pools.

Source: `download_upstream.py --download_npz` of github.com/mlfoundations/datacomp. Each
`NAME.parquet` with the columns uid, url, text, ... has a `NAME.npz` beside it with the arrays
b32_img, b32_txt, l14_img and l14_txt, float16, row by row. The downloaded shards, and shards that
its resharder wrote, have the uid in each sample's json.
"""

import struct
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from tyro.conf import Positional

from drrho.data.manifest import Manifest
from drrho.data.reading.parquet import count_rows, read_columns
from drrho.reference.arrays import open_npz, read_header, read_npz
from drrho.reference.formats.source import (
    ArrayFile,
    ArrayPair,
    ArrayTable,
    Source,
    find_files,
    json_field,
    require_pair,
)

LOCAL_HEADER = struct.Struct("<26xHH")  # of a zip member; at its end the lengths of two fields


@dataclass(frozen=True, kw_only=True)
class DataComp:
    """Metadata of DataComp's pools, a parquet and an npz file each; joined by uid.

    Attributes:
        source: metadata folder; folders below it are searched too.
        variant: CLIP model, ViT-B/32 or ViT-L/14.
    """

    source: Positional[str]
    variant: Literal["b32", "l14"]

    def open(self, _manifest: Manifest) -> Source:
        """Find the files; errors as `Source` says."""
        paths = find_files(
            Path(self.source).expanduser(),
            "**/*.parquet",
            remedy="give the metadata folder that DataComp's download_upstream.py wrote",
        )
        return Source(
            table=ArrayTable.of(_file(path, variant=self.variant) for path in paths),
            settings={"format": "datacomp", "variant": self.variant},
            key_noun="uid",
            keys=lambda: (str(uid) for path in paths for uid in read_columns(path, ["uid"])[0]),
            key_of=lambda _shard, sample: json_field(sample, "uid"),
        )


def _file(path: Path, *, variant: str) -> ArrayFile:
    arrays = path.with_suffix(".npz")
    if not arrays.exists():
        raise FileNotFoundError(
            f"beside {path} there is no {arrays.name}, which holds its embeddings; run DataComp's "
            "download_upstream.py with --download_npz"
        )

    def map_arrays() -> ArrayPair:
        return ArrayPair(*(_map_npz_array(arrays, f"{variant}_{kind}") for kind in ("img", "txt")))

    num_rows = count_rows(path)
    require_pair(str(arrays), *map_arrays(), num_rows=num_rows)
    return ArrayFile(name=path.name, paths=(path, arrays), num_rows=num_rows, open=map_arrays)


def _map_npz_array(path: Path, name: str) -> np.ndarray:
    """Map one array of an .npz file into memory.

    np.savez stores its arrays as they are, so their bytes are contiguous and can be mapped;
    np.load would read each whole. What np.savez_compressed wrote has to be read whole.

    Raises:
        ValueError: the file is damaged, has no such array, or one of Python objects.
    """
    try:
        with open_npz(path) as archive:
            info = archive.getinfo(f"{name}.npy")
            if info.compress_type != zipfile.ZIP_STORED:
                return read_npz(archive, name)
            with archive.open(info) as member:
                shape, fortran, dtype = read_header(member, size=info.file_size)
                header_bytes = member.tell()
        with path.open("rb") as file:
            file.seek(info.header_offset)
            name_bytes, extra_bytes = LOCAL_HEADER.unpack(file.read(LOCAL_HEADER.size))
    except KeyError:
        raise ValueError(f"{path} has no array {name!r}") from None
    except (zipfile.BadZipFile, struct.error, EOFError, ValueError) as error:
        raise ValueError(f"{path} cannot be read ({error}); fetch or write it again") from error
    offset = info.header_offset + LOCAL_HEADER.size + name_bytes + extra_bytes + header_bytes
    return np.memmap(
        path, dtype, mode="r", offset=offset, shape=shape, order="F" if fortran else "C"
    )
