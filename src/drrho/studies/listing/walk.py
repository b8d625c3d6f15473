"""The walk through a folder: what is found in it, in the order of the paths."""

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path

from drrho.studies.listing.found import Found
from drrho.studies.listing.kinds import MODEL_FILES, SINGLE, STUDIES, WHOLE, Reader, read_single

# Of more files than these a folder holds data, such as an image with its JSON each: then only
# names that drrho gives are looked at.
MOST_HEADS = 100
HEADED = (".json", ".html")
Entries = Mapping[str, os.DirEntry[str]]


def find_all(root: Path) -> Iterator[Found]:
    """Find everything below a folder; folders of links and hidden folders are not entered.

    What cannot be read is found too, with a state that says why.
    """
    pending: list[tuple[Path, str | None]] = [(root, None)]
    while pending:
        folder, part_of = pending.pop()
        try:
            with os.scandir(folder) as scanned:
                entries = {entry.name: entry for entry in scanned}
        except OSError as error:
            reason = f"damaged: {error.strerror or error}"
            yield Found(path=_seen(folder, root), kind="folder", state=reason, part_of=part_of)
            continue
        here = list(_in_folder(folder, root, entries, part_of))
        yield from here
        if _is_whole(entries):
            continue
        study = next((one.path for one in here if (folder / "x").parent == root / one.path), None)
        inside = [
            (folder / name, study or part_of)
            for name, entry in sorted(entries.items(), reverse=True)
            if not name.startswith(".") and entry.is_dir(follow_symlinks=False)
        ]
        pending += inside


def _is_whole(entries: Entries) -> bool:
    """Whether a folder is one thing, whose parts are not listed."""
    return any(name in entries for name in WHOLE) or _model_file(entries) is not None


def _model_file(entries: Entries) -> str | None:
    weights = any(name.endswith((".safetensors", ".pt", ".bin")) for name in entries)
    return next((name for name in MODEL_FILES if name in entries), None) if weights else None


def _in_folder(folder: Path, root: Path, entries: Entries, part_of: str | None) -> Iterator[Found]:
    for name, reader in WHOLE.items():
        if name in entries:
            yield _read(reader, folder / name, root, whole=folder, part_of=part_of)
            return
    if _model_file(entries) is not None:
        found = Found(path=_seen(folder, root), kind="model", state="finished", part_of=part_of)
        yield _with_size(found, _files_below(folder))
        return
    for name, reader in STUDIES.items():
        if name in entries:
            found = _read(reader, folder / name, root, whole=folder, part_of=part_of)
            if found.kind:
                part_of = found.path
                yield found
                break
    names = [
        name
        for name, entry in sorted(entries.items())
        if name.endswith(HEADED) and name not in STUDIES and not name.startswith(".")
        if not entry.is_dir()
    ]
    known = [name for name in names if name in SINGLE or name == "manifest.json"]
    for name in names if len(names) <= MOST_HEADS else known:
        found = _read(SINGLE.get(name, read_single), folder / name, root, part_of=part_of)
        if found.kind:
            yield found


def _read(
    reader: Reader, path: Path, root: Path, *, part_of: str | None, whole: Path | None = None
) -> Found:
    """Read one thing with its size and date; its kind is empty where drrho has not written it."""
    seen = _seen(path if whole is None else whole, root)
    try:
        found = reader(path)
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        if whole is None and path.name not in SINGLE:
            head = isinstance(error, ValueError) and "manifest" in str(error)
            found = None if not head else Found(path="", kind="manifest", state="")
        else:
            found = Found(path="", kind=_kind_of(path.name), state="")
        if found is not None:
            from drrho.runtime.errors import without_secrets  # noqa: PLC0415  # imports torch

            found = replace(found, state=f"damaged: {without_secrets(str(error))}")
    if found is None:
        found = Found(path="", kind="", state="")
    files = [path] if whole is None else _files_below(whole)
    return _with_size(replace(found, path=seen, part_of=part_of), files)


def _kind_of(name: str) -> str:
    kinds = {"recipe.json": "run", "reference.json": "reference", "results.json": "comparison"}
    return kinds.get(name, name.removesuffix(".json"))


def _with_size(found: Found, files: Sequence[Path]) -> Found:
    size, newest = 0, 0.0
    for file in files:
        try:
            status = file.stat()
        except OSError:
            continue
        size, newest = size + status.st_size, max(newest, status.st_mtime)
    when = datetime.fromtimestamp(newest).astimezone().isoformat(timespec="seconds")
    return replace(found, size=size, modified=when if newest else "")


def _files_below(folder: Path) -> list[Path]:
    return [Path(top) / name for top, _, names in os.walk(folder) for name in names]


def _seen(path: Path, root: Path) -> str:
    return path.relative_to(root).as_posix()
