"""Columns of csv, tsv, jsonl and json files: a row unlike the others is never guessed at."""

import codecs
import csv
import io
import warnings
from typing import Any, TextIO

from drrho.data.reading.cells import Unreadable
from drrho.data.reading.parquet import require_columns
from drrho.runtime.files import parse_json, read_regular, require_regular

MAX_BYTES = 2**32  # of a file, which is read whole
Fields = list[str]


def read_delimited(url: str, names: list[str], *, remedy: str = "") -> list[list[Any]]:
    """Read columns of a csv or tsv file with a header.

    A row with another number of fields than the header is an `Unreadable` cell in every column. In
    csv files, fields with commas or line breaks are in quotes. In tsv files quotes are characters
    like any other, unless a row only makes sense with them.

    Raises:
        ValueError: it is no regular file, lacks a column, or a quote is not closed.
    """
    text = _read_text(url)
    header, *rows = (
        _tsv_rows(url, text) if url.lower().endswith(".tsv") else _rows(url, text)
    ) or [[]]
    require_columns(url, names, header, remedy=remedy)
    if repeated := [name for name in names if header.count(name) > 1]:
        raise ValueError(f"{url} has several columns called {repeated[0]!r}; rename all but one")
    places = [header.index(name) for name in names]
    cells = [_cells(row, places, len(header)) for row in rows]
    return [list(column) for column in zip(*cells, strict=True)] if cells else [[] for _ in names]


def read_header(url: str) -> list[str]:
    """Read the names of the columns of a csv or tsv file; ValueError if it is no regular file."""
    with _opened(url) as file:
        if url.lower().endswith(".tsv"):
            line = next((line.rstrip("\r\n") for line in file if line.strip("\r\n")), "")
            return [_unquoted(field) for field in line.split("\t")]
        try:
            return next((row for row in csv.reader(file, strict=True) if row), [])
        except csv.Error as error:
            raise ValueError(f"{url}: its header cannot be read ({error})") from error


def read_json_lines(url: str, names: list[str], *, remedy: str = "") -> list[list[Any]]:
    """Read columns of a file of JSON objects; a name that an object lacks is None.

    Args:
        url: a `.jsonl` file with an object in each line, or a `.json` file with a list of objects
            or with COCO's captions, whose columns are `file_name` and `caption`.

    Raises:
        ValueError: it is no regular file, no object has one of the columns, or the JSON is neither.
    """
    rows = _json_rows(url)
    require_columns(url, names, _names(rows), remedy=remedy)
    unreadable = Unreadable("the line is no JSON object")
    return [[unreadable if row is None else row.get(name) for row in rows] for name in names]


def read_json_names(url: str) -> list[str]:
    """List the names in the objects of a file that `read_json_lines` reads."""
    return _names(_json_rows(url))


def _names(rows: list[dict[str, Any] | None]) -> list[str]:
    return list(dict.fromkeys(name for row in rows if row is not None for name in row))


def _json_rows(url: str) -> list[dict[str, Any] | None]:
    if url.lower().endswith(".json"):
        return _json_list(url)
    rows: list[dict[str, Any] | None] = []
    for line in _read_text(url).split("\n"):
        if not line.strip():
            continue
        try:
            row = parse_json(line.encode())
        except ValueError:
            row = None
        rows.append(row if isinstance(row, dict) else None)
    return rows


def _json_list(url: str) -> list[dict[str, Any] | None]:
    """Read a list of objects, or COCO's captions: a row for each image, with all its captions."""
    try:
        found = parse_json(read_regular(url, most=MAX_BYTES))
    except ValueError as error:
        raise ValueError(f"{url} is not JSON ({error})") from error
    if isinstance(found, list):
        return [row if isinstance(row, dict) else None for row in found]
    parts = [found.get(name) for name in ("images", "annotations")] if _is_coco(found) else [[], []]
    images, annotations = ([row for row in part if isinstance(row, dict)] for part in parts)
    captions: dict[Any, list[Any]] = {}
    for row in annotations:
        if "caption" in row and isinstance(row.get("image_id"), int | str):
            captions.setdefault(row["image_id"], []).append(row["caption"])
    if not captions:
        what = list(found)[:9] if isinstance(found, dict) else type(found).__name__
        raise ValueError(
            f"{url} is neither a list of objects with images and captions nor COCO's captions "
            f"(images and annotations with a caption); it has {what}"
        )
    ids = [row.get("id") for row in images]
    return [
        {"file_name": row.get("file_name"), "caption": captions.get(place)}
        for row, place in zip(images, ids, strict=True)
        if isinstance(place, int | str)
    ]


def _is_coco(found: Any) -> bool:
    return isinstance(found, dict) and all(
        isinstance(found.get(name), list) for name in ("images", "annotations")
    )


def _read_text(url: str) -> str:
    with _opened(url) as file:
        return file.read()


def _opened(url: str) -> TextIO:
    """Open a regular file of UTF-8; a wrong byte is a wrong caption, no more."""
    require_regular(url, most=MAX_BYTES)
    with open(url, "rb") as file:
        if file.read(2) in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
            raise ValueError(f"{url} is text in UTF-16; save it as UTF-8")
    # newline: a caption may hold line breaks.
    return open(url, newline="", encoding="utf-8-sig", errors="surrogateescape")


def _cells(row: Fields, places: list[int], num_fields: int) -> list[str]:
    if len(row) == num_fields:
        return [row[place] for place in places]
    return [Unreadable(f"the row has {len(row)} fields, not {num_fields}")] * len(places)


def _tsv_rows(url: str, text: str) -> list[Fields]:
    """Split a tsv file at its line breaks and tabs, if every line then has as many fields.

    Otherwise with quotes, if every row then has as many; otherwise at line breaks again.
    """
    lines = [line for line in text.replace("\r\n", "\n").split("\n") if line]
    plain = [[_unquoted(field) for field in line.split("\t")] for line in lines]
    if _all_alike(plain):
        return plain
    try:
        quoted = _rows(url, text, delimiter="\t")
    except ValueError:
        return plain
    return quoted if _all_alike(quoted) else plain


def _unquoted(field: str) -> str:
    inner = field[1:-1].replace('""', "")
    if len(field) >= 2 and field[0] == field[-1] == '"' and '"' not in inner:
        return field[1:-1].replace('""', '"')
    return field


def _all_alike(rows: list[Fields]) -> bool:
    return len({len(row) for row in rows}) <= 1


def _rows(url: str, text: str, *, delimiter: str = ",") -> list[Fields]:
    """Parse rows with quotes; warn of rows over several lines, which a missing quote makes too."""
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    rows: list[Fields] = []
    long: list[int] = []
    line = 0
    try:
        for row in reader:
            if row:
                rows.append(row)
            if reader.line_num > line + 1:
                long.append(line + 1)
            line = reader.line_num
    except csv.Error as error:
        raise ValueError(
            f"{url}, line {line + 1}: {error}; a field that begins with a quote ends with one, and "
            "quotes in it are doubled"
        ) from error
    if long:
        warnings.warn(
            f"{url}: {len(long):,} rows are over several lines, the first begins in line "
            f"{long[0]}; if that is not meant, a quote is missing there",
            stacklevel=2,
        )
    return rows
