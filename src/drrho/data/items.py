"""The index of data that are no tar files: a torch or Hugging Face dataset, blocks of tokens."""

import re
from collections.abc import Iterable
from itertools import islice

from drrho.data.manifest import ITEMS, FieldHash, Manifest, Shard
from drrho.runtime.checks import require_at_least


def manifest_of_items(
    items: Iterable[bytes], *, name: str, items_per_shard: int = 65_536
) -> Manifest:
    """Index items, each read once; the one at position i has the sample id i.

    The hashes only have to tell data sets apart. So an item is any bytes that determine the
    sample: `row["text"].encode()`, the array of its token ids `.tobytes()`, an image file.

    Each run of items is a shard, and what is stored about it has a file of its own: a data
    set that has grown at its end keeps all runs but the last.

    Args:
        name: name of the data set, for file names and messages.
        items_per_shard: items in a run; the last one may be shorter.

    Raises:
        TypeError: an item is not `bytes`.
        ValueError: there is no item, or `name` or `items_per_shard` cannot be used.
    """
    require_file_name("name", name)
    require_at_least(1, items_per_shard=items_per_shard)
    rest = iter(items)
    shards = []
    while True:
        url = f"{ITEMS}{name}-{len(shards):05d}"
        first_id = len(shards) * items_per_shard
        shard = _summarise_items(url, islice(rest, items_per_shard), first_id=first_id)
        if shard.num_samples == 0:
            break
        shards.append(shard)
    if not shards:
        raise ValueError(f"the data set {name} has no item")
    return Manifest(shards=tuple(shards))


def require_file_name(argument: str, name: str) -> None:
    """Raise ValueError if a name cannot be a file name on every system."""
    if re.fullmatch(r"\w[\w.-]*", name) is None:
        raise ValueError(
            f"{argument} must be made of letters, digits, '_', '.' and '-', and begin with none "
            f"of the last two, as it names files; got {name!r}"
        )


def _summarise_items(url: str, items: Iterable[bytes], *, first_id: int) -> Shard:
    content = FieldHash()
    num_samples = 0
    for item in items:
        if not isinstance(item, bytes):  # the length of an array would not be its bytes
            raise TypeError(
                f"item {first_id + num_samples} must be bytes, such as text.encode() or "
                f"array.tobytes(); got {type(item).__name__}"
            )
        content.add(item)
        num_samples += 1
    return Shard(
        url=url,
        num_samples=num_samples,
        keys_sha256=FieldHash().hexdigest(),  # items have no keys
        content_sha256=content.hexdigest(),
        unusable={},
    )
