"""Sources besides tar files, row by row: tables with image paths, folders of images, Hugging Face
datasets on disk.
"""

import json
import os
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import accumulate, islice
from pathlib import Path
from typing import Any

from drrho.data.manifest import is_manifest
from drrho.data.reading.cells import parse_cells, read_image
from drrho.data.reading.columns import find_column, find_field, find_pair
from drrho.data.reading.delimited import (
    read_delimited,
    read_header,
    read_json_lines,
    read_json_names,
)
from drrho.data.reading.layout import Layout
from drrho.data.reading.parquet import read_columns, read_names, require_columns
from drrho.data.reading.shards import (
    ANCHOR_EXTENSION,
    CAPTION_EXTENSION,
    IMAGE_EXTENSIONS,
    LIKE_IMAGES,
    RawSample,
    caption_fields,
    texts_of,
)
from drrho.data.reading.tar import MAX_CONTENT
from drrho.runtime.files import parse_json, read_regular
from drrho.runtime.optional import import_optional

# Folders of archives of macOS, thumbnails of a Synology, file systems: copies of images, or none.
OF_SYSTEMS = {"__MACOSX", "@eaDir", "lost+found", "$RECYCLE.BIN", "System Volume Information"}
TABLE_SUFFIXES = (".csv", ".tsv", ".jsonl", ".parquet")
JSON_SUFFIX = ".json"  # a table where it is named; in a folder it may be anything
# What is clearly no tar file, and would be called a damaged one.
OTHER_SUFFIXES = (
    *(".txt", ".md", ".xlsx", ".arrow", ".feather", ".npy", ".npz", ".pt", ".safetensors"),
    *(".gz", ".tgz", ".bz2", ".xz", ".zst", ".zip", ".7z", ".rar"),
    *(".jpg", ".jpeg", ".png", ".webp", ".gif", ".mp4"),
)
DATASET_FILE, SPLITS_FILE = "dataset_info.json", "dataset_dict.json"
METADATA = "metadata"  # stem of the table beside images, as of Hugging Face's image folders
REMEDY = "; say which hold images and captions: --image-column NAME --caption-column NAME"
FIRST = 8  # paths of a table by which the folder of its images is found
# Key, encoded image or why there is none, captions, metadata.
Row = tuple[str, bytes | str, list[str], dict]


@dataclass(frozen=True)
class Rows:
    """Random access to the samples of a source.

    Attributes:
        read: row number -> its content.
        of_texts: whether a sample has the anchor of a pair of texts in the place of the image.
    """

    num_rows: int
    read: Callable[[int], Row]
    of_texts: bool = False

    def __getitem__(self, row: int) -> RawSample:
        key, image, captions, metadata = self.read(row)
        fields = caption_fields(captions)
        if isinstance(image, bytes) and self.of_texts:
            fields[ANCHOR_EXTENSION] = image
            metadata = metadata | {ANCHOR_EXTENSION: image.decode(errors="replace").strip()}
        elif isinstance(image, bytes):
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
        case "table" | "text_table":
            return _table_rows(url, layout)
        case "folder":
            return _folder_rows(url, layout)
        case "dataset" | "text_dataset":
            return _dataset_rows(url, layout)
        case "tar":
            raise ValueError(f"{url} is a tar file, which is read sample by sample")


def recognised(
    url: str,
    layout: Layout,
    *,
    image: str | None,
    caption: str | None,
    anchor: str | None = None,
) -> Layout:
    """Complete the layout of a source by the names of its columns, as `find_column` chooses them.

    In a folder of images the caption is a field of the json files beside the images
    without a txt; None where there are none. With an anchor, or where two columns are known to be
    pairs of texts (`find_pair`), the layout is for pairs of texts.

    Raises:
        ValueError: there are columns, but none or no single one that is known.
    """
    if layout.kind == "folder":
        return replace(layout, caption=_json_field(url, caption))
    if layout.kind == "dataset":
        present = list(_open_dataset(url).column_names)
    elif url.lower().endswith(".parquet"):
        present = read_names(url)
    else:
        present = _names_in(url)
    pair = find_pair(present) if (image, caption, anchor) == (None, None, None) else None
    if pair is not None or anchor is not None:
        kind = "text_dataset" if layout.kind == "dataset" else "text_table"
        first, second = pair or (anchor, find_column(url, caption, present, of="caption"))
        if second is None or first == second:
            raise ValueError(
                f"pairs of texts need two columns, got {first!r} as anchors and {second!r} as "
                "positives; name the other: --caption-column NAME"
            )
        return replace(layout, kind=kind, image=first, caption=second, root=None)
    return replace(
        layout,
        image=find_column(url, image, present, of="image"),
        caption=find_column(url, caption, present, of="caption"),
    )


def _names_in(url: str) -> list[str]:
    """List the columns of a table that is a text."""
    if url.lower().endswith((".jsonl", JSON_SUFFIX)):
        return read_json_names(url)
    present = read_header(url)
    if len(present) == 1 and set(present[0]) & set(";|\t"):
        raise ValueError(
            f"the header of {url} is one field, {present[0]!r}; fields are separated by commas in "
            "a csv file and by tabs in a tsv file: write it so"
        )
    return present


def _json_field(folder: str, given: str | None) -> str | None:
    """Name the field with the captions of a folder's json files; None where they have none."""
    for _, beside in _images_of(folder):
        if given is None and CAPTION_EXTENSION not in beside and "json" in beside:
            place = beside["json"]
            return find_field(str(place), list(_read_object(place)))
    return given


def metadata_tables(folder: str) -> list[str]:
    """List the tables called `metadata` in a folder and below it, sorted.

    Hugging Face's folders of images have one for each split, beside its images.
    """
    return [
        os.path.join(path, name)
        for path in _folders_with(folder, _is_metadata)
        for name in sorted(filter(_is_metadata, os.listdir(path)))
    ]


def image_folders(folder: str) -> list[str]:
    """List the folders in a folder, itself included, that hold images, sorted.

    Links to folders are followed, each folder is taken once, and those that programs leave behind
    are left out: hidden ones, such as `.ipynb_checkpoints`, and `OF_SYSTEMS`.
    """
    return _folders_with(folder, _is_image)


def find_captions(folder: str) -> str | None:
    """Find a table or json file in a folder, or below it, that may have its images' captions.

    One with `caption` in its name comes first, and an index of ours is none.
    """
    suffixes = (*TABLE_SUFFIXES, JSON_SUFFIX)
    found = [
        Path(path, name)
        for path in _folders_with(folder, lambda name: name.lower().endswith(suffixes))
        for name in sorted(os.listdir(path))
        if name.lower().endswith(suffixes)
    ]
    found.sort(key=lambda path: "caption" not in path.name.lower())
    return next((str(path) for path in found if not _is_ours(path)), None)


def _is_ours(path: Path) -> bool:
    """Tell whether a json file is an index, or describes classes."""
    return path.name == "zero_shot.json" or is_manifest(path)


def other_images(folder: str) -> Counter[str]:
    """Count the images of a folder that are not taken, by extension."""
    names = [name.lower() for name in os.listdir(folder) if not name.startswith(".")]
    extensions = (name.rpartition(".")[2] for name in names if not _is_image(name))
    return Counter(f".{extension}" for extension in extensions if extension in LIKE_IMAGES)


def _folders_with(folder: str, wanted: Callable[[str], bool]) -> list[str]:
    found: dict[str, str] = {}
    for follow in (False, True):  # a folder that is there in two ways has its own name
        walked: set[str] = set()
        for path, folders, names in os.walk(folder, followlinks=follow):
            place = os.path.realpath(path)
            known = place in walked  # by a link to a folder above it
            seen = (n for n in folders if not n.startswith(".") and n not in OF_SYSTEMS)
            folders[:] = [] if known else sorted(seen)
            walked.add(place)
            if any(map(wanted, names)):
                found.setdefault(place, os.path.abspath(path))
    return sorted(found.values())


def _images_of(folder: str) -> list[tuple[Path, dict[str, Path]]]:
    """List the images of a folder, sorted, each with the txt and json files of the same name."""
    names, beside = sorted(os.listdir(folder)), {}
    for name in names:
        stem, _, extension = name.rpartition(".")
        if extension.lower() in (CAPTION_EXTENSION, "json"):
            beside.setdefault(stem, {})[extension.lower()] = Path(folder, name)
    return [
        (Path(folder, name), beside.get(name.rpartition(".")[0], {}))
        for name in filter(_is_image, names)
    ]


def _read_object(path: Path) -> dict[str, Any]:
    """Read a JSON object; empty if it is none."""
    with suppress(OSError, ValueError):
        found = parse_json(read_regular(path, most=MAX_CONTENT))
        if isinstance(found, dict):
            return found
    return {}


def _folder_rows(folder: str, layout: Layout) -> Rows:
    images = _images_of(folder)

    def read(row: int) -> Row:
        path, beside = images[row]
        texts: list[str] = []
        if CAPTION_EXTENSION in beside and beside[CAPTION_EXTENSION].is_file():
            texts = [
                beside[CAPTION_EXTENSION].read_text(encoding="utf-8", errors="surrogateescape")
            ]
        elif layout.caption is not None and "json" in beside:
            texts = texts_of(_read_object(beside["json"]), layout.caption)
        return path.stem, read_image(path), texts, {"folder": path.parent.name}

    return Rows(len(images), read)


def _table_rows(url: str, layout: Layout) -> Rows:
    assert layout.image is not None
    wanted = [layout.image] + ([] if layout.caption is None else [layout.caption])
    readers = {".parquet": read_columns, ".jsonl": read_json_lines, ".json": read_json_lines}
    cells = readers.get(os.path.splitext(url)[1].lower(), read_delimited)(
        url, wanted, remedy=REMEDY
    )
    searched = layout.root is None and not layout.has_texts
    root = _root_of(url, cells[0]) if searched else Path(layout.root or ".")

    def read(row: int) -> Row:
        return str(row), *parse_cells([column[row] for column in cells], layout, row, url, root), {}

    return Rows(len(cells[0]), read, layout.has_texts)


def _root_of(url: str, images: list[Any]) -> Path:
    """Find the folder that paths in a table are relative to.

    It is the table's own; or, where none of the first images is there, the one folder in it, above
    it or beside it in which they all are.
    """
    own = Path(url).parent
    paths = list(islice((cell for cell in images if isinstance(cell, str) and cell), FIRST))

    def count(folder: Path) -> int:
        return sum(os.path.isfile(folder / path) for path in paths)

    if not paths or count(own) > 0:
        return own
    for near in (_subfolders(own), [own.parent, *_subfolders(own.parent)]):
        if found := [folder for folder in near if count(folder) == len(paths)]:
            return found[0] if len(found) == 1 else own
    return own


def _subfolders(folder: Path) -> list[Path]:
    with suppress(OSError), os.scandir(folder) as entries:
        return sorted(Path(entry.path) for entry in entries if entry.is_dir())
    return []


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

    return Rows(len(dataset) if ends is None else sum(lengths or ()), read, layout.has_texts)


def _lengths(column: Any) -> list[int] | None:
    """Return the length of each list in a column; None if it does not hold lists."""
    import pyarrow as pa  # noqa: PLC0415  comes with `datasets`
    import pyarrow.compute as pc  # noqa: PLC0415

    if not (pa.types.is_list(column.type) or pa.types.is_large_list(column.type)):
        return None
    return [length or 0 for length in pc.call_function("list_value_length", [column]).to_pylist()]


def _is_metadata(name: str) -> bool:
    stem, suffix = os.path.splitext(name.lower())
    return stem == METADATA and suffix in TABLE_SUFFIXES


def _is_image(name: str) -> bool:
    return not name.startswith(".") and name.lower().endswith(
        tuple(f".{extension}" for extension in IMAGE_EXTENSIONS)
    )
