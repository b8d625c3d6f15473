"""Places of the files of samples: what is read with them, without them and where they are wrong."""

import os
import random
import tarfile
from dataclasses import replace

import pytest
import safetensors.torch
import torch
from tests.data.tar_files import pair, write_files, write_shard

from drrho.data.index import IndexConfig, write_manifest
from drrho.data.indexing import index_shards
from drrho.data.manifest import Manifest
from drrho.data.reading.cache import OpenShards
from drrho.data.reading.tar import Header, _plain_header

LONG = "k" * 120  # takes a header of its own


def samples(count=6):
    """Pairs, one of them with a long name and one with files that are not decoded."""
    found = [pair(number) for number in range(count)]
    found[2] |= {"json": b'{"a": 1}', "cls": b"3", "mask.npz": bytes(5000)}
    return found


def write(path, count=6):
    keys = [f"{number:05d}" if number != 1 else LONG for number in range(count)]
    files = [
        (f"{key}.{extension}", content)
        for key, sample in zip(keys, samples(count), strict=True)
        for extension, content in sample.items()
    ]
    return write_files(path, files)


def read_all(manifest):
    found = OpenShards(manifest).read(list(range(manifest.num_samples)))
    decoded = ("jpg", "txt", "json", "cls")
    return [(s.key, s.row, {e: s.fields.get(e) for e in decoded}) for s in found]


def without_members(manifest):
    return Manifest(shards=tuple(replace(shard, members=None) for shard in manifest.shards))


def test_samples_are_the_same_with_and_without_the_places_of_their_files(tmp_path):
    manifest = index_shards(write(tmp_path / "a.tar"))
    members = manifest.shards[0].members
    assert members.of_rows([1]) == [None], "a long name has a header of its own"
    assert ("mask.npz", 5000) in members.of_rows([0, 2])[1]
    assert read_all(manifest) == read_all(without_members(manifest))


def test_files_that_are_not_decoded_are_not_read(tmp_path, monkeypatch):
    plain, large = pair(0), pair(1)
    large["zz.npz"] = bytes(10**6)
    manifest = index_shards(write_shard(tmp_path / "a.tar", [plain, large]))
    sizes = []
    original = os.pread
    monkeypatch.setattr(
        os, "pread", lambda d, size, start: sizes.append(size) or original(d, size, start)
    )
    OpenShards(manifest).read([0, 1])
    assert max(sizes) < 10**5


def test_a_manifest_of_an_earlier_version_is_read_and_completed_by_index(tmp_path):
    write(tmp_path / "data" / "a.tar")
    manifest, path = write_manifest(IndexConfig(data=str(tmp_path / "data")))
    (rows,) = path.parent.glob("manifest.rows-*")
    columns = safetensors.torch.load_file(rows)
    safetensors.torch.save_file({n: columns[n] for n in ("start", "size", "checksum")}, rows)
    old = Manifest.load(path)
    assert old.shards[0].members is None
    assert read_all(old) == read_all(manifest)
    write_manifest(IndexConfig(data=str(tmp_path / "data")))
    completed = Manifest.load(path).shards[0].members
    assert completed is not None
    assert completed.shapes == manifest.shards[0].members.shapes
    assert all(map(torch.equal, completed[:2], manifest.shards[0].members[:2]))


def test_shards_with_and_without_places_are_saved_together(tmp_path):
    manifest = index_shards(write(tmp_path / "a.tar"))
    other = without_members(index_shards(write(tmp_path / "b.tar", 4)))
    Manifest(shards=other.shards + manifest.shards).save(tmp_path / "both.json")
    assert len(read_all(Manifest.load(tmp_path / "both.json"))) == 10


def test_wrong_sizes_are_an_error(tmp_path):
    manifest = index_shards(write(tmp_path / "a.tar"))
    (shard,) = manifest.shards
    for place in range(len(shard.members.size)):
        sizes = shard.members.size.clone()
        sizes[place] += 1
        wrong = replace(shard, members=shard.members._replace(size=sizes))
        reader = OpenShards(Manifest(shards=(wrong,)))
        if place == 7:  # of a file that is not decoded, the last of its sample
            assert read_all(Manifest(shards=(wrong,))) == read_all(manifest)
            continue
        with pytest.raises(ValueError, match="run `drrho index` again"):
            reader.read(list(range(manifest.num_samples)))


def test_damaged_tables_of_files_are_errors(tmp_path):
    manifest = index_shards(write(tmp_path / "a.tar"))
    manifest.save(tmp_path / "m.json")
    (rows,) = tmp_path.glob("m.rows-*")
    with safetensors.safe_open(rows, framework="pt") as file:
        columns = safetensors.torch.load_file(rows)
        shapes = file.metadata()["shapes"]
    for damaged, text in (
        (columns | {"shape": columns["shape"] + 7}, shapes),
        (columns | {"shape": columns["shape"].long()}, shapes),
        (columns | {"file_size": columns["file_size"][1:]}, shapes),
        (columns | {"file_size": -columns["file_size"]}, shapes),
        ({n: c for n, c in columns.items() if n != "shape"}, shapes),
        (columns, "[[]]"),
        (columns, "[[[1]]]"),
        (columns, "{"),
    ):
        safetensors.torch.save_file(damaged, rows, {"shapes": text})
        with pytest.raises(ValueError, match="is damaged"):
            Manifest.load(tmp_path / "m.json")


@pytest.mark.parametrize("kind", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_plain_headers_are_parsed_as_the_standard_library_does(kind):
    draws, found = random.Random(0), 0
    for _ in range(300):
        member = tarfile.TarInfo("".join(draws.choices("abc/d.é", k=draws.randint(1, 40))))
        member.size = draws.choice([0, 1, 512, 10**6, 8**11 - 1])
        member.type = draws.choice([b"0", b"\0", b"5"])
        block = bytearray(member.tobuf(kind)[-512:])
        for _damage in range(3):
            plain = _plain_header(bytes(block))
            if plain is not None:
                found += 1
                info = tarfile.TarInfo.frombuf(bytes(block), "utf-8", "surrogateescape")
                assert plain == Header(info.name, info.type, info.size)
            block[draws.randrange(512)] = draws.randrange(256)
    assert found > 100
