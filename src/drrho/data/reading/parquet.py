"""Reading columns of parquet files, with pyarrow where it is installed."""

from pathlib import Path
from types import ModuleType

from drrho.runtime.files import require_regular
from drrho.runtime.optional import import_optional


def count_rows(path: str | Path) -> int:
    """Count the rows of a parquet file; errors as `read_columns`."""
    return _opened(path).metadata.num_rows


def read_names(path: str | Path) -> list[str]:
    """List the columns of a parquet file; errors as `read_columns`."""
    return list(_opened(path).schema_arrow.names)


def read_columns(path: str | Path, names: list[str], *, remedy: str = "") -> list[list]:
    """Read columns of a parquet file, as lists of Python values.

    Raises:
        ModuleNotFoundError: pyarrow is not installed.
        ValueError: it is no parquet file, or lacks a column; then the message ends in `remedy`.
    """
    file = _opened(path)
    require_columns(path, names, file.schema_arrow.names, remedy=remedy)
    try:
        table = file.read(columns=names)
        return [table.column(name).to_pylist() for name in names]
    except (_import("pyarrow").ArrowException, UnicodeDecodeError) as error:
        raise _unreadable(path, error) from error


def require_columns(
    path: str | Path, wanted: list[str], present: list[str], *, remedy: str = ""
) -> None:
    """Raise ValueError, which names the columns that there are, if one is missing."""
    if missing := [name for name in wanted if name not in present]:
        raise ValueError(f"{path} has no column {missing[0]!r}, it has {present}{remedy}")


def _opened(path: str | Path):
    pyarrow = _import("pyarrow")
    require_regular(path)
    try:
        return _import("pyarrow.parquet").ParquetFile(path)
    except pyarrow.ArrowException as error:
        raise _unreadable(path, error) from error


def _unreadable(path: str | Path, error: Exception) -> ValueError:
    return ValueError(f"{path} cannot be read ({error}); fetch or write it again")


def _import(name: str) -> ModuleType:
    return import_optional(name, user="parquet files", extra="tables")
