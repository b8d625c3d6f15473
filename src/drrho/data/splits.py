"""Splits of a data set: those that its shards are named by, and `drrho split`, which makes one."""

import hashlib
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from tyro.conf import Positional

from drrho.data.manifest import CURATED, Manifest
from drrho.data.reading.cache import OpenShards
from drrho.data.reading.shards import image_bytes
from drrho.runtime.checks import require_at_least
from drrho.runtime.errors import without_secrets
from drrho.runtime.files import expand_paths
from drrho.runtime.locks import exclusive_file
from drrho.runtime.progress import Progress

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
HELD_OUT, TRAINED, SAME_IMAGE = (
    f"{CURATED}{why}" for why in ("held out", "for training", "image of a held-out pair")
)
FEWEST, MOST = 20, 2_000  # held-out pairs, where there is no number
READ_AT_ONCE = 256


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


@dataclass(frozen=True, kw_only=True)
class SplitConfig:
    """Hold out pairs of a data set at random; no image is on both sides.

    Both manifests list all the shards, so that ids and stored reference embeddings stay valid;
    the pairs of the other side are marked as left out.

    Attributes:
        data: manifest that `drrho index` wrote.
        output: manifest of the training pairs to write.
        held_out: manifest of the held-out pairs to write, which have different images.
        pairs: number of held-out pairs; None takes a tenth of the images, at least 20 and at most
            2,000.
        seed: random seed of the draw.
    """

    data: Positional[str]
    output: str
    held_out: str
    pairs: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        expand_paths(self, "data", outputs=("output", "held_out"))
        require_at_least(0, seed=self.seed)
        require_at_least(2, pairs=self.pairs)
        for name in ("output", "held_out"):
            if not getattr(self, name).endswith(".json"):
                raise ValueError(f"{name} must be a .json file, got {getattr(self, name)}")


def split_manifest(config: SplitConfig) -> tuple[Manifest, Manifest]:
    """Write the manifests of the training pairs and of the held-out pairs, and return them.

    Raises:
        FileNotFoundError: the manifest, or a shard of it, does not exist.
        ValueError: too few images would be left on a side, or a shard has changed.
    """
    manifest = Manifest.load(config.data)
    sides = hold_out(manifest, pairs=config.pairs, seed=config.seed)
    for path, side in zip((config.output, config.held_out), sides, strict=True):
        with exclusive_file(Path(path)):
            side.save(path)
    return sides


def hold_out(manifest: Manifest, *, pairs: int | None, seed: int) -> tuple[Manifest, Manifest]:
    """Draw held-out images, each with the first of its pairs; errors as `split_manifest`.

    Further pairs of a held-out image are on neither side.
    """
    groups = list(_same_images(manifest).values())
    size = max(FEWEST, min(MOST, len(groups) // 10)) if pairs is None else pairs
    if size > len(groups) // 2:
        raise ValueError(
            f"{size:,} held-out pairs are more than half of the {len(groups):,} different images; "
            "give more data, or validation pairs of their own"
        )
    generator = torch.Generator().manual_seed(seed)
    drawn = set(torch.randperm(len(groups), generator=generator)[:size].tolist())
    train: dict[int, str] = {}
    held_out: dict[int, str] = {}
    for number, (first, *others) in enumerate(groups):
        if number in drawn:
            train |= {first: HELD_OUT} | dict.fromkeys(others, SAME_IMAGE)
            held_out |= dict.fromkeys(others, SAME_IMAGE)
        else:
            held_out |= dict.fromkeys((first, *others), TRAINED)
    return manifest.without(train), manifest.without(held_out)


def _same_images(manifest: Manifest) -> dict[bytes, list[int]]:
    """Group the ids of the usable pairs by the bytes of their images, in the order of the ids."""
    shards, groups = OpenShards(manifest), {}
    ids = manifest.usable_ids()
    with Progress("compare images", total=len(ids), unit="pairs") as progress:
        for some in ids.split(READ_AT_ONCE):
            for sample_id, sample in zip(some.tolist(), shards.read(some.tolist()), strict=True):
                content = image_bytes(sample) or b""
                groups.setdefault(hashlib.sha256(content).digest()[:16], []).append(sample_id)
            progress.advance(len(some))
    return groups


def run_split(config: SplitConfig) -> str:
    """Hold out pairs of an indexed data set for validation, at random."""
    train, held_out = (len(side.usable_ids()) for side in split_manifest(config))
    left = len(Manifest.load(config.data).usable_ids()) - train - held_out
    note = f"; {left:,} more pairs of held-out images are on neither side" if left else ""
    return f"{config.output}: {train:,} pairs; {config.held_out}: {held_out:,} pairs{note}"
