"""Columns of csv and tsv files: rows that are not what their header says are never guessed at."""

import csv
import io
import warnings
from typing import Any

from drrho.data.reading.cells import Unreadable
from drrho.data.reading.parquet import require_columns
from drrho.runtime.files import require_regular

Fields = list[str]


def read_delimited(url: str, names: list[str], *, remedy: str = "") -> list[list[Any]]:
    """Read columns of a csv or tsv file with a header.

    A row with another number of fields than the header is an `Unreadable` cell in every column. In
    csv files fields with commas or line breaks stand in quotes. In tsv files quotes are characters
    like any other, unless a row only makes sense with them.

    Raises:
        ValueError: it is no regular file, lacks a column, or a quote is not closed.
    """
    require_regular(url)
    # newline: a caption may hold line breaks; errors: a wrong byte is a wrong caption, no more.
    with open(url, newline="", encoding="utf-8-sig", errors="surrogateescape") as file:
        text = file.read()
    header, *rows = (_tsv_rows(url, text) if url.endswith(".tsv") else _rows(url, text)) or [[]]
    require_columns(url, names, header, remedy=remedy)
    if repeated := [name for name in names if header.count(name) > 1]:
        raise ValueError(f"{url} has several columns called {repeated[0]!r}; rename all but one")
    places = [header.index(name) for name in names]
    cells = [_cells(row, places, len(header)) for row in rows]
    return [list(column) for column in zip(*cells, strict=True)] if cells else [[] for _ in names]


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
