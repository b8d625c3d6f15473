"""Reading shards into a manifest: which tar files there are, what each holds, and its hashes."""

from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import torch

from drrho.data.manifest import FieldHash, Manifest, Shard, Spans
from drrho.data.shards import CAPTION_EXTENSION, RawSample, find_fault, image_bytes, read_shard
from drrho.data.storage import FileState, file_state, find_files, list_folder
from drrho.progress import Progress


def open_manifest(source: str | Path) -> Manifest:
    """The manifest in a `.json` file, or of the shards that `source` names, indexed now."""
    if str(source).endswith(".json"):
        return Manifest.load(Path(source).expanduser())
    return index_shards(source)


def index_shards(
    source: str | Path, *, known: Manifest | None = None, workers: int = 0
) -> Manifest:
    """Reads every shard that `source` names (see `resolve_shards`) once, from end to end.

    Args:
        source: the shards.
        known: an index made before; of its shards those are not read again whose file has the
            size and the time of change that it had.
        workers: processes that read; 0 reads in this one.

    Raises:
        FileNotFoundError: no shard is there.
        ValueError: a shard is damaged or named twice, or there is no sample in any.
    """
    urls = resolve_shards(source)
    states = {url: file_state(url) for url in urls}
    found = _unchanged(known, states)
    missing = [url for url in urls if url not in found]
    with Progress(
        "index", total=len(urls), unit="shards", initial=len(urls) - len(missing)
    ) as progress:
        for shard in _indexed(missing, states, workers=workers):
            found[shard.url] = shard
            progress.advance(1, unusable=sum(len(s.unusable) for s in found.values()))
    manifest = Manifest(shards=tuple(found[url] for url in urls))
    if manifest.num_samples == 0:
        raise ValueError(f"{source} holds no sample: its {len(urls)} shards are empty tar files")
    return manifest


def resolve_shards(source: str | Path) -> list[str]:
    """The absolute paths, or the URLs, of the shards that `source` names.

    Args:
        source: a folder (its *.tar files, sorted), a tar file, a glob pattern (sorted), or a
            brace pattern such as `train-{0000..0009}.tar` (in the order written); on a local path
            or behind a URL that fsspec reads.

    Raises:
        FileNotFoundError: nothing is there, or a path of the brace pattern is missing.
        ValueError: the URL's file system is unknown, or its package is not installed.
    """
    source = str(source)
    urls = list_folder(source, ".tar")
    if urls is None:
        urls = find_files(source)
    if not urls:
        raise FileNotFoundError(
            f"no shards found at {source}; expected a folder of .tar files, a .tar file, a glob "
            "or brace pattern, or a manifest .json"
        )
    return urls


def summarise_shard(
    url: str, samples: Iterable[RawSample], *, state: FileState | None = None
) -> Shard:
    """Counts and hashes the samples of a shard, in one pass.

    Args:
        url: of the shard.
        samples: all of them, in order.
        state: of the file; None if they lie in none.
    """
    keys, content = FieldHash(), FieldHash()
    unusable: dict[int, str] = {}
    spans: list[tuple[int, int, int]] = []
    for sample in samples:
        keys.add(sample.key.encode(errors="surrogateescape"))
        content.add(image_bytes(sample))
        content.add(sample.fields.get(CAPTION_EXTENSION))
        if reason := find_fault(sample):
            unusable[sample.row] = reason
        start, end = sample.span
        spans.append((start, end - start, sample.checksum))
    starts, sizes, checksums = zip(*spans, strict=True) if spans else ((), (), ())
    return Shard(
        url=url,
        num_samples=len(spans),
        keys_sha256=keys.hexdigest(),
        content_sha256=content.hexdigest(),
        unusable=unusable,
        size=None if state is None else state.size,
        modified=None if state is None else state.modified,
        spans=Spans(
            torch.tensor(starts, dtype=torch.int64),
            torch.tensor(sizes, dtype=torch.int32),
            torch.tensor(checksums, dtype=torch.int32),
        ),
    )


def _unchanged(known: Manifest | None, states: dict[str, FileState]) -> dict[str, Shard]:
    """The shards of an earlier index whose files are as they were, by URL."""
    if known is None:
        return {}
    return {
        shard.url: shard
        for shard in known.shards
        if shard.modified is not None
        and states.get(shard.url) == FileState(shard.size or 0, shard.modified)
    }


def _indexed(urls: list[str], states: dict[str, FileState], *, workers: int) -> Iterator[Shard]:
    """A summary of each shard, in the order in which they get done."""
    if workers == 0 or len(urls) < 2:
        yield from (_index_one(url, states[url]) for url in urls)
        return
    # Not forked: a remote file system has threads, which do not survive that.
    with ProcessPoolExecutor(min(workers, len(urls)), mp_context=get_context("spawn")) as pool:
        yield from pool.map(_index_one, urls, [states[url] for url in urls])


def _index_one(url: str, state: FileState) -> Shard:
    return summarise_shard(url, read_shard(url), state=state)
