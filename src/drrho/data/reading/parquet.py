"""Reading columns of parquet files, with pyarrow where it is installed."""

from pathlib import Path
from types import ModuleType

from drrho.runtime.optional import import_optional


def count_rows(path: str | Path) -> int:
    """Count the rows of a parquet file; errors as `column_names`."""
    return _opened(path).metadata.num_rows


def column_names(path: str | Path) -> list[str]:
    """List the column names of a parquet file.

    Raises:
        ModuleNotFoundError: pyarrow is not installed.
        ValueError: it is no parquet file.
    """
    return _opened(path).schema_arrow.names


def read_columns(path: str | Path, names: list[str]) -> list[list]:
    """Read columns of a parquet file, as lists of Python values.

    Errors as `column_names`, and ValueError if it lacks a column.
    """
    file = _opened(path)
    columns = file.schema_arrow.names
    if missing := [name for name in names if name not in columns]:
        raise ValueError(f"{path} has no column {missing[0]!r}; it has {', '.join(columns)}")
    try:
        table = file.read(columns=names)
    except _import("pyarrow").ArrowException as error:
        raise _unreadable(path, error) from error
    return [table.column(name).to_pylist() for name in names]


def _opened(path: str | Path):
    pyarrow = _import("pyarrow")
    try:
        return _import("pyarrow.parquet").ParquetFile(path)
    except pyarrow.ArrowException as error:
        raise _unreadable(path, error) from error


def _unreadable(path: str | Path, error: Exception) -> ValueError:
    return ValueError(f"{path} cannot be read ({error}); fetch or write it again")


def _import(name: str) -> ModuleType:
    return import_optional(name, user="parquet files", extra="tables")
