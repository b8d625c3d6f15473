"""The files of a manifest: written and read by several processes at once, and kept apart."""

import os
import threading
from dataclasses import replace

import pytest
from tests.data.tar_files import pair, write_shard

from drrho.data.index import IndexConfig, MixConfig, mix_manifests, write_manifest
from drrho.data.indexing import index_shards
from drrho.data.manifest import CURATED, Manifest
from drrho.runtime.locks import exclusive_file


def manifests_of(tmp_path):
    return [
        index_shards(write_shard(tmp_path / f"{name}.tar", [pair(k) for k in range(count)]))
        for name, count in (("a", 2), ("b", 5))
    ]


def test_readers_see_one_of_the_manifests_that_are_being_written(tmp_path):
    known = manifests_of(tmp_path)
    path = tmp_path / "lists" / "m.json"
    known[0].save(path)
    done = threading.Event()

    def write(manifest):
        while not done.is_set():
            manifest.save(path)

    writers = [threading.Thread(target=write, args=(manifest,)) for manifest in known]
    for writer in writers:
        writer.start()
    try:
        read = [Manifest.load(path) for _ in range(100)]
    finally:
        done.set()
        for writer in writers:
            writer.join()
    assert all(manifest in known for manifest in read)
    assert all(shard.spans is not None for manifest in read for shard in manifest.shards)
    assert len(os.listdir(path.parent)) == 2, "the manifest and its rows"


def test_a_command_does_not_write_what_another_is_writing(tmp_path):
    write_shard(tmp_path / "a.tar", [pair(0)])
    path = tmp_path / "m.json"
    config = IndexConfig(data=str(tmp_path / "a.tar"), output=str(path))
    with (
        exclusive_file(path),
        pytest.raises(BlockingIOError, match=r"another process is at work in .*m\.json"),
    ):
        write_manifest(config)
    manifest, _ = write_manifest(config)
    mix = MixConfig(manifests=(str(path),), output=str(tmp_path / "mix.json"))
    with (
        exclusive_file(tmp_path / "mix.json"),
        pytest.raises(BlockingIOError, match=r"another process is at work in .*mix\.json"),
    ):
        mix_manifests(mix)
    assert mix_manifests(mix) == manifest
    assert not list(tmp_path.glob(".*"))


def test_files_of_other_manifests_are_kept(tmp_path):
    """One whose name begins alike, one that is a copy, and files that are none."""
    first, second = manifests_of(tmp_path)
    (tmp_path / "lists").mkdir()
    path = tmp_path / "lists" / "train.json"
    first.save(path)
    others = [path.with_name(name) for name in ("train.rows-old.json", "train.rows-0.json")]
    for other in others:
        second.save(other)
    copy = path.with_name("copy.json")
    copy.write_bytes(path.read_bytes())
    path.with_name("train.rows-notes").touch()
    second.save(path)
    assert [Manifest.load(p) for p in (path, *others, copy)] == [second, second, second, first]
    assert path.with_name("train.rows-notes").exists()
    copy.unlink()
    second.save(path)
    assert len(list(path.parent.glob("train.rows-" + "[0-9a-f]" * 12))) == 1


def test_a_shard_written_anew_with_its_old_size_and_time_is_read_again(tmp_path):
    shard = write_shard(tmp_path / "a.tar", [pair(0)])
    before, path = write_manifest(IndexConfig(data=str(tmp_path)))
    found = shard.stat()
    content = shard.read_bytes()
    shard.write_bytes(content.replace(b"picture number 0", b"picture number 7"))
    os.utime(shard, ns=(found.st_atime_ns, found.st_mtime_ns))
    assert shard.stat().st_size == found.st_size
    after, _ = write_manifest(IndexConfig(data=str(tmp_path)))
    assert after.shards[0].contents != before.shards[0].contents
    assert Manifest.load(path) == after


def test_an_index_keeps_no_choice_of_an_earlier_manifest(tmp_path):
    write_shard(tmp_path / "a.tar", [pair(0), {"txt": b"no image"}, pair(2)])
    manifest, path = write_manifest(IndexConfig(data=str(tmp_path)))
    curated = manifest.without({0: f"{CURATED}repeated"})
    Manifest(shards=tuple(replace(s, weight=3.0) for s in curated.shards)).save(path)
    again, _ = write_manifest(IndexConfig(data=str(tmp_path)))
    assert again == manifest
