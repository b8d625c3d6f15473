"""DataComp's metadata: the embeddings of OpenAI's CLIP that come with its pools.

Source: `download_upstream.py --download_npz` of github.com/mlfoundations/datacomp. Beside each
`NAME.parquet` with the columns uid, url, text, ... lies a `NAME.npz` with the arrays b32_img,
b32_txt, l14_img and l14_txt, float16, row by row. The downloaded shards, and those of its
resharder, have the uid in each sample's json.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from drrho.data.manifest import Shard
from drrho.data.reading.parquet import count_rows, read_columns
from drrho.data.reading.shards import RawSample
from drrho.reference.formats.npz import map_npz_array
from drrho.reference.formats.source import (
    ArrayFile,
    ArrayPair,
    ArrayTable,
    json_field,
    one_dimension,
    require_pair,
)

Variant = Literal["b32", "l14"]


@dataclass(frozen=True, kw_only=True)
class DataCompSource:
    """The table of a folder of metadata, made by `open`; joined by uid."""

    variant: Variant
    table: ArrayTable

    @classmethod
    def open(cls, folder: Path, *, variant: Variant) -> "DataCompSource":
        """Finds the files, in the folder and those below it.

        Args:
            folder: of parquet and npz files.
            variant: ViT-B/32 or ViT-L/14.

        Raises:
            FileNotFoundError: there is no parquet file, or the npz file of one is missing.
            ModuleNotFoundError: pyarrow is not installed.
            ValueError: a file is damaged or lacks the arrays, or two do not fit each other.
        """
        paths = sorted(folder.rglob("*.parquet"))
        if not paths:
            raise FileNotFoundError(
                f"{folder} holds no .parquet file; give the metadata folder that DataComp's "
                "download_upstream.py wrote"
            )
        files = tuple(_file(path, variant=variant) for path in paths)
        dim = one_dimension({file.name: file.open().image.shape[1] for file in files})
        return cls(variant=variant, table=ArrayTable(files=files, embedding_dim=dim))

    @property
    def settings(self) -> dict[str, str]:
        return {"format": "datacomp", "variant": self.variant}

    @property
    def key_noun(self) -> str:
        return "uid"

    def keys(self) -> Iterator[str]:
        for file in self.table.files:
            yield from map(str, read_columns(file.paths[0], ["uid"])[0])

    def key_of(self, shard: Shard, sample: RawSample) -> str | None:  # noqa: ARG002
        return json_field(sample, "uid")


def _file(path: Path, *, variant: Variant) -> ArrayFile:
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
