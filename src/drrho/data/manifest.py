"""The index of a data set: its shards, how many samples each holds, and hashes of them.

The sample with row r of shard s has the id `offsets[s] + r`. Rows count every sample, usable or
not, so an id never depends on a filter, a shuffle or on what could be decoded.
"""

import hashlib
import json
import os
import re
from bisect import bisect_right
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Int64
from safetensors import SafetensorError
from torch import Tensor

from drrho.data.rows import Members, Spans, load_rows, save_rows
from drrho.runtime.errors import without_secrets
from drrho.runtime.files import (
    parse_json,
    read_regular,
    require_checksum,
    require_on_this_machine,
    write_atomically,
    write_checked_json,
)
from drrho.runtime.locks import exclusive_file
from drrho.runtime.records import from_json

FORMAT = "drrho manifest"
VERSION = 2
SMALL = 2**14  # bytes that are copied rather than hashed by a call of their own
HEAD_BYTES = 4096  # of a manifest: the name of its rows comes before the shards
MAX_JSON = 2**30  # bytes of the file: unusable rows take about 25 each
UPRIGHT = 2  # the decoding that turns images as their EXIF orientation says
ITEMS = "items://"  # beginning of the url of a shard whose samples have no file of their own

NO_CAPTION, EMPTY_CAPTION, UNDECODABLE_CAPTION = "no caption", "empty caption", "corrupt caption"
# With one of these reasons a sample still has an image, which is enough where a label is scored.
CAPTION_FAULTS = frozenset({NO_CAPTION, EMPTY_CAPTION, UNDECODABLE_CAPTION})
# An earlier sample of the shard has the same name.
REPEATED_KEY = "repeated key"
# How a reason begins that is a choice (`drrho curate`), and does not follow from the contents.
CURATED = "curated: "


class FieldHash:
    """SHA-256 of fields in order, each preceded by its length: no two lists of them hash alike."""

    def __init__(self) -> None:
        self._digest = hashlib.sha256()

    def add(self, content: bytes | None) -> None:
        """Hash the next field; None for one that is absent."""
        if content is not None and len(content) < SMALL:
            self._digest.update(b"%d," % len(content) + content)  # faster than two updates
            return
        self._digest.update(b"absent," if content is None else b"%d," % len(content))
        self._digest.update(content or b"")

    def hexdigest(self) -> str:
        return self._digest.hexdigest()


@dataclass(frozen=True, kw_only=True)
class Shard:
    """Index entry of one tar file, or of a run of items (`drrho.data.items`).

    Attributes:
        url: path or fsspec URL of the tar file, or `items://` and a name.
        num_samples: rows, usable or not.
        keys_sha256: hash of the samples' keys in order: which row is which sample.
        content_sha256: hash of the images' and captions' bytes, or of the items', in order.
            Keys are often mere counters, equal in unrelated data sets; this tells those apart.
        unusable: the rows that are no image-caption pair, with the reason. Images are not
            decoded for it; a corrupt one shows when it is read.
        layout: how rows become samples (`drrho.data.reading.sources.Layout`); None for tar files.
        decoding: version of the decoding of its images: 1 takes them as they are stored, 2 turns
            them as their EXIF orientation says. Shards without such images have 1.
        weight: how often an epoch visits its samples, on average.
        size: bytes of the file when it was indexed; None if it is no single file.
        modified: time of the file's last change then, as its file system writes it.
        spans: where its samples are in the file; None if in no file.
        members: the files of each sample; None in an index of an earlier version, and where
            samples are no files of a tar file.
        left_out: further rows that the filter of a run leaves out; not written into the index.
    """

    url: str
    num_samples: int
    keys_sha256: str
    content_sha256: str
    unusable: dict[int, str]
    layout: dict[str, Any] | None = None
    decoding: int = 1
    weight: float = 1.0
    size: int | None = None
    modified: str | None = None
    spans: Spans | None = field(default=None, compare=False, repr=False)
    members: Members | None = field(default=None, compare=False, repr=False)
    left_out: Bool[Tensor, " rows"] | None = field(default=None, compare=False, repr=False)

    def __post_init__(self):
        if self.num_samples < 0:
            raise ValueError(f"the samples of shard {self.url} cannot be {self.num_samples}")
        if outside := [row for row in self.unusable if not 0 <= row < self.num_samples]:
            raise ValueError(
                f"shard {without_secrets(self.url)} has {self.num_samples} samples, but unusable "
                f"rows {outside}"
            )
        if self.decoding not in (1, UPRIGHT):
            raise ValueError(
                f"the images of shard {without_secrets(self.url)} are to be decoded by version "
                f"{self.decoding}, which this program does not know; install a newer one"
            )
        if not 0 < self.weight < float("inf"):
            url = without_secrets(self.url)
            raise ValueError(f"the weight of shard {url} must be positive, got {self.weight}")

    @property
    def contents(self) -> tuple[int, str, str]:
        """Identity of the contents: equal exactly for the same samples in the same order."""
        return self.num_samples, self.keys_sha256, self.content_sha256

    @cached_property
    def num_usable(self) -> int:
        """Number of image-caption pairs that no filter leaves out."""
        if self.left_out is None:
            return self.num_samples - len(self.unusable)
        kept = ~self.left_out
        return int(kept.sum()) - sum(bool(kept[row]) for row in self.unusable)


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """The shards of a data set, in the order that gives its samples their ids.

    Raises:
        ValueError: a shard occurs twice.
    """

    shards: tuple[Shard, ...]

    def __post_init__(self):
        counts = Counter(shard.url for shard in self.shards)
        if repeated := [url for url, count in counts.items() if count > 1]:
            raise ValueError(
                f"shard {without_secrets(repeated[0])} occurs more than once; name each shard once"
            )

    @cached_property
    def offsets(self) -> list[int]:
        """The id of each shard's first sample, and at the end the number of samples."""
        return list(accumulate((shard.num_samples for shard in self.shards), initial=0))

    @property
    def num_samples(self) -> int:
        return self.offsets[-1]

    @property
    def has_texts(self) -> bool:
        """Whether the samples are pairs of texts.

        Raises:
            ValueError: some are, and others have images.
        """
        layouts = [shard.layout or {} for shard in self.shards]
        kinds = {str(layout.get("kind")).startswith("text_") for layout in layouts}
        if len(kinds) > 1:
            raise ValueError("some shards have pairs of texts and others images; index them apart")
        return kinds == {True}

    def locate(self, sample_id: int) -> tuple[int, int]:
        """Find the index of the shard that holds a sample, and its row there.

        Raises:
            IndexError: no sample has this id.
        """
        if not 0 <= sample_id < self.num_samples:
            raise IndexError(f"sample id {sample_id} is not in [0, {self.num_samples})")
        shard = bisect_right(self.offsets, sample_id) - 1
        return shard, sample_id - self.offsets[shard]

    def usable_ids(self, *, with_captions: bool = True) -> Int64[Tensor, " usable"]:
        """List the ids of the usable samples, ascending.

        Args:
            with_captions: False takes samples without a caption too, for data with labels.
        """
        shards = range(len(self.shards))
        return torch.cat([self.usable_ids_in(s, with_captions=with_captions) for s in shards])

    def usable_ids_in(
        self, shard_index: int, *, with_captions: bool = True
    ) -> Int64[Tensor, " usable"]:
        """List the usable ids of one shard, ascending."""
        shard, offset = self.shards[shard_index], self.offsets[shard_index]
        usable = torch.ones(shard.num_samples, dtype=torch.bool)
        for row, reason in shard.unusable.items():
            usable[row] = reason in CAPTION_FAULTS and not with_captions
        if shard.left_out is not None:
            usable &= ~shard.left_out
        return usable.nonzero().squeeze(1) + offset

    def without(self, reasons: Mapping[int, str]) -> "Manifest":
        """Mark more samples as unusable; all ids stay the same.

        Args:
            reasons: sample id -> why it is left out, in words that many samples share.

        Raises:
            IndexError: no sample has the id.
        """
        more: dict[int, dict[int, str]] = {}
        for sample_id, reason in reasons.items():
            shard, row = self.locate(sample_id)
            more.setdefault(shard, {})[row] = reason
        return Manifest(
            shards=tuple(
                replace(shard, unusable=dict(sorted((more.get(i, {}) | shard.unusable).items())))
                for i, shard in enumerate(self.shards)
            )
        )

    @cached_property
    def contents_sha256(self) -> str:
        """SHA-256 of the contents of the shards, in order, and of the samples curated out."""
        curated = [
            [row for row, reason in sorted(shard.unusable.items()) if reason.startswith(CURATED)]
            for shard in self.shards
        ]
        contents = json.dumps([shard.contents for shard in self.shards])
        if any(curated):  # all other faults follow from the contents
            contents += json.dumps(curated)
        return hashlib.sha256(contents.encode()).hexdigest()

    def save(self, path: str | Path) -> None:
        """Write the manifest as JSON; a reader sees the old file or the new one, whole.

        The places of the samples are written beside it, into `NAME.rows-HASH`: 17 bytes a sample,
        and 4 for each of its files.
        Shards below the manifest's folder are named relative to it, so that all move together.
        """
        path = Path(os.path.abspath(path))
        with exclusive_file(path.with_name(f"{path.name}.saving"), wait=True):
            self._write(path)

    def _write(self, path: Path) -> None:
        shards = [_entry(shard, path.parent) for shard in self.shards]
        rows_file: str | None = None
        rows = [(s.spans, s.members) for s in self.shards if s.spans is not None]
        if rows:
            content = save_rows(rows)
            # Named by its content: the old manifest has the old rows until it is replaced.
            hashed = hashlib.sha256(content).hexdigest()[:12]
            rows_file = f"{path.stem}.rows-{hashed}"
            write_atomically(path.parent / rows_file, content)
        document = {"format": FORMAT, "version": VERSION, "rows": rows_file, "shards": shards}
        write_checked_json(path, document)
        for old in _unused_rows(path, keep=rows_file):
            old.unlink()

    @classmethod
    def load(cls, path: str | Path) -> "Manifest":
        """Read what `save` wrote: where it is being replaced, the old or the new.

        Raises:
            FileNotFoundError: there is no such file, or the file of its rows is missing.
            ValueError: it is no manifest, or one of another version.
        """
        while True:
            before = _version(path)
            try:
                return cls._load(path)
            except FileNotFoundError:
                if _version(path) == before:  # else its rows went when it was replaced
                    raise

    @classmethod
    def _load(cls, path: str | Path) -> "Manifest":
        require_on_this_machine(path, "manifest")
        remedy = "run `drrho index` on the shards to write it, or index the items again"
        try:
            content = read_regular(path, most=MAX_JSON)
            document = parse_json(content)
        except FileNotFoundError:
            raise FileNotFoundError(f"manifest {path} does not exist; {remedy}") from None
        except ValueError as error:
            raise ValueError(f"manifest {path} is not JSON ({error}); {remedy}") from error
        if not isinstance(document, dict) or document.get("format") != FORMAT:
            raise ValueError(f"{path} is JSON, but not a manifest of a data set; {remedy}")
        if document.get("version") != VERSION:
            raise ValueError(
                f"manifest {path} has version {document.get('version')!r}, this program reads "
                f"version {VERSION}; {remedy}"
            )
        folder = Path(os.path.abspath(path)).parent
        rows_file = document.get("rows")
        try:
            entries = document.get("shards")
            if not isinstance(entries, list):
                raise ValueError(f"its shards must be a list, got {entries!r:.80}")
            if rows_file is not None and not _is_bare_name(rows_file):
                raise ValueError(f"its rows must be a file beside it, got {rows_file!r:.80}")
            shards = (_parse_shard(entry, folder, number) for number, entry in enumerate(entries))
            manifest = cls(shards=tuple(shards))
            require_checksum(content, document)
            return manifest if rows_file is None else _with_spans(manifest, folder / rows_file)
        except FileNotFoundError as error:
            raise FileNotFoundError(
                f"manifest {path} is incomplete: {folder}/{rows_file} is missing; it moves "
                f"with the manifest; {remedy}"
            ) from error
        except (ValueError, SafetensorError) as error:
            raise ValueError(f"manifest {path} is damaged ({error}); {remedy}") from error


def is_manifest(path: str | Path) -> bool:
    """Tell whether a file is a manifest, of any version, by its first bytes."""
    if not str(path).endswith(".json"):
        return False
    with suppress(OSError), open(path, "rb") as file:
        return FORMAT.encode() in file.read(HEAD_BYTES)
    return False


def _unused_rows(path: Path, *, keep: str | None) -> list[Path]:
    """List the files of rows that older versions of a manifest left and no copy of it names."""
    pattern = re.compile(rf"{re.escape(path.stem)}\.rows-[0-9a-f]{{12}}")
    with os.scandir(path.parent) as entries:
        names = [entry.name for entry in entries if entry.is_file()]
    old = [name for name in names if pattern.fullmatch(name) and name != keep]
    heads = []
    for name in names if old else []:
        if name.endswith(".json"):
            with (path.parent / name).open("rb") as file:
                heads.append(file.read(HEAD_BYTES))
    named = b"\n".join(heads)
    return [path.parent / name for name in old if name.encode() not in named]


def _entry(shard: Shard, folder: Path) -> dict[str, Any]:
    """Convert a shard to plain data, without its rows."""
    entry = {f.name: getattr(shard, f.name) for f in fields(shard) if f.compare}
    if shard.decoding == 1:  # as in the files of earlier versions
        del entry["decoding"]
    if "://" not in shard.url and Path(shard.url).is_relative_to(folder):
        entry["url"] = Path(shard.url).relative_to(folder).as_posix()
    return entry


def _version(path: str | Path) -> tuple[int, int] | None:
    """Return what differs between a file and the one that replaces it; None if there is none."""
    with suppress(FileNotFoundError):
        found = os.stat(path)
        return found.st_ino, found.st_mtime_ns
    return None


def _is_bare_name(name: object) -> bool:
    return isinstance(name, str) and name not in ("", ".", "..") and not set(name) & set("/\\\0")


def _parse_shard(entry: object, folder: Path, number: int) -> Shard:
    where = f"shards[{number}]"
    if not isinstance(entry, dict) or not isinstance(entry.get("unusable"), dict):
        raise ValueError(f"{where} must be an object with unusable rows, got {entry!r:.80}")
    unusable = {}
    for row, reason in entry["unusable"].items():  # one by one as they may be millions
        if not (row.isascii() and row.isdecimal() and isinstance(reason, str)):
            raise ValueError(f"{where}.unusable has {row!r:.80}: {reason!r:.80}")
        unusable[int(row)] = reason
    shard = from_json(Shard, entry | {"unusable": {}}, where=where, strict=True)
    url = shard.url if "://" in shard.url else str(folder / shard.url)
    return replace(shard, url=url, unusable=unusable)


def _with_spans(manifest: Manifest, path: Path) -> Manifest:
    """Map the file of rows into memory and give each shard its part, in order."""
    in_files = [s.num_samples for s in manifest.shards if not s.url.startswith(ITEMS)]
    rows = iter(load_rows(path, in_files))
    found = []
    for shard in manifest.shards:
        spans, members = (None, None) if shard.url.startswith(ITEMS) else next(rows)
        found.append(replace(shard, spans=spans, members=members))
    return Manifest(shards=tuple(found))
