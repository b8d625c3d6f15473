"""Cells of tables and datasets: the one place where their types are looked at."""

import math
from pathlib import Path
from typing import Any

from drrho.data.reading.layout import Layout
from drrho.data.reading.tar import MAX_CONTENT
from drrho.runtime.files import read_regular


class Unreadable(str):
    """Cell of a row that cannot be read, with the reason."""


def parse_cells(
    cells: list[Any], layout: Layout, row: int, url: str, root: Path
) -> tuple[bytes | str, list[str]]:
    """Return the encoded image, or why there is none, and the captions of a row.

    Args:
        cells: image and, where there is a column of them, captions.
        root: folder that paths of images are relative to.

    Raises:
        ValueError: a cell holds neither what is wanted nor nothing; names file, row, column, type.
    """
    image, *captions = cells
    if layout.has_texts:
        return _text_pair(cells, layout, f"{url}, row {row}, column")
    where = f"{url}, row {row}, column"
    texts = [] if not captions else _texts(captions[0], f"{where} {layout.caption!r}")
    return _image(image, root, f"{where} {layout.image!r}"), texts


def _text_pair(cells: list[Any], layout: Layout, where: str) -> tuple[bytes | str, list[str]]:
    anchor, positive = cells
    texts = _texts(positive, f"{where} {layout.caption!r}")
    if isinstance(anchor, Unreadable):
        return str(anchor), texts
    if _is_missing(anchor):
        return "no anchor", texts
    if not isinstance(anchor, str):
        raise _wrong(anchor, f"{where} {layout.image!r}", "a text", "--anchor-column")
    return anchor.encode(errors="surrogateescape"), texts


def read_image(path: Path) -> bytes | str:
    """Read an image file; return why there is none if it cannot be read."""
    try:
        return read_regular(path, most=MAX_CONTENT)
    except FileNotFoundError:
        return "no image: its file does not exist"
    except (OSError, ValueError):  # ValueError: no regular file, too large, or no path at all
        return "no image: its file cannot be read"


def _image(cell: Any, root: Path, where: str) -> bytes | str:
    if isinstance(cell, dict):  # as Hugging Face stores images
        cell = cell.get("bytes") or cell.get("path")
    match cell:
        case Unreadable():
            return str(cell)
        case _ if _is_missing(cell):
            return "no image"
        case bytes():
            return cell
        case str() if cell.startswith(("http://", "https://")):
            return "no image: its path is a URL, and nothing is fetched (img2dataset does that)"
        case str():
            return read_image(root / cell)
    raise _wrong(cell, where, "a path or the bytes of an image", "--image-column")


def _texts(cell: Any, where: str) -> list[str]:
    if _is_missing(cell):
        return []
    found = cell if isinstance(cell, list) else [cell]
    for text in found:
        if not (isinstance(text, str) or _is_missing(text)):
            raise _wrong(text, where, "a text or a list of texts", "--caption-column")
    return [text for text in found if isinstance(text, str)]


def _is_missing(cell: Any) -> bool:
    """Tell whether a cell is empty; NaN is what pandas writes for an empty one."""
    return cell is None or cell == b"" or (isinstance(cell, float) and math.isnan(cell))


def _wrong(cell: Any, where: str, wanted: str, option: str) -> ValueError:
    return ValueError(
        f"{where} holds a {type(cell).__name__}, {cell!r:.60}, and must hold {wanted}; name "
        f"another column: {option} NAME"
    )
