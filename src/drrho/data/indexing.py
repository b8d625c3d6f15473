"""Reading shards into a manifest: which tar files there are, what each holds, and its hashes."""

import glob
import os
from collections.abc import Iterable
from pathlib import Path

from webdataset.shardlists import expand_urls

from drrho.data.manifest import FieldHash, Manifest, Shard
from drrho.data.shards import CAPTION_EXTENSION, RawSample, find_fault, image_bytes, read_shard
from drrho.progress import Progress


def open_manifest(source: str | Path) -> Manifest:
    """The manifest in a `.json` file, or of the shards that `source` names, indexed now."""
    if str(source).endswith(".json"):
        return Manifest.load(Path(source).expanduser())
    return index_shards(source)


def index_shards(source: str | Path) -> Manifest:
    """Reads every shard that `source` names (see `resolve_shards`) once, from end to end.

    Raises:
        FileNotFoundError: no shard is there.
        ValueError: a shard is damaged or named twice, or there is no sample in any.
    """
    urls = resolve_shards(source)
    shards = []
    with Progress("index", total=len(urls), unit="shards") as progress:
        for url in urls:
            shards.append(summarise_shard(url, read_shard(url)))
            progress.advance(1, unusable=sum(len(shard.unusable) for shard in shards))
    manifest = Manifest(shards=tuple(shards))
    if manifest.num_samples == 0:
        raise ValueError(f"{source} holds no sample: its {len(urls)} shards are empty tar files")
    return manifest


def resolve_shards(source: str | Path) -> list[str]:
    """The absolute paths of the shards that `source` names.

    Args:
        source: a folder (its *.tar files, sorted), a tar file, a glob pattern (sorted), or a
            brace pattern such as `train-{0000..0009}.tar` (in the order written).

    Raises:
        FileNotFoundError: nothing is there, or a path of the brace pattern is missing.
    """
    source = os.path.expanduser(source)
    if os.path.isdir(source):
        paths = sorted(glob.glob(os.path.join(glob.escape(source), "*.tar")))
    elif os.path.exists(source):
        paths = [source]
    else:
        paths = [path for pattern in expand_urls(source) for path in _matches(pattern)]
    if not paths:
        raise FileNotFoundError(
            f"no shards found at {source}; expected a folder of .tar files, a .tar file, a glob "
            "or brace pattern, or a manifest .json, on a local path"
        )
    return [os.path.abspath(path) for path in paths]


def summarise_shard(url: str, samples: Iterable[RawSample]) -> Shard:
    """Counts and hashes the samples of a shard, in one pass."""
    keys, content = FieldHash(), FieldHash()
    num_samples, unusable = 0, {}
    for sample in samples:
        keys.add(sample.key.encode(errors="surrogateescape"))
        content.add(image_bytes(sample))
        content.add(sample.fields.get(CAPTION_EXTENSION))
        if reason := find_fault(sample):
            unusable[sample.row] = reason
        num_samples += 1
    return Shard(
        url=url,
        num_samples=num_samples,
        keys_sha256=keys.hexdigest(),
        content_sha256=content.hexdigest(),
        unusable=unusable,
    )


def _matches(pattern: str) -> list[str]:
    if os.path.exists(pattern):
        return [pattern]
    if not glob.has_magic(pattern):
        raise FileNotFoundError(f"shard {pattern} does not exist; shards are read from local paths")
    return sorted(glob.glob(pattern))
