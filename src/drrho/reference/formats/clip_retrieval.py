"""What `clip-retrieval inference` writes.

Source: clip_inference/writer.py of github.com/rom1504/clip-retrieval. A folder with
`img_emb/img_emb_N.npy`, `text_emb/text_emb_N.npy` and `metadata/metadata_N.parquet`, row by row;
N may have leading zeros. The column image_path is the sample's key where it read a WebDataset,
and the path of the image where it read files; caption is the text as it was; the other columns
are the fields of the sample's json, where it was asked for them.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath

import numpy as np

from drrho.data.manifest import Shard
from drrho.data.reading.parquet import count_rows, read_columns
from drrho.data.reading.shards import IMAGE_EXTENSIONS, RawSample, UnusableSample, decode_caption
from drrho.reference.formats.source import (
    ArrayFile,
    ArrayPair,
    ArrayTable,
    json_field,
    one_dimension,
    require_pair,
)

IMAGE_SUFFIXES = {f".{extension}" for extension in (*IMAGE_EXTENSIONS, "bmp")}


@dataclass(frozen=True, kw_only=True)
class ClipRetrievalSource:
    """The table of an output folder, made by `open`.

    It is joined by key and caption: keys are mere counters in many data sets, and the caption
    tells those apart. Or by a column that is a field of the samples' json, such as uid.
    """

    key_field: str | None
    table: ArrayTable

    @classmethod
    def open(cls, folder: Path, *, key_field: str | None = None) -> "ClipRetrievalSource":
        """Finds the files.

        Args:
            folder: with img_emb, text_emb and metadata.
            key_field: column of the metadata and field of the samples' json to join by; None
                joins by key and caption.

        Raises:
            FileNotFoundError: a folder or a file is missing.
            ModuleNotFoundError: pyarrow is not installed.
            ValueError: a file is damaged, or two do not fit each other.
        """
        paths = sorted((folder / "metadata").glob("metadata_*.parquet"))
        if not paths:
            raise FileNotFoundError(
                f"{folder} holds no metadata/metadata_*.parquet; give the output_folder of "
                "`clip-retrieval inference`"
            )
        files = tuple(_file(folder, path) for path in paths)
        dim = one_dimension({file.name: file.open().image.shape[1] for file in files})
        return cls(key_field=key_field, table=ArrayTable(files=files, embedding_dim=dim))

    @property
    def settings(self) -> dict[str, str]:
        return {"format": "clip-retrieval"}

    @property
    def key_noun(self) -> str:
        return self.key_field or "key and caption"

    def keys(self) -> Iterator[str]:
        for file in self.table.files:
            if self.key_field is not None:
                yield from map(str, read_columns(file.paths[0], [self.key_field])[0])
                continue
            paths, captions = read_columns(file.paths[0], ["image_path", "caption"])
            for path, caption in zip(paths, captions, strict=True):
                yield _joined(_key(str(path)), str(caption).strip())

    def key_of(self, shard: Shard, sample: RawSample) -> str | None:  # noqa: ARG002
        if self.key_field is not None:
            return json_field(sample, self.key_field)
        try:
            return _joined(sample.key, decode_caption(sample))
        except UnusableSample:
            return None


def _key(path: str) -> str:
    """The key of a sample: as it is, or the name of an image file without folder and suffix."""
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
        return ArrayPair(
            *(np.load(path, mmap_mode="r", allow_pickle=False) for path in (image, text))
        )
    except (ValueError, EOFError) as error:
        raise ValueError(f"{image} or {text} cannot be read ({error}); write it again") from error
