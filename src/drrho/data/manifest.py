"""The index of a data set: its shards, how many samples each holds, and hashes of them.

The sample with row r of shard s has the id `offsets[s] + r`. Rows count every sample, usable or
not, so an id never depends on a filter, a shuffle or on what could be decoded.
"""

import glob
import hashlib
import json
import os
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import accumulate
from pathlib import Path

import torch
from jaxtyping import Int64
from torch import Tensor
from webdataset.shardlists import expand_urls

from drrho.data.shards import (
    CAPTION_EXTENSION,
    CAPTION_FAULTS,
    RawSample,
    find_fault,
    image_bytes,
    read_shard,
)
from drrho.files import write_json
from drrho.progress import Progress

FORMAT = "drrho manifest"
VERSION = 1


@dataclass(frozen=True, kw_only=True)
class Shard:
    """What one tar file holds.

    Attributes:
        url: where it is.
        num_samples: rows, usable or not.
        keys_sha256: hash of the samples' keys in order: which row is which sample.
        content_sha256: hash of the images' and captions' bytes in order. Keys are often mere
            counters, equal in unrelated data sets; this tells those apart.
        unusable: the rows that are no image-caption pair, with the reason. Images are not
            decoded for it; a corrupt one shows when it is read.
    """

    url: str
    num_samples: int
    keys_sha256: str
    content_sha256: str
    unusable: dict[int, str]

    def __post_init__(self):
        if outside := [row for row in self.unusable if not 0 <= row < self.num_samples]:
            raise ValueError(
                f"shard {self.url} has {self.num_samples} samples, but unusable rows {outside}"
            )

    @property
    def contents(self) -> tuple[int, str, str]:
        """What two shards share exactly if they hold the same samples in the same order."""
        return self.num_samples, self.keys_sha256, self.content_sha256


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """The shards of a data set, in the order that gives its samples their ids.

    Raises:
        ValueError: a shard occurs twice.
    """

    shards: tuple[Shard, ...]

    def __post_init__(self):
        urls = [shard.url for shard in self.shards]
        if repeated := [url for url, count in Counter(urls).items() if count > 1]:
            raise ValueError(f"shard {repeated[0]} occurs more than once; name each shard once")

    @cached_property
    def offsets(self) -> list[int]:
        """The id of each shard's first sample, and at the end the number of samples."""
        return list(accumulate((shard.num_samples for shard in self.shards), initial=0))

    @property
    def num_samples(self) -> int:
        return self.offsets[-1]

    def locate(self, sample_id: int) -> tuple[int, int]:
        """The index of the shard that holds a sample, and its row there.

        Raises:
            IndexError: no sample has this id.
        """
        if not 0 <= sample_id < self.num_samples:
            raise IndexError(f"sample id {sample_id} is not in [0, {self.num_samples})")
        shard = bisect_right(self.offsets, sample_id) - 1
        return shard, sample_id - self.offsets[shard]

    def usable_ids(self, *, with_captions: bool = True) -> Int64[Tensor, " usable"]:
        """The ids of the usable samples, ascending.

        Args:
            with_captions: False counts samples that lack nothing but a caption as usable too;
                for data that carry labels instead.
        """
        shards = range(len(self.shards))
        return torch.cat([self.usable_ids_in(s, with_captions=with_captions) for s in shards])

    def usable_ids_in(
        self, shard_index: int, *, with_captions: bool = True
    ) -> Int64[Tensor, " usable"]:
        """The part of `usable_ids` that lies in one shard."""
        shard, offset = self.shards[shard_index], self.offsets[shard_index]
        usable = torch.ones(shard.num_samples, dtype=torch.bool)
        for row, reason in shard.unusable.items():
            usable[row] = reason in CAPTION_FAULTS and not with_captions
        return usable.nonzero().squeeze(1) + offset

    def save(self, path: str | Path) -> None:
        """Writes the manifest as JSON; a reader sees the old file or the new one, whole.

        Shards below the manifest's folder are named relative to it, so that both move together.
        """
        folder = Path(os.path.abspath(path)).parent
        shards = [asdict(shard) | {"url": _relative(shard.url, folder)} for shard in self.shards]
        document = {"format": FORMAT, "version": VERSION, "shards": shards}
        write_json(Path(path), document)

    @classmethod
    def load(cls, path: str | Path) -> "Manifest":
        """Reads what `save` wrote.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: it is no manifest, or one of another version.
        """
        remedy = "run `drrho index` on the shards to write it"
        try:
            document = json.loads(Path(path).read_bytes())
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
        try:
            return cls(shards=tuple(_parse_shard(entry, folder) for entry in document["shards"]))
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise ValueError(f"manifest {path} is damaged ({error!r}); {remedy}") from error


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
    keys, content = hashlib.sha256(), hashlib.sha256()
    num_samples, unusable = 0, {}
    for sample in samples:
        _update(keys, sample.key.encode(errors="surrogateescape"))
        _update(content, image_bytes(sample))
        _update(content, sample.fields.get(CAPTION_EXTENSION))
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


def _update(digest, content: bytes | None) -> None:
    """Adds one field, preceded by its length so that no two lists of fields hash alike."""
    digest.update(b"absent," if content is None else b"%d," % len(content))
    digest.update(content or b"")


def _matches(pattern: str) -> list[str]:
    if os.path.exists(pattern):
        return [pattern]
    if not glob.has_magic(pattern):
        raise FileNotFoundError(f"shard {pattern} does not exist; shards are read from local paths")
    return sorted(glob.glob(pattern))


def _relative(url: str, folder: Path) -> str:
    path = Path(url)
    return path.relative_to(folder).as_posix() if path.is_relative_to(folder) else url


def _parse_shard(entry: dict, folder: Path) -> Shard:
    unusable = {int(row): str(reason) for row, reason in entry["unusable"].items()}
    url = str(folder / entry["url"])
    return Shard(**entry | {"url": url, "unusable": unusable})
