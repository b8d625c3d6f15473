"""Random access to samples by id: whole shards are read, checked and kept in memory."""

from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import TypeVar

from drrho.data.indexing import summarise_shard
from drrho.data.manifest import Manifest, Shard
from drrho.data.shards import RawSample, UnusableSample, read_shard

Decoded = TypeVar("Decoded")


class OpenShards:
    """The samples of a data set by id.

    Args:
        manifest: the data set; a shard that is not what it says raises ValueError when read.
        capacity: shards kept in memory, undecoded; the one unused for longest goes first.
    """

    def __init__(self, manifest: Manifest, *, capacity: int):
        self._manifest = manifest
        self._capacity = capacity
        self._samples: OrderedDict[int, tuple[RawSample, ...]] = OrderedDict()

    def __getitem__(self, sample_id: int) -> RawSample:
        shard, row = self._manifest.locate(sample_id)
        if shard not in self._samples:
            if len(self._samples) == self._capacity:
                self._samples.popitem(last=False)
            self._samples[shard] = _read_verified(self._manifest.shards[shard])
        self._samples.move_to_end(shard)
        return self._samples[shard][row]

    def readable(
        self,
        sample_ids: list[int],
        skipped: list[tuple[int, str]],
        *,
        decode: Callable[[RawSample], Decoded],
    ) -> Iterator[tuple[int, Decoded]]:
        """The samples that decode, with their ids; the others go to `skipped`."""
        for sample_id in sample_ids:
            try:
                decoded = decode(self[sample_id])
            except UnusableSample as unusable:
                skipped.append((sample_id, unusable.reason))
            else:
                yield sample_id, decoded


def _read_verified(shard: Shard) -> tuple[RawSample, ...]:
    samples = tuple(read_shard(shard.url))
    found = summarise_shard(shard.url, samples)
    remedy = "run `drrho index` again, and compute its reference again"
    if (found.num_samples, found.keys_sha256) != (shard.num_samples, shard.keys_sha256):
        raise ValueError(
            f"shard {shard.url} does not hold the samples it held when it was indexed: "
            f"{found.num_samples} with keys {found.keys_sha256[:12]}, not {shard.num_samples} "
            f"with keys {shard.keys_sha256[:12]}; {remedy}"
        )
    if found.content_sha256 != shard.content_sha256:
        raise ValueError(
            f"shard {shard.url} has the same keys as when it was indexed, but other images or "
            f"captions; {remedy}"
        )
    return samples
