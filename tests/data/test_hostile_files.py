"""Files that would never end, or claim to hold more than they do."""

import io
import json
import os
import tracemalloc

import numpy as np
import pytest
from tests.data.tar_files import pair, picture, write_shard

from drrho.data.index import IndexConfig, MixConfig, mix_manifests, write_manifest
from drrho.data.indexing import index_shards
from drrho.data.manifest import Manifest
from drrho.data.reading.cache import OpenShards
from drrho.data.reading.shards import RawSample, UnusableSample, decode_captions, decode_metadata
from drrho.evaluation.tasks.zero_shot_files import shards_of_test

pytestmark = pytest.mark.skipif(os.name != "posix", reason="pipes and devices are Unix's")


@pytest.fixture(params=["pipe", "device", "folder"])
def endless(request, tmp_path):
    """Make a file of a name that is no regular one."""

    def make(name):
        path = tmp_path / name
        match request.param:
            case "pipe":
                os.mkfifo(path)
            case "device":
                path.symlink_to("/dev/zero")
            case "folder":
                path.mkdir()
        return path

    make.kind = request.param
    return make


@pytest.mark.parametrize("name", ["a.tar", "a.csv", "a.tsv", "a.parquet"])
def test_what_is_no_regular_file_is_refused_as_shard_and_table(endless, tmp_path, name):
    path = endless(name)
    named = tmp_path / "out.json"
    if endless.kind != "folder":
        with pytest.raises(ValueError, match=rf"{name} is a {endless.kind}, not a regular file"):
            write_manifest(IndexConfig(str(path), output=str(named)))
        with pytest.raises(ValueError, match="not a regular file"):
            index_shards(f"file://{path}")
    assert not named.exists()


def test_what_is_no_regular_file_is_refused_as_manifest_and_rows(endless, tmp_path):
    path = endless("m.json")
    with pytest.raises(ValueError, match=r"m\.json.*not a regular file"):
        Manifest.load(path)
    with pytest.raises(ValueError, match=r"m\.json.*not a regular file"):
        mix_manifests(MixConfig(manifests=(str(path),), output=str(tmp_path / "out.json")))
    whole = tmp_path / "whole.json"
    index_shards(write_shard(tmp_path / "b.tar", [pair(0)])).save(whole)
    document = json.loads(whole.read_bytes())
    del document["sha256"]
    endless("rows")
    whole.write_text(json.dumps(document | {"rows": "rows"}))
    with pytest.raises(ValueError, match="rows is a .* not a regular file"):
        Manifest.load(whole)


def test_a_shard_that_became_another_kind_of_file_is_refused(endless, tmp_path):
    manifest = index_shards(write_shard(tmp_path / "a.tar", [pair(0)]))
    os.remove(tmp_path / "a.tar")
    endless("a.tar")
    with pytest.raises(ValueError, match=r"a\.tar is a .*not a regular file"):
        OpenShards(manifest).read([0])


def test_images_that_are_no_regular_files_are_counted(endless, tmp_path):
    endless("b.jpg")
    (tmp_path / "a.jpg").write_bytes(picture(0))
    (tmp_path / "a.txt").write_text("a picture")
    table = tmp_path / "table.csv"
    table.write_text("image,caption\na.jpg,one\nb.jpg,two\n/dev/zero,three\n")
    unusable = index_shards(table).shards[0].unusable
    assert unusable == dict.fromkeys([1, 2], "no image: its file cannot be read")
    assert index_shards(tmp_path).usable_ids().tolist() == [0]


def fields(**named):
    return RawSample(key="k", row=0, fields=named)


NESTED = b"[" * 200_000


def test_nested_json_is_damage_like_any_other(tmp_path):
    with pytest.raises(UnusableSample, match="corrupt json"):
        decode_metadata(fields(json=NESTED))
    with pytest.raises(UnusableSample, match="corrupt caption"):
        decode_captions(RawSample(key="k", row=0, fields={"captions.json": NESTED}))
    (tmp_path / "m.json").write_bytes(NESTED)
    with pytest.raises(ValueError, match=r"m\.json is not JSON \(it is nested too deeply\)"):
        Manifest.load(tmp_path / "m.json")


def npy(shape, dtype="<f8", content=bytes(16)):
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        buffer, {"descr": dtype, "fortran_order": False, "shape": shape}
    )
    return buffer.getvalue() + content


def test_an_array_has_as_many_numbers_as_its_file_holds():
    assert decode_metadata(fields(npy=npy((2,))))["npy"] == [0.0, 0.0]
    archive = io.BytesIO()
    np.savez(archive, a=np.zeros(2))
    damaged = [npy((4 * 2**40,)), npy((3,)), npy((1,)), npy((2, 1)), npy(()), npy((2,), "|O")]
    tracemalloc.start()
    for content in [*damaged, archive.getvalue(), b"\x93NUMPY", b"", npy((2,))[:40]]:
        with pytest.raises(UnusableSample, match="corrupt npy"):
            decode_metadata(fields(npy=content))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 10_000_000


def test_a_wrong_number_of_shards_takes_no_time(tmp_path):
    write_shard(tmp_path / "test" / "0.tar", [pair(0)])
    (tmp_path / "test" / "nshards.txt").write_text("1000000000")
    with pytest.raises(FileNotFoundError, match=r"lacks 999999999 of .*first is 1\.tar"):
        shards_of_test(tmp_path)
