"""Embeddings that `clip-retrieval inference` wrote.

Source: clip_inference/writer.py of github.com/rom1504/clip-retrieval. A folder with
`img_emb/img_emb_N.npy`, `text_emb/text_emb_N.npy` and `metadata/metadata_N.parquet`, row by row;
N may have leading zeros. The column image_path is the sample's key in a WebDataset, or the path of
an image file; caption is the text; other columns are fields of the sample's json.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath

import numpy as np
from tyro.conf import Positional

from drrho.data.manifest import Manifest, Shard
from drrho.data.reading.parquet import count_rows, read_columns
from drrho.data.reading.shards import IMAGE_EXTENSIONS, RawSample, UnusableSample, decode_caption
from drrho.reference.arrays import read_header
from drrho.reference.formats.source import (
    ArrayFile,
    ArrayPair,
    ArrayTable,
    Source,
    find_files,
    json_field,
    require_pair,
)
from drrho.runtime.files import require_regular

IMAGE_SUFFIXES = {f".{extension}" for extension in (*IMAGE_EXTENSIONS, "bmp")}


@dataclass(frozen=True, kw_only=True)
class ClipRetrieval:
    """Output folder of `clip-retrieval inference`; joined by key and caption, or by a field.

    Keys are mere counters in many data sets, and the caption tells those apart.

    Attributes:
        source: folder with img_emb, text_emb and metadata.
        key_field: column of the metadata and field of the samples' json to join by.
    """

    source: Positional[str]
    key_field: str | None = None

    def open(self, _manifest: Manifest) -> Source:
        """Find the files; errors as `Source` says."""
        folder = Path(self.source).expanduser()
        paths = find_files(
            folder,
            "metadata/metadata_*.parquet",
            remedy="give the output_folder of `clip-retrieval inference`",
        )
        return Source(
            table=ArrayTable.of(_file(folder, path) for path in paths),
            settings={"format": "clip-retrieval"},
            key_noun=self.key_field or "key and caption",
            keys=partial(_keys, paths, self.key_field),
            key_of=partial(_key_of, self.key_field),
        )


def _keys(paths: list[Path], field: str | None) -> Iterator[str]:
    for path in paths:
        if field is not None:
            yield from map(str, read_columns(path, [field])[0])
            continue
        columns = read_columns(path, ["image_path", "caption"])
        for image, caption in zip(*columns, strict=True):
            yield _joined(_key(str(image)), str(caption).strip())


def _key_of(field: str | None, _shard: Shard, sample: RawSample) -> str | None:
    if field is not None:
        return json_field(sample, field)
    try:
        return _joined(sample.key, decode_caption(sample))
    except UnusableSample:
        return None


def _key(path: str) -> str:
    """Return the key of a sample: a path of an image without folder and suffix, or as it is."""
    file = PurePosixPath(path)
    return file.stem if file.suffix.lower() in IMAGE_SUFFIXES else path


def _joined(key: str, caption: str) -> str:
    return f"{key}: {caption}"


def _file(folder: Path, path: Path) -> ArrayFile:
    number = path.stem.removeprefix("metadata_")
    arrays = [folder / kind / f"{kind}_{number}.npy" for kind in ("img_emb", "text_emb")]
    for array in arrays:
        if not array.exists():
            raise FileNotFoundError(
                f"{path} has no {array}; `clip-retrieval inference` must have run with "
                "enable_image and enable_text"
            )
    num_rows = count_rows(path)
    require_pair(f"{folder}, part {number}", *_map_arrays(*arrays), num_rows=num_rows)
    return ArrayFile(
        name=path.name, paths=(path, *arrays), num_rows=num_rows, open=partial(_map_arrays, *arrays)
    )


def _map_arrays(image: Path, text: Path) -> ArrayPair:
    try:
        for path in (image, text):
            with path.open("rb") as file:
                read_header(file, size=require_regular(path).st_size)
        return ArrayPair(
            *(np.load(path, mmap_mode="r", allow_pickle=False) for path in (image, text))
        )
    except (ValueError, EOFError) as error:
        raise ValueError(f"{image} or {text} cannot be read ({error}); write it again") from error
