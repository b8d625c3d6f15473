"""Sources besides tar files, row by row: tables with image paths, folders of images, Hugging Face
datasets on disk.
"""

import csv
import json
import os
from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any, Literal

from drrho.data.reading.parquet import read_columns, require_columns
from drrho.data.reading.shards import (
    CAPTION_EXTENSION,
    CAPTIONS_EXTENSION,
    IMAGE_EXTENSIONS,
    RawSample,
)
from drrho.data.reading.tar import MAX_CONTENT
from drrho.runtime.files import read_regular, require_regular
from drrho.runtime.optional import import_optional

TABLE_SUFFIXES = (".csv", ".tsv", ".parquet")
DATASET_FILE = "dataset_info.json"
REMEDY = "; say which hold images and captions: --image-column NAME --caption-column NAME"
# Key, encoded image or why there is none, captions, metadata.
Row = tuple[str, bytes | str, list[str], dict]


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Mapping from the rows of a source to samples.

    Attributes:
        kind: "table" is a csv, tsv or parquet file, "folder" one of images with captions beside
            them, "dataset" what Hugging Face's `save_to_disk` wrote.
        image: column of the image, a path or (in a parquet file or dataset) its bytes; only of
            tables and datasets. Of a dataset's list of images each is a sample.
        caption: column of the caption, or of a list of several.
        root: folder that paths of images are relative to; None is the table's own.
    """

    kind: Literal["table", "folder", "dataset"]
    image: str | None = None
    caption: str | None = None
    root: str | None = None


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
        fields: dict[str, bytes] = {}
        if isinstance(image, bytes):
            fields[IMAGE_EXTENSIONS[0]] = image
        if captions:
            fields[CAPTION_EXTENSION] = captions[0].encode(errors="surrogateescape")
        if len(captions) > 1:
            fields[CAPTIONS_EXTENSION] = json.dumps(captions).encode()
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


def image_folders(folder: str) -> list[str]:
    """List the folders in a folder, itself included, that hold images, sorted."""
    found = [path for path, _, names in os.walk(folder) if any(map(_is_image, names))]
    return sorted(os.path.abspath(path) for path in found)


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
        return path.stem, _read_image(path), text, {"folder": path.parent.name}

    return Rows(len(names), read)


def _table_rows(url: str, layout: Layout) -> Rows:
    assert layout.image is not None
    wanted = [layout.image] + ([] if layout.caption is None else [layout.caption])
    if url.endswith(".parquet"):
        columns = read_columns(url, wanted, remedy=REMEDY)
    else:
        columns = _read_csv(url, wanted)
    root = Path(url).parent if layout.root is None else Path(layout.root)

    def read(row: int) -> Row:
        image, *captions = (column[row] for column in columns)
        return str(row), _image_of(image, root), _captions_of(captions), {}

    return Rows(len(columns[0]), read)


def _read_csv(url: str, wanted: list[str]) -> list[list[Any]]:
    delimiter = "\t" if url.endswith(".tsv") else ","
    # newline: a caption may hold line breaks; errors: a wrong byte is a wrong caption, no more.
    require_regular(url)
    with open(url, newline="", encoding="utf-8-sig", errors="surrogateescape") as file:
        reader = csv.DictReader(file, delimiter=delimiter)
        require_columns(url, wanted, list(reader.fieldnames or ()), remedy=REMEDY)
        rows = [[row[name] for name in wanted] for row in reader]
    return [list(column) for column in zip(*rows, strict=True)] if rows else [[] for _ in wanted]


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
    dataset = datasets.load_from_disk(url)
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
        cells = dataset[row]
        image, *captions = (cells[name][0] for name in wanted)
        key = str(row)
        if ends is not None:  # each image of the list is a sample, with the captions of the row
            place = sample - (ends[row - 1] if row > 0 else 0)
            key, image = f"{row}-{place}", image[place]
        captions = _captions_of([caption.as_py() for caption in captions])
        return key, _image_of(image.as_py(), Path(url)), captions, {}

    return Rows(len(dataset) if ends is None else sum(lengths or ()), read)


def _lengths(column: Any) -> list[int] | None:
    """Return the length of each list in a column; None if it does not hold lists."""
    import pyarrow as pa  # noqa: PLC0415  comes with `datasets`
    import pyarrow.compute as pc  # noqa: PLC0415

    if not (pa.types.is_list(column.type) or pa.types.is_large_list(column.type)):
        return None
    return [length or 0 for length in pc.call_function("list_value_length", [column]).to_pylist()]


def _image_of(cell: Any, root: Path) -> bytes | str:
    """Return the encoded image of a cell, or why there is none.

    A cell is a path, bytes, or Hugging Face's dictionary of both.
    """
    if isinstance(cell, dict):
        cell = cell.get("bytes") or cell.get("path")
    match cell:
        case None | "" | b"":
            return "no image"
        case bytes():
            return cell
        case str():
            return _read_image(root / cell)
    return f"no image: its cell is a {type(cell).__name__}, not a path or bytes"


def _read_image(path: Path) -> bytes | str:
    """Read an image file; return why there is none if it cannot be read."""
    try:
        return read_regular(path, most=MAX_CONTENT)
    except FileNotFoundError:
        return "no image: its file does not exist"
    except (OSError, ValueError):  # ValueError: no regular file, too large, or no path at all
        return "no image: its file cannot be read"


def _captions_of(cells: list[Any]) -> list[str]:
    found: list[str] = []
    for cell in cells:
        found += [cell] if isinstance(cell, str) else [c for c in cell or () if c is not None]
    return found


def _is_image(name: str) -> bool:
    return name.lower().endswith(tuple(f".{extension}" for extension in IMAGE_EXTENSIONS))
