"""Columns of parquet files, by pyarrow where it is installed."""

import importlib
from pathlib import Path
from types import ModuleType


def count_rows(path: Path) -> int:
    """The number of rows of a parquet file.

    Raises:
        ModuleNotFoundError: pyarrow is not installed.
        ValueError: it is no parquet file.
    """
    return _opened(path).metadata.num_rows


def read_columns(path: Path, names: list[str]) -> list[list]:
    """Some columns of a parquet file, as lists of Python values.

    Raises:
        ModuleNotFoundError: pyarrow is not installed.
        ValueError: it is no parquet file, or it lacks a column.
    """
    file = _opened(path)
    columns = file.schema_arrow.names
    if missing := [name for name in names if name not in columns]:
        raise ValueError(f"{path} has no column {missing[0]!r}; it has {', '.join(columns)}")
    table = file.read(columns=names)
    return [table.column(name).to_pylist() for name in names]


def _opened(path: Path):
    pyarrow = _import("pyarrow")
    try:
        return _import("pyarrow.parquet").ParquetFile(path)
    except pyarrow.ArrowInvalid as error:
        raise ValueError(f"{path} cannot be read ({error}); fetch or write it again") from error


def _import(name: str) -> ModuleType:
    """By name, because the rest of the room works without it."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"{error}; parquet files need: pip install 'drrho[tables]'"
        ) from error
