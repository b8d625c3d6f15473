"""Reading shards into a manifest: which tar files there are, what each holds, and its hashes."""

import os
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from multiprocessing import get_context, parent_process
from pathlib import Path
from threading import Thread

import torch

from drrho.data.manifest import (
    CAPTION_FAULTS,
    CURATED,
    REPEATED_KEY,
    UPRIGHT,
    FieldHash,
    Manifest,
    Shard,
)
from drrho.data.reading.images import is_turned
from drrho.data.reading.layout import Layout
from drrho.data.reading.shards import (
    CAPTION_EXTENSION,
    CAPTIONS_EXTENSION,
    RawSample,
    find_fault,
    image_bytes,
    read_shard,
    renamed,
)
from drrho.data.reading.sources import (
    DATASET_FILE,
    JSON_SUFFIX,
    OTHER_SUFFIXES,
    SPLITS_FILE,
    TABLE_SUFFIXES,
    image_folders,
    metadata_tables,
    open_rows,
    recognised,
)
from drrho.data.reading.storage import FileState, file_state, find_files, list_folder, nothing_at
from drrho.data.rows import Members, Spans
from drrho.data.splits import require_one_split
from drrho.runtime.distributed import Processes
from drrho.runtime.errors import without_secrets
from drrho.runtime.progress import Progress


@dataclass(frozen=True, kw_only=True)
class Columns:
    """Names of the columns of a table or dataset, and of what a tar file calls otherwise.

    Attributes:
        image: column of the image; None is `image`, or the one that is known to hold images
            (`drrho.data.reading.columns`).
        caption: column of the caption, or of a list of several; None is `caption`, or the one that
            is known to hold captions, and `NO_COLUMN` where there are none.
        images: folder that paths of images are relative to; None is the table's own, or the one
            folder near it that has them.
        image_extension: of tar files, what images are called behind their key; None is jpg, jpeg,
            png or webp.
        anchor: column of the anchors of pairs of texts, whose positives are in the column of the
            caption; None is no pairs of texts, but where two columns are known to be that.
        caption_field: of tar files and of images in folders, the field of a sample's json file that
            has its caption or a list of several; None takes txt files, and in folders without
            these the field that is known to hold captions.
    """

    image: str | None = None
    caption: str | None = None
    images: str | None = None
    image_extension: str | None = None
    caption_field: str | None = None
    anchor: str | None = None


def open_manifest(source: str | Path) -> Manifest:
    """Load the manifest in a `.json` file, or index the shards that `source` names."""
    if str(source).endswith(".json"):
        return Manifest.load(Path(source).expanduser())
    return index_shards(source)


def index_shards(
    source: str | Path,
    *,
    known: Manifest | None = None,
    workers: int = 0,
    columns: Columns | None = None,
    skip_bad: bool = False,
    keep: Callable[[Manifest], None] | None = None,
) -> Manifest:
    """Read every shard that `source` names (see `resolve_shards`) once, from end to end.

    Args:
        known: an index made before; a shard in it is not read again if its file still has the
            same size and time of change.
        workers: processes that read; 0 reads in this one.
        skip_bad: leaves out shards that cannot be read, with a warning that lists them.
        keep: called with what was read if the work ends with an error or an interruption.

    Raises:
        FileNotFoundError: no shard is there.
        ValueError: a shard is damaged or named twice, or there is no sample in any. All damaged
            shards are listed, after the others were read.
    """
    urls = resolve_shards(source)
    columns = Columns() if columns is None else columns
    layouts = {url: _layout(url, columns) for url in urls}
    _require_effect(columns, list(layouts.values()))
    states: dict[str, FileState | None] = {}
    faults: dict[str, Exception] = {}
    for url in urls:
        try:
            states[url] = None if os.path.isdir(url) else file_state(url)
        except (ValueError, OSError) as error:
            faults[url] = error
    found = {
        url: shard
        for url, shard in _unchanged(known, states).items()
        if shard.layout == _plain(layouts[url])
    }
    missing = [url for url in urls if url not in found and url not in faults]
    complete = False
    try:
        with Progress(
            "index", total=len(urls), unit="shards", initial=len(urls) - len(missing)
        ) as progress:
            shown = Counter(why for shard in found.values() for why in _faults(shard))
            wanted = [(url, layouts[url], states[url], columns) for url in missing]
            for url, one in zip(missing, _indexed(wanted, workers=workers), strict=True):
                if isinstance(one, Shard):
                    found[url] = one
                    shown.update(_faults(one))
                else:
                    faults[url] = one
                progress.advance(1, **({"unusable": 0} | shown))
        if faults and (not skip_bad or not found):
            raise _combined(faults, num_shards=len(urls), kept=keep is not None)
        complete = True
    finally:
        if not complete and keep is not None and found:
            keep(Manifest(shards=tuple(found.values())))
    if faults:
        warnings.warn(f"left out: {'; '.join(map(str, faults.values()))}", stacklevel=2)
    manifest = Manifest(shards=tuple(found[url] for url in urls if url in found))
    if manifest.num_samples == 0:
        raise ValueError(
            f"{without_secrets(str(source))} holds no sample: its {len(urls)} shards are empty"
        )
    return manifest


def resolve_shards(source: str | Path) -> list[str]:
    """List the absolute paths or URLs of the shards that `source` names.

    Args:
        source: a folder (its *.tar files, sorted), a tar file, a glob pattern (sorted), or a
            brace pattern such as `train-{0000..0009}.tar` (in the order written); on a local path
            or behind a URL that fsspec reads. Without tar files: csv, tsv and parquet files in the
            same ways, a folder of images (each folder in it that has some is a shard), or a folder
            that Hugging Face's `save_to_disk` wrote.

    Raises:
        FileNotFoundError: nothing is there, or a path of the brace pattern is missing.
        ValueError: the URL's file system is unknown, its package is not installed, or shards of
            several splits are there.
    """
    source = str(source)
    tars = list_folder(source, ".tar")
    urls = find_files(source) if tars is None else tars
    if not urls and not (urls := _without_tars(os.path.expanduser(source))):
        raise nothing_at(source)
    require_one_split(source, urls, folders=all(map(os.path.isdir, urls)))
    return urls


def summarise_shard(
    url: str,
    samples: Iterable[RawSample],
    *,
    layout: Layout | None = None,
    state: FileState | None = None,
) -> Shard:
    """Count and hash the samples of a shard, in one pass.

    Of the samples of a tar file that share a key only the first is usable: either the same sample
    is there twice, or the files of one are apart and each part is taken for a sample.

    Args:
        layout: how rows became samples; None for a tar file.
        state: size and time of change; None if it is no single file.
    """
    keys, content = FieldHash(), FieldHash()
    unusable: dict[int, str] = {}
    spans: list[tuple[int, int, int]] = []
    files: list[dict[str, int] | None] = []
    seen: set[str] = set()
    decoding = 1
    for sample in samples:
        keys.add(sample.key.encode(errors="surrogateescape"))
        image = image_bytes(sample)
        content.add(image)
        if image is not None and decoding == 1 and is_turned(image):
            decoding = UPRIGHT
        content.add(sample.fields.get(CAPTION_EXTENSION))
        if CAPTIONS_EXTENSION in sample.fields:
            content.add(sample.fields[CAPTIONS_EXTENSION])
        if _is_tar(layout) and sample.key in seen:
            unusable[sample.row] = REPEATED_KEY
        elif reason := find_fault(sample):
            unusable[sample.row] = reason
        seen.add(sample.key)
        start, end = sample.span
        spans.append((start, end - start, sample.checksum))
        files.append(sample.sizes)
    starts, sizes, checksums = zip(*spans, strict=True) if spans else ((), (), ())
    if decoding == UPRIGHT:  # other pixels than version 1 made of the same bytes
        content.add(b"upright")
    return Shard(
        url=url,
        num_samples=len(spans),
        keys_sha256=keys.hexdigest(),
        content_sha256=content.hexdigest(),
        unusable=unusable,
        layout=_plain(layout),
        decoding=decoding,
        size=None if state is None else state.size,
        modified=None if state is None else state.modified,
        spans=Spans(
            torch.tensor(starts, dtype=torch.int64),
            torch.tensor(sizes, dtype=torch.int32),
            torch.tensor(checksums, dtype=torch.int32),
        ),
        members=Members.collect(files) if _is_tar(layout) else None,
    )


def _without_tars(folder: str) -> list[str]:
    """List the shards of a folder without tar files."""
    if not os.path.isdir(folder):
        return []
    if os.path.isfile(os.path.join(folder, DATASET_FILE)):
        return [os.path.abspath(folder)]
    if os.path.isfile(os.path.join(folder, SPLITS_FILE)):
        return _only_split(os.path.abspath(folder))
    tables = [url for suffix in TABLE_SUFFIXES for url in list_folder(folder, suffix) or ()]
    # Beside its folders of files img2dataset writes a table of each.
    if all(os.path.isdir(os.path.splitext(url)[0]) for url in tables):
        tables = metadata_tables(folder)
    return tables or image_folders(folder)


def _only_split(folder: str) -> list[str]:
    """Find the one split that `save_to_disk` wrote into a folder; ValueError if there are more."""
    names = sorted(os.listdir(folder))
    splits = [name for name in names if os.path.isfile(os.path.join(folder, name, DATASET_FILE))]
    if len(splits) > 1:
        raise ValueError(
            f"{folder} holds several splits, {', '.join(splits)}; give the folder of one, as "
            f"{os.path.join(folder, splits[-1])}"
        )
    return [os.path.join(folder, name) for name in splits]


def _layout(url: str, columns: Columns) -> Layout | None:
    """Choose the layout of a source, without its columns; None for tar files."""
    if os.path.isfile(os.path.join(url, DATASET_FILE)):
        return Layout(kind="dataset")
    if os.path.isdir(url):
        return Layout(kind="folder")
    if url.lower().endswith((*TABLE_SUFFIXES, JSON_SUFFIX)):
        root = None if columns.images is None else os.path.abspath(columns.images)
        return Layout(kind="table", root=root)
    if url.lower().endswith(OTHER_SUFFIXES):
        raise ValueError(
            f"{url} is neither a tar file nor a table ({', '.join(TABLE_SUFFIXES)}); shards are "
            "uncompressed tar files"
        )
    if (columns.image_extension, columns.caption_field) == (None, None):
        return None
    extension = columns.image_extension
    return Layout(
        kind="tar",
        image=None if extension is None else extension.lower().removeprefix("."),
        caption=columns.caption_field,
    )


def _require_effect(columns: Columns, layouts: list[Layout | None]) -> None:
    """Raise ValueError if a name is given for what none of the sources has."""
    kinds = {"tar" if layout is None else layout.kind for layout in layouts}
    for name, of, remedy in (
        ("image_extension", {"tar"}, "tar file"),
        ("caption_field", {"tar", "folder"}, "tar file or folder of images"),
        ("image", {"table", "dataset"}, "table or dataset"),
        ("caption", {"table", "dataset"}, "table or dataset"),
        ("images", {"table"}, "table"),
    ):
        if getattr(columns, name) is not None and not kinds & of:
            option = f"{name}_column" if name in ("image", "caption") else name
            raise ValueError(
                f"{option} = {getattr(columns, name)!r} has no effect where there is no {remedy}"
            )


def _is_tar(layout: Layout | None) -> bool:
    return layout is None or layout.kind == "tar"


def _plain(layout: Layout | None) -> dict[str, str | None] | None:
    return None if layout is None else asdict(layout)


def _unchanged(known: Manifest | None, states: dict[str, FileState | None]) -> dict[str, Shard]:
    """Return the shards of an earlier index whose files have not changed, by URL.

    Without the choices of `drrho curate` and the weights of `drrho mix`: an index follows from the
    files alone.
    """
    if known is None:
        return {}
    return {
        shard.url: replace(shard, unusable=_not_curated(shard.unusable), weight=1.0)
        for shard in known.shards
        # The images that a table names may have changed without it.
        if shard.layout is None or shard.layout.get("kind") == "tar"
        if shard.modified is not None and shard.size is not None
        if states.get(shard.url) == FileState(shard.size, shard.modified)
        if shard.members is not None  # else an index of an earlier version, to be completed
    }


def _faults(shard: Shard) -> Iterator[str]:
    """Tell samples without a caption, whose labels may be wanted, from unusable ones."""
    for why in shard.unusable.values():
        yield "without caption" if why in CAPTION_FAULTS else "unusable"


def _not_curated(unusable: dict[int, str]) -> dict[int, str]:
    return {row: why for row, why in unusable.items() if not why.startswith(CURATED)}


def _indexed(
    wanted: list[tuple[str, Layout | None, FileState | None, Columns]], *, workers: int
) -> Iterator[Shard | Exception]:
    """Yield the index entry of each shard, in order, or the error of one that cannot be read."""
    if workers == 0 or len(wanted) < 2:
        yield from (_index_one(*one) for one in wanted)
        return
    # Not forked: a remote file system has threads, which do not survive that.
    with ProcessPoolExecutor(
        min(workers, len(wanted)), mp_context=get_context("spawn"), initializer=_end_with_parent
    ) as pool:
        yield from pool.map(_index_one, *zip(*wanted, strict=True))


def _end_with_parent() -> None:
    """End this worker when the main process is gone, which its queue of work does not tell it."""
    parent = parent_process()
    assert parent is not None

    def wait() -> None:
        parent.join()
        os._exit(1)

    Thread(target=wait, daemon=True).start()


def _index_one(
    url: str, layout: Layout | None, state: FileState | None, columns: Columns
) -> Shard | Exception:
    try:
        if layout is None:
            return summarise_shard(url, read_shard(url), state=state)
        if layout.kind == "tar":
            samples = (renamed(sample, layout) for sample in read_shard(url))
            return summarise_shard(url, samples, layout=layout, state=state)
        caption = columns.caption_field if layout.kind == "folder" else columns.caption
        layout = recognised(
            url, layout, image=columns.image, caption=caption, anchor=columns.anchor
        )
        rows = open_rows(url, layout)
        samples = (rows[row] for row in range(rows.num_rows))
        return summarise_shard(url, samples, layout=layout, state=state)
    except (ValueError, OSError) as error:
        return _plain_error(error)


def _plain_error(error: Exception) -> Exception:
    """Return an error of a kind that every process can receive."""
    kinds = (FileNotFoundError, ConnectionError, OSError, ValueError)
    return next(kind for kind in kinds if isinstance(error, kind))(str(error))


def _combined(faults: dict[str, Exception], *, num_shards: int, kept: bool) -> Exception:
    """Combine the errors of all shards that cannot be read into one."""
    errors = [_plain_error(error) for error in faults.values()]
    if num_shards == 1:
        return errors[0]
    kind = type(errors[0]) if len(set(map(type, errors))) == 1 else ValueError
    remedy = "; what was read of the others is kept for the next `drrho index`" if kept else ""
    return kind(
        f"{len(errors):,} of {num_shards:,} shards cannot be read: {'; '.join(map(str, errors))}"
        f"{remedy}; mend them, or leave them out with `drrho index --skip-bad-shards`"
    )


def open_manifest_together(source: str, processes: Processes) -> Manifest:
    """Open a manifest on every process; shards are indexed by the first process alone."""
    if source.endswith(".json"):
        return open_manifest(source)
    return processes.on_first(lambda: open_manifest(source))
