"""Data that are no tar files: any bytes that determine a sample give it its id."""

import numpy as np
import pytest

from drrho.data.items import manifest_of_items
from drrho.data.manifest import Manifest
from drrho.data.reading.shards import read_shard

ITEMS = [f"text number {n}".encode() for n in range(10)]


def contents(manifest):
    return [shard.contents for shard in manifest.shards]


def test_ids_are_positions():
    manifest = manifest_of_items(iter(ITEMS), name="texts", items_per_shard=4)
    assert manifest.offsets == [0, 4, 8, 10]
    assert manifest.usable_ids().tolist() == list(range(10))
    assert len(manifest_of_items(ITEMS, name="texts").shards) == 1
    assert manifest_of_items(ITEMS[:8], name="texts", items_per_shard=4).offsets == [0, 4, 8]


def test_hashes_tell_order_contents_and_where_an_item_ends():
    known = contents(manifest_of_items([b"ab", b"c"], name="a"))
    assert contents(manifest_of_items([b"ab", b"c"], name="another")) == known
    for other in ([b"c", b"ab"], [b"a", b"bc"], [b"ab", b"c", b""], [b"ab", b"d"]):
        assert contents(manifest_of_items(other, name="a")) != known


def test_a_set_that_grows_keeps_all_but_its_last_shard():
    before = contents(manifest_of_items(ITEMS[:6], name="texts", items_per_shard=4))
    after = contents(manifest_of_items(ITEMS, name="texts", items_per_shard=4))
    assert after[0] == before[0]
    assert after[1] != before[1]


def test_the_manifest_can_be_saved_and_moved(tmp_path):
    manifest = manifest_of_items(ITEMS, name="texts", items_per_shard=4)
    manifest.save(tmp_path / "manifest.json")
    (tmp_path / "manifest.json").rename(tmp_path / "moved.json")
    assert Manifest.load(tmp_path / "moved.json") == manifest


def test_an_item_that_is_not_bytes_is_an_error_that_names_it():
    for item in ("text", np.zeros(3, dtype=np.int32)):
        with pytest.raises(TypeError, match=rf"item 5 must be bytes.*got {type(item).__name__}"):
            manifest_of_items(iter([*ITEMS[:5], item]), name="texts", items_per_shard=4)


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "-a", "a:b"])
def test_a_name_that_cannot_name_a_file_is_an_error(name):
    with pytest.raises(ValueError, match="name must be made of letters"):
        manifest_of_items(ITEMS, name=name)


def test_nothing_to_index_is_an_error():
    with pytest.raises(ValueError, match="texts has no item"):
        manifest_of_items([], name="texts")
    with pytest.raises(ValueError, match="items_per_shard must be at least 1, got 0"):
        manifest_of_items(ITEMS, name="texts", items_per_shard=0)


def test_items_are_not_mistaken_for_tar_files():
    shard = manifest_of_items(ITEMS, name="texts").shards[0]
    with pytest.raises(ValueError, match="shard items://texts-00000 cannot be read"):
        list(read_shard(shard.url))
