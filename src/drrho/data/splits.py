"""Splits of a data set by the names of its shards: train, val and test are not one data set."""

import os
import re
from collections.abc import Sequence

from drrho.runtime.errors import without_secrets

SPLITS = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "dev": "val",
    "test": "test",
    "testing": "test",
}
# The name of a split between separators, perhaps with a year: train-0001, flickr_val2017.
IN_FILE = re.compile(rf"(?<![a-z])({'|'.join(SPLITS)})(?![a-z])")
OF_FOLDER = re.compile(rf"({'|'.join(SPLITS)})[-_]?[0-9]*")


def require_one_split(source: str, urls: Sequence[str], *, folders: bool) -> None:
    """Raise ValueError if shards of several splits would become one data set.

    A pattern that names the splits itself, as `{train,val}-*.tar`, asks for it and may.

    Args:
        source: what the user named: a folder or a pattern.
        urls: shards that were found there.
        folders: whether the shards are folders of images; then a split is a whole folder's name.
    """
    found: dict[str, list[str]] = {}
    for url in urls:
        if (name := _split_of(url, source, folder=folders)) is not None:
            found.setdefault(SPLITS[name], []).append(url)
    asked = {SPLITS[name] for name in IN_FILE.findall(os.path.basename(source).lower())}
    if len(found) < 2 or set(found) <= asked:
        return
    names = sorted(found, key=list(dict.fromkeys(SPLITS.values())).index)
    raise ValueError(
        f"{without_secrets(source)} holds several splits, {_listed(names)}, which must not become "
        f"one data set; name one of them, as {_pattern(found[names[0]], urls)}, or join their "
        "indices on purpose with `drrho mix`"
    )


def _split_of(url: str, source: str, *, folder: bool) -> str | None:
    """Find the name of the split in the part of a shard's path that the user did not name."""
    base = os.path.abspath(os.path.expanduser(source))
    inside = os.path.relpath(url, base) if os.path.isdir(base) else os.path.basename(url)
    *parents, last = inside.lower().replace(os.sep, "/").split("/")
    for name in [*parents, last] if folder else parents:
        if match := OF_FOLDER.fullmatch(name):
            return match[1]
    match = None if folder else IN_FILE.search(last)
    return None if match is None else match[1]


def _pattern(wanted: Sequence[str], urls: Sequence[str]) -> str:
    """Write a path or pattern that names some of the shards and no other."""
    folder = wanted[0] if len(wanted) == 1 else os.path.commonpath(list(wanted))
    others = [url for url in urls if url not in wanted]
    if "://" not in folder and not any(url.startswith(folder) for url in others):
        return without_secrets(folder)
    name = os.path.basename(wanted[0])
    match = IN_FILE.search(name.lower())
    stem, suffix = name[: 0 if match is None else match.end()], os.path.splitext(name)[1]
    prefix = wanted[0][: len(wanted[0]) - len(name)] + stem
    fits = [url for url in urls if url.startswith(prefix) and url.endswith(suffix)]
    if stem and sorted(fits) == sorted(wanted):
        return f"'{without_secrets(prefix)}*{suffix}'"
    return without_secrets(wanted[0])


def _listed(names: Sequence[str]) -> str:
    return f"{', '.join(names[:-1])} and {names[-1]}"
