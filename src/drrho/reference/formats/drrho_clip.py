"""Reference features as the published DRRho-CLIP code caches them.

Source: `shard_features`, `cache_features` and `get_cached_data` of
github.com/Optimization-AI/DRRho-CLIP, run with --cache_ref_model_features and
--cached_ref_features_dir. The folder has files `00000012.pt`, each a tensor (rows, 2, d) in
float32: images in [:, 0], texts in [:, 1]. The sample whose key is the number k has row k % n of
file k // n, with n = --num_samples_per_shard, 10,000 by default. The keys of img2dataset, which
number the rows of its list of urls, are such numbers. A row is zero where nothing was cached.

Only these numbers say which data the files are of, and unrelated data sets have the same numbers:
verify what was imported with the model.
"""

import re
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from pickle import UnpicklingError

import torch
from torch import Tensor
from tyro.conf import Positional

from drrho.data.manifest import Manifest, Shard
from drrho.data.reading.shards import RawSample
from drrho.reference.formats.source import ArrayFile, ArrayPair, ArrayTable, Source, find_files


@dataclass(frozen=True, kw_only=True)
class DRRhoClip:
    """Features that the published DRRho-CLIP code cached; joined by the number of the key.

    Attributes:
        source: folder given to it as --cached_ref_features_dir.
        samples_per_file: its --num_samples_per_shard.
    """

    source: Positional[str]
    samples_per_file: int = 10_000

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
        return Source(
            table=table,
            settings={"format": "drrho-clip", "samples_per_file": str(self.samples_per_file)},
            key_noun="numeric key",
            keys=lambda: map(str, chain.from_iterable(rows)),
            key_of=_key_of,
        )


def _key_of(_shard: Shard, sample: RawSample) -> str | None:
    return str(int(sample.key)) if re.fullmatch("[0-9]+", sample.key) else None


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
        features = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    except (RuntimeError, UnpicklingError, EOFError, ValueError) as error:
        raise ValueError(
            f"{path} is no file that torch.save wrote of a tensor ({error}); cache it again"
        ) from error
    if not isinstance(features, Tensor) or features.ndim != 3 or features.shape[1] != 2:
        found = tuple(features.shape) if isinstance(features, Tensor) else type(features).__name__
        raise ValueError(f"{path} must hold a tensor (rows, 2, d), it holds {found}")
    return features
