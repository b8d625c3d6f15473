"""Embeddings of OpenAI's CLIP in the metadata of DataComp's pools.

Source: `download_upstream.py --download_npz` of github.com/mlfoundations/datacomp. Beside each
`NAME.parquet` with the columns uid, url, text, ... lies a `NAME.npz` with the arrays b32_img,
b32_txt, l14_img and l14_txt, float16, row by row. The downloaded shards, and those of its
resharder, have the uid in each sample's json.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tyro.conf import Positional

from drrho.data.manifest import Manifest
from drrho.data.reading.parquet import count_rows, read_columns
from drrho.reference.formats.npz import map_npz_array
from drrho.reference.formats.source import (
    ArrayFile,
    ArrayPair,
    ArrayTable,
    Source,
    find_files,
    json_field,
    require_pair,
)


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
        """Find the files.

        Raises:
            FileNotFoundError: there is no parquet file, or the npz file of one is missing.
            ModuleNotFoundError: pyarrow is not installed.
            ValueError: a file is damaged or lacks the arrays, or two do not fit each other.
        """
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
        return ArrayPair(
            map_npz_array(arrays, f"{variant}_img"), map_npz_array(arrays, f"{variant}_txt")
        )

    num_rows = count_rows(path)
    require_pair(str(arrays), *map_arrays(), num_rows=num_rows)
    return ArrayFile(name=path.name, paths=(path, arrays), num_rows=num_rows, open=map_arrays)
