"""Reference features as the published DRRho-CLIP code caches them.

Source: `shard_features`, `cache_features` and `get_cached_data` of
github.com/Optimization-AI/DRRho-CLIP, run with --cache_ref_model_features and
--cached_ref_features_dir. The folder has files `00000012.pt`, each a tensor (rows, 2, d) in
float32: images in [:, 0], texts in [:, 1]. The sample of number k has row k % n of file k // n,
with n = --num_samples_per_shard, 10,000 by default. A row is zero where nothing was cached.

The program that writes them takes k from the field "key" of a sample's json, the one that reads
them from the name of its members. img2dataset writes the same number to both.

Only these numbers say which data the files are of, and unrelated data sets have the same numbers:
verify what was imported with the model.
"""

import re
from collections import Counter
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from pickle import UnpicklingError
from typing import Literal

import torch
from torch import Tensor
from tyro.conf import Positional

from drrho.data.manifest import Manifest
from drrho.data.reading.shards import RawSample
from drrho.reference.arrays import plain_tensor
from drrho.reference.formats.source import (
    ArrayFile,
    ArrayPair,
    ArrayTable,
    Source,
    find_files,
    json_field,
)
from drrho.runtime.files import require_regular


@dataclass(frozen=True, kw_only=True)
class DRRhoClip:
    """Features that the published DRRho-CLIP code cached; joined by the number of a sample.

    Attributes:
        source: folder given to it as --cached_ref_features_dir.
        samples_per_file: samples in a file, the published program's --num_samples_per_shard.
        number: place of a sample's number: the field "key" of its json, by which the features were
            written, or the name of its members. None takes the json's where there is one; two
            numbers that differ are an error.
    """

    source: Positional[str]
    samples_per_file: int = 10_000
    number: Literal["json", "member"] | None = None

    def open(self, _manifest: Manifest) -> Source:
        """Find the files; errors as `Source` says."""
        folder = Path(self.source).expanduser()
        if folder.is_file():
            raise ValueError(
                f"{folder} is a file: what DRRho-CLIP caches without --cached_ref_features_dir "
                "does not say which samples its rows are; cache it with that option, into a folder"
            )
        remedy = "give the folder that DRRho-CLIP was given as --cached_ref_features_dir"
        paths = find_files(folder, "*.pt", remedy=remedy)
        firsts = [_number(path) * self.samples_per_file for path in paths]
        table = ArrayTable.of(_file(path, samples_per_file=self.samples_per_file) for path in paths)
        rows = [
            range(first, first + file.num_rows)
            for first, file in zip(firsts, table.files, strict=True)
        ]
        joined = Counter[str]()
        return Source(
            table=table,
            settings={"format": "drrho-clip", "samples_per_file": str(self.samples_per_file)},
            key_noun="numeric key",
            keys=lambda: map(str, chain.from_iterable(rows)),
            key_of=lambda _shard, sample: self._number_of(sample, joined),
            joined=joined,
        )

    def _number_of(self, sample: RawSample, joined: Counter[str]) -> str | None:
        found = {
            place: int(text)
            for place, text in (("json", json_field(sample, "key")), ("member", sample.key))
            if text is not None and re.fullmatch("[0-9]+", text) and self.number in (None, place)
        }
        if len(set(found.values())) > 1:
            raise ValueError(
                f"sample {sample.key} has the number {found['json']} in its json and "
                f"{found['member']} in its name. The published program writes features by the "
                "first and reads them by the second: choose with number = 'json' or 'member' "
                "(--number), and verify what was imported"
            )
        if not found:
            return None
        place, number = next(iter(found.items()))
        joined[f"by the number in {'their json' if place == 'json' else 'their name'}"] += 1
        return str(number)


def _number(path: Path) -> int:
    if not re.fullmatch("[0-9]+", path.stem):
        raise ValueError(
            f"{path} is not named by a number, as the files of cached features are; give the "
            "folder that holds those alone"
        )
    return int(path.stem)


def _file(path: Path, *, samples_per_file: int) -> ArrayFile:
    num_rows = len(_map_features(path))
    if num_rows > samples_per_file:
        raise ValueError(
            f"{path} has {num_rows} rows, more than samples_per_file = {samples_per_file}; give "
            "the --num_samples_per_shard that it was cached with"
        )
    return ArrayFile(
        name=path.name, paths=(path,), num_rows=num_rows, open=partial(_map_arrays, path)
    )


def _map_arrays(path: Path) -> ArrayPair:
    features = _map_features(path)
    if features.dtype not in (torch.float16, torch.float32):
        features = features.float()  # NumPy has no bfloat16
    return ArrayPair(features[:, 0].numpy(), features[:, 1].numpy())


def _map_features(path: Path) -> Tensor:
    try:
        require_regular(path)
        features = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
        if isinstance(features, Tensor):
            features = plain_tensor(features)
    except (
        *(RuntimeError, UnpicklingError, EOFError, ValueError, OverflowError),
        *(KeyError, TypeError, AttributeError, IndexError),  # of a damaged pickle
    ) as error:
        raise ValueError(
            f"{path} is no file that torch.save wrote of a tensor ({error}); cache it again"
        ) from error
    if not isinstance(features, Tensor) or features.ndim != 3 or features.shape[1] != 2:
        found = tuple(features.shape) if isinstance(features, Tensor) else type(features).__name__
        raise ValueError(f"{path} must hold a tensor (rows, 2, d), it holds {found}")
    return features
