"""`drrho ls`: what a folder holds, in one table."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from tyro.conf import Positional

from drrho.runtime.files import expand_paths
from drrho.studies.listing.found import MRR, Found, Score
from drrho.studies.listing.walk import find_all

UNITS = ("B", "kB", "MB", "GB", "TB")


@dataclass(frozen=True, kw_only=True)
class ListConfig:
    """List what a folder holds: runs, stored references, manifests, comparisons and other results.

    Attributes:
        folder: folder to look through, with all folders in it.
        all: list the parts of studies too: the runs and stores of a comparison.
        json: print a JSON list of everything, parts included, for programs.
    """

    folder: Positional[str] = field(default="runs", kw_only=False)
    all: bool = False
    json: bool = False

    def __post_init__(self) -> None:
        expand_paths(self, "folder", outputs=())


def list_folder(config: ListConfig) -> list[Found]:
    """Find what a folder holds, parts of studies included only where they are asked for.

    Raises:
        FileNotFoundError: there is no such folder.
    """
    folder = Path(config.folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is no folder; name one that drrho has written to")
    found = list(find_all(folder))
    return found if config.all or config.json else _folded(found)


def run_ls(config: ListConfig) -> str:
    """List runs, stores, manifests and results of a folder, with state and score."""
    found = list_folder(config)
    if config.json:
        return json.dumps([asdict(one) for one in found], indent=1)
    if not found:
        return f"{config.folder} holds nothing that drrho has written"
    rows = [
        [
            config.folder if one.path == "." else one.path,
            one.kind,
            one.what,
            "damaged" if one.is_damaged else one.state,
            _score(one.score),
            size_in_words(one.size),
            one.modified[:16].replace("T", " "),
        ]
        for one in found
    ]
    header = ["where", "kind", "what", "state", "score", "size", "changed"]
    reasons = [
        f"{one.path}: {one.state.removeprefix('damaged: ')}" for one in found if one.is_damaged
    ]
    return "\n".join([*_aligned([header, *rows]), *(["", "Damaged:"] if reasons else []), *reasons])


def _folded(found: Sequence[Found]) -> list[Found]:
    """The list without the parts of studies; damaged parts stay."""
    return [one for one in found if one.part_of is None or one.is_damaged]


def _score(score: Score | None) -> str:
    if score is None:
        return ""
    chance = "" if score.chance is None else f" (chance {score.chance:.3f})"
    return (
        f"{score.metric.upper() if score.metric == MRR else score.metric} {score.value:.3f}{chance}"
    )


def size_in_words(size: float) -> str:
    """Format a number of bytes with three digits: 12.3 MB."""
    for unit in UNITS:
        if size < 999.5 or unit == UNITS[-1]:
            break
        size /= 1000
    return f"{size:.0f} {unit}" if unit == UNITS[0] or size >= 99.95 else f"{size:.1f} {unit}"


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Columns in line, without the empty ones."""
    columns = [column for column in zip(*rows, strict=True) if any(column[1:])]
    widths = [max(map(len, column)) for column in columns]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in zip(*columns, strict=True)
    ]
