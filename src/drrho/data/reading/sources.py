"""Sources besides tar files, row by row: tables with image paths, folders of images, Hugging Face
datasets on disk.
"""

import json
import os
from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

from drrho.data.reading.cells import parse_cells, read_image
from drrho.data.reading.delimited import read_delimited, read_json_lines
from drrho.data.reading.layout import Layout
from drrho.data.reading.parquet import read_columns, require_columns
from drrho.data.reading.shards import (
    CAPTION_EXTENSION,
    IMAGE_EXTENSIONS,
    RawSample,
    caption_fields,
)
from drrho.runtime.optional import import_optional

TABLE_SUFFIXES = (".csv", ".tsv", ".jsonl", ".parquet")
# What is clearly no tar file, and would be called a damaged one.
OTHER_SUFFIXES = (
    *(".json", ".txt", ".md", ".xlsx", ".arrow", ".feather", ".npy", ".npz", ".pt", ".safetensors"),
    *(".gz", ".tgz", ".bz2", ".xz", ".zst", ".zip", ".7z", ".rar"),
    *(".jpg", ".jpeg", ".png", ".webp", ".gif", ".mp4"),
)
DATASET_FILE = "dataset_info.json"
REMEDY = "; say which hold images and captions: --image-column NAME --caption-column NAME"
# Key, encoded image or why there is none, captions, metadata.
Row = tuple[str, bytes | str, list[str], dict]


@dataclass(frozen=True)
class Rows:
    """Random access to the samples of a source.

    Attributes:
        read: row number -> its content.
    """

    num_rows: int
    read: Callable[[int], Row]

    def __getitem__(self, row: int) -> RawSample:
        key, image, captions, metadata = self.read(row)
        fields = caption_fields(captions)
        if isinstance(image, bytes):
            fields[IMAGE_EXTENSIONS[0]] = image
        if metadata:
            fields["json"] = json.dumps(metadata).encode()
        no_image = "no image" if isinstance(image, bytes) else image
        return RawSample(key=key, row=row, fields=fields, no_image=no_image)


def open_rows(url: str, layout: Layout) -> Rows:
    """Open the rows of a source.

    Raises:
        FileNotFoundError: it is not there.
        ValueError: it lacks a column, or is damaged.
        ModuleNotFoundError: the package that reads it is not installed.
    """
    match layout.kind:
        case "table":
            return _table_rows(url, layout)
        case "folder":
            return _folder_rows(url)
        case "dataset":
            return _dataset_rows(url, layout)
        case "tar":
            raise ValueError(f"{url} is a tar file, which is read sample by sample")


def image_folders(folder: str) -> list[str]:
    """List the folders in a folder, itself included, that hold images, sorted.

    Links to folders are followed, each folder is taken once, and hidden ones are left out, such as
    `.ipynb_checkpoints`.
    """
    found: dict[str, str] = {}
    for follow in (False, True):  # a folder that is there in two ways has its own name
        walked: set[str] = set()
        for path, folders, names in os.walk(folder, followlinks=follow):
            place = os.path.realpath(path)
            known = place in walked  # by a link to a folder above it
            folders[:] = [] if known else sorted(n for n in folders if not n.startswith("."))
            walked.add(place)
            if any(map(_is_image, names)):
                found.setdefault(place, os.path.abspath(path))
    return sorted(found.values())


def _folder_rows(folder: str) -> Rows:
    names = sorted(name for name in os.listdir(folder) if _is_image(name))

    def read(row: int) -> Row:
        path = Path(folder, names[row])
        caption = path.with_suffix(f".{CAPTION_EXTENSION}")
        text = (
            [caption.read_text(encoding="utf-8", errors="surrogateescape")]
            if caption.is_file()
            else []
        )
        return path.stem, read_image(path), text, {"folder": path.parent.name}

    return Rows(len(names), read)


def _table_rows(url: str, layout: Layout) -> Rows:
    assert layout.image is not None
    wanted = [layout.image] + ([] if layout.caption is None else [layout.caption])
    readers = {".parquet": read_columns, ".jsonl": read_json_lines}
    cells = readers.get(os.path.splitext(url)[1].lower(), read_delimited)(
        url, wanted, remedy=REMEDY
    )
    root = Path(url).parent if layout.root is None else Path(layout.root)

    def read(row: int) -> Row:
        return str(row), *parse_cells([column[row] for column in cells], layout, row, url, root), {}

    return Rows(len(cells[0]), read)


def dataset_columns(url: str, names: list[str]) -> list[list[Any]]:
    """Read whole columns of a Hugging Face dataset on disk: texts and numbers, not images.

    Raises:
        ValueError: it lacks a column, or holds several splits.
        ModuleNotFoundError: `datasets` is not installed.
    """
    dataset = _open_dataset(url)
    require_columns(url, names, dataset.column_names)
    return [dataset.data.column(name).to_pylist() for name in names]


def list_lengths(url: str, name: str) -> list[int]:
    """Count the images in each list of a column.

    Raises:
        ValueError, ModuleNotFoundError: as `dataset_columns`, or it is no column of lists.
    """
    dataset = _open_dataset(url)
    require_columns(url, [name], dataset.column_names)
    column = dataset.data.column(name)
    if (lengths := _lengths(column)) is None:
        raise ValueError(f"{url}: the column {name!r} must hold lists, it holds {column.type}")
    return lengths


def _open_dataset(url: str) -> Any:
    datasets = import_optional("datasets", user="datasets on disk", extra="tables")
    try:
        dataset = datasets.load_from_disk(url)
        if isinstance(dataset, datasets.Dataset):
            # Arrow believes the offsets in its files, and would read outside them.
            dataset.data.validate(full=True)
    except Exception as error:  # of Arrow, JSON, fsspec and its own
        raise ValueError(f"{url} cannot be read as a dataset ({error})") from error
    if not isinstance(dataset, datasets.Dataset):
        raise ValueError(f"{url} holds several splits; give the folder of one: {list(dataset)}")
    return dataset


def _dataset_rows(url: str, layout: Layout) -> Rows:
    dataset = _open_dataset(url)
    wanted = [name for name in (layout.image, layout.caption) if name is not None]
    require_columns(url, wanted, dataset.column_names, remedy=REMEDY)
    dataset = dataset.select_columns(wanted).with_format("arrow")  # images stay encoded
    lengths = _lengths(dataset.data.column(layout.image))
    ends = None if lengths is None else list(accumulate(lengths))

    def read(sample: int) -> Row:
        row = sample if ends is None else bisect_right(ends, sample)
        found = dataset[row]
        image, *captions = (found[name][0] for name in wanted)
        key = str(row)
        if ends is not None:  # each image of the list is a sample, with the captions of the row
            place = sample - (ends[row - 1] if row > 0 else 0)
            key, image = f"{row}-{place}", image[place]
        cells = [cell.as_py() for cell in (image, *captions)]
        return key, *parse_cells(cells, layout, row, url, Path(url)), {}

    return Rows(len(dataset) if ends is None else sum(lengths or ()), read)


def _lengths(column: Any) -> list[int] | None:
    """Return the length of each list in a column; None if it does not hold lists."""
    import pyarrow as pa  # noqa: PLC0415  comes with `datasets`
    import pyarrow.compute as pc  # noqa: PLC0415

    if not (pa.types.is_list(column.type) or pa.types.is_large_list(column.type)):
        return None
    return [length or 0 for length in pc.call_function("list_value_length", [column]).to_pylist()]


def _is_image(name: str) -> bool:
    return not name.startswith(".") and name.lower().endswith(
        tuple(f".{extension}" for extension in IMAGE_EXTENSIONS)
    )
