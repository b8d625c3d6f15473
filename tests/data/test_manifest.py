"""Ids, hashes, and the file that holds them."""

import json
import os
import shutil

import fsspec
import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.data.tar_files import (
    UNUSABLE,
    pair,
    picture,
    real_data,
    with_broken_image,
    without_caption,
    write_files,
    write_flawed_set,
    write_shard,
)

from drrho.data import indexing
from drrho.data.indexing import index_shards, open_manifest, resolve_shards
from drrho.data.manifest import Manifest, Shard
from drrho.data.reading.cache import OpenShards
from drrho.data.reading.storage import expand_braces


def index_of(tmp_path, rows, *, first_key=0):
    return index_shards(write_shard(tmp_path / "s.tar", rows, first_key=first_key)).shards[0]


def test_rows_count_every_sample_and_ids_follow(tmp_path):
    manifest = index_shards(write_flawed_set(tmp_path))
    assert manifest.offsets == [0, 5, 11, 11, 15]
    assert manifest.num_samples == 15
    located = [manifest.locate(sample_id) for sample_id in range(15)]
    rows = [(s, row) for s, shard in enumerate(manifest.shards) for row in range(shard.num_samples)]
    assert located == rows
    unusable = {
        manifest.offsets[s] + row: reason
        for s, shard in enumerate(manifest.shards)
        for row, reason in shard.unusable.items()
    }
    assert unusable == UNUSABLE
    assert manifest.usable_ids().tolist() == sorted(set(range(15)) - UNUSABLE.keys())


def test_an_id_outside_is_an_error(tmp_path):
    manifest = index_shards(write_flawed_set(tmp_path))
    for sample_id in (-1, 15):
        with pytest.raises(IndexError, match=str(sample_id)):
            manifest.locate(sample_id)


def test_ids_do_not_depend_on_what_is_usable(tmp_path):
    good = index_shards(write_shard(tmp_path / "good.tar", [pair(0), pair(1), pair(2)]))
    rows = [pair(0), without_caption(1), pair(2)]
    flawed = index_shards(write_shard(tmp_path / "flawed.tar", rows))
    assert flawed.offsets == good.offsets
    assert flawed.usable_ids().tolist() == [0, 2]


def test_of_samples_with_one_key_the_first_counts(tmp_path):
    """Also where the files of a sample are apart, and make two."""
    files = [("a.jpg", picture(0)), ("a.txt", b"0"), ("b.jpg", picture(1)), ("b.txt", b"1")]
    again = [("a.jpg", picture(2)), ("a.txt", b"2"), ("c.jpg", picture(3)), ("c.txt", b"3")]
    shard = index_shards(write_files(tmp_path / "twice.tar", files + again)).shards[0]
    assert shard.num_samples == 4
    assert shard.unusable == {2: "repeated key"}
    apart = index_shards(write_files(tmp_path / "apart.tar", files[0::2] + files[1::2])).shards[0]
    reasons = ["no caption", "no caption", "repeated key", "repeated key"]
    assert apart.unusable == dict(enumerate(reasons))
    one_in_each = [write_shard(tmp_path / "set" / f"{n}.tar", [pair(n)]) for n in range(2)]
    manifest = index_shards(one_in_each[0].parent)
    assert manifest.usable_ids().tolist() == [0, 1], "keys of shards are on their own"


def test_images_of_one_name_in_a_folder_are_two_samples(tmp_path):
    for name in ("a.jpg", "a.jpeg"):
        (tmp_path / name).write_bytes(picture(0))
    (tmp_path / "a.txt").write_text("both")
    assert index_shards(tmp_path).usable_ids().tolist() == [0, 1]


def test_where_labels_are_scored_a_missing_caption_does_not_matter(tmp_path):
    rows = [{"jpg": picture(0), "cls": b"1"}, {"cls": b"1"}, {"jpg": picture(2), "txt": b" "}]
    manifest = index_shards(write_shard(tmp_path / "a.tar", rows))
    assert manifest.usable_ids().tolist() == []
    assert manifest.usable_ids(with_captions=False).tolist() == [0, 2]


def test_hashes_tell_order_and_contents(tmp_path):
    shard = index_of(tmp_path, [pair(0), pair(1)])
    assert index_of(tmp_path, [pair(0), pair(1)]).contents == shard.contents
    assert index_of(tmp_path, [pair(0), pair(1)], first_key=1).keys_sha256 != shard.keys_sha256
    swapped = index_of(tmp_path, [pair(1), pair(0)])
    assert swapped.keys_sha256 == shard.keys_sha256  # keys are mere counters here
    assert swapped.content_sha256 != shard.content_sha256
    other_caption = index_of(tmp_path, [pair(0), pair(1) | {"txt": b"another"}])
    assert other_caption.content_sha256 != shard.content_sha256
    more_metadata = index_of(tmp_path, [pair(0), pair(1) | {"npy": b"1"}])
    assert more_metadata.contents == shard.contents


def test_hashes_are_unambiguous_about_where_a_field_ends(tmp_path):
    one = index_of(tmp_path, [{"jpg": b"ab", "txt": b"c"}])
    other = index_of(tmp_path, [{"jpg": b"a", "txt": b"bc"}])
    assert one.content_sha256 != other.content_sha256
    nothing, absent = (
        index_of(tmp_path, [{"jpg": b"", "txt": b"c"}]),
        index_of(tmp_path, [{"txt": b"c"}]),
    )
    assert nothing.content_sha256 != absent.content_sha256


def test_a_saved_manifest_moves_with_its_folder(tmp_path):
    manifest = index_shards(write_flawed_set(tmp_path / "here" / "shards"))
    manifest.save(tmp_path / "here" / "shards" / ".." / "manifest.json")
    assert Manifest.load(tmp_path / "here" / "manifest.json") == manifest
    shutil.move(tmp_path / "here", tmp_path / "there")
    moved = open_manifest(tmp_path / "there" / "manifest.json")
    assert [shard.contents for shard in moved.shards] == [s.contents for s in manifest.shards]
    assert all(os.path.exists(shard.url) for shard in moved.shards)


def test_shards_elsewhere_are_named_absolutely(tmp_path):
    manifest = index_shards(write_flawed_set(tmp_path / "shards"))
    (tmp_path / "lists").mkdir()
    manifest.save(tmp_path / "lists" / "manifest.json")
    assert Manifest.load(tmp_path / "lists" / "manifest.json") == manifest


def test_an_interrupted_save_leaves_the_old_file_and_no_other(tmp_path, monkeypatch):
    manifest = index_shards(write_flawed_set(tmp_path))
    path = tmp_path / "lists" / "manifest.json"
    path.parent.mkdir()
    manifest.save(path)
    before = path.read_bytes()

    def crash(descriptor):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", crash)
    with pytest.raises(KeyboardInterrupt):
        Manifest(shards=manifest.shards[:1]).save(path)
    assert path.read_bytes() == before
    assert Manifest.load(path) == manifest
    names = os.listdir(path.parent)
    assert len(names) == 2, "the manifest and its rows"
    assert path.name in names


def test_a_crash_between_its_two_files_leaves_the_old_manifest(tmp_path, monkeypatch):
    manifest = index_shards(write_flawed_set(tmp_path))
    path = tmp_path / "lists" / "manifest.json"
    manifest.save(path)

    def crash(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("drrho.data.manifest.write_checked_json", crash)
        with pytest.raises(KeyboardInterrupt):
            Manifest(shards=manifest.shards[:1]).save(path)
    assert Manifest.load(path) == manifest
    Manifest(shards=manifest.shards[:1]).save(path)
    assert len(os.listdir(path.parent)) == 2


def test_rows_that_stayed_behind_are_missed(tmp_path):
    path = tmp_path / "manifest.json"
    index_shards(write_flawed_set(tmp_path)).save(path)
    next(tmp_path.glob("manifest.rows-*")).unlink()
    with pytest.raises(FileNotFoundError, match=r"manifest\.json is incomplete.*rows.*moves"):
        Manifest.load(path)


def test_where_samples_lie_is_saved(tmp_path):
    manifest = index_shards(write_flawed_set(tmp_path))
    manifest.save(tmp_path / "manifest.json")
    for ours, theirs in zip(
        Manifest.load(tmp_path / "manifest.json").shards, manifest.shards, strict=True
    ):
        assert all(map(torch.equal, ours.spans, theirs.spans))


@pytest.mark.parametrize("workers", [0, 2])
def test_only_what_changed_is_indexed_again(tmp_path, monkeypatch, workers):
    first = index_shards(write_flawed_set(tmp_path))
    write_shard(tmp_path / "train-1.tar", [pair(n) for n in range(3)])
    os.utime(tmp_path / "train-3.tar", ns=(0, 0))
    write_shard(tmp_path / "train-4.tar", [pair(7)])
    read = []
    original = indexing.read_shard
    monkeypatch.setattr(indexing, "read_shard", lambda u: read.append(u) or original(u))
    again = index_shards(tmp_path, known=first, workers=workers)
    if workers == 0:
        assert [os.path.basename(url) for url in read] == [f"train-{n}.tar" for n in (1, 3, 4)]
    assert again == index_shards(tmp_path)


def test_shards_behind_a_url_are_read_in_place(tmp_path):
    local = index_shards(write_flawed_set(tmp_path))
    memory = fsspec.filesystem("memory")
    memory.rm("/", recursive=True)
    for path in tmp_path.glob("*.tar"):
        memory.pipe(f"/set/{path.name}", path.read_bytes())
    for source in ("memory://set", "memory://set/*.tar", "memory://set/train-{0..3}.tar"):
        remote = index_shards(source)
        assert [s.contents for s in remote.shards] == [s.contents for s in local.shards]
    remote.save(tmp_path / "remote.json")
    opened = Manifest.load(tmp_path / "remote.json")
    assert opened.shards[0].url.startswith("memory://")
    ids = [14, 0, 6, 5]
    samples = [OpenShards(manifest).read(ids) for manifest in (local, opened)]
    assert [s.fields for s in samples[0]] == [s.fields for s in samples[1]]
    memory.rm("/set/train-3.tar")
    with pytest.raises(FileNotFoundError, match=r"train-3.tar does not exist"):
        OpenShards(opened).read(ids)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda d: "{", "not JSON"),
        (lambda d: "[]", "not a manifest"),
        (lambda d: json.dumps(d | {"format": "other"}), "not a manifest"),
        (lambda d: json.dumps(d | {"version": 99}), "version 99"),
        (lambda d: json.dumps({k: d[k] for k in d if k != "shards"}), "damaged"),
        (lambda d: json.dumps(d | {"shards": [d["shards"][0] | {"num_samples": "x"}]}), "damaged"),
        (lambda d: json.dumps(d | {"shards": [d["shards"][0] | {"unusable": {9: ""}}]}), "damaged"),
        (lambda d: json.dumps(d | {"shards": d["shards"][:1] * 2}), "more than once"),
    ],
)
def test_a_manifest_that_is_none_names_the_file_and_the_remedy(tmp_path, damage, message):
    path = tmp_path / "manifest.json"
    index_shards(write_flawed_set(tmp_path)).save(path)
    path.write_text(damage(json.loads(path.read_text())))
    with pytest.raises(ValueError, match=rf"manifest\.json.*{message}.*drrho index") as caught:
        Manifest.load(path)
    assert "\n" not in str(caught.value)


def test_a_missing_manifest_names_the_remedy(tmp_path):
    with pytest.raises(FileNotFoundError, match="drrho index"):
        open_manifest(tmp_path / "manifest.json")


def test_shards_are_found_by_folder_file_glob_and_braces(tmp_path, monkeypatch):
    write_flawed_set(tmp_path)
    names = [f"train-{i}.tar" for i in range(4)]

    def found(source):
        return [os.path.relpath(path, tmp_path) for path in resolve_shards(source)]

    assert found(tmp_path) == names
    assert found(str(tmp_path)) == names
    assert found(f"{tmp_path}/train-2.tar") == names[2:3]
    assert found(f"{tmp_path}/train-[13].tar") == [names[1], names[3]]
    assert found(f"{tmp_path}/train-{{3,0}}.tar") == [names[3], names[0]]
    assert found(f"{tmp_path}/train-{{0..3}}.tar") == names
    monkeypatch.chdir(tmp_path)
    assert resolve_shards("train-0.tar") == [str(tmp_path / "train-0.tar")]


@pytest.mark.parametrize(
    ("pattern", "expanded"),
    [
        ("x-{0008..10}.tar", ["x-0008.tar", "x-0009.tar", "x-0010.tar"]),
        ("{a,b}{2..1}", ["a2", "a1", "b2", "b1"]),
        ("p{2.{5..6},3.{0,1}}", ["p2.5", "p2.6", "p3.0", "p3.1"]),
        ("{0..9..4}{a..c..2}", ["0a", "0c", "4a", "4c", "8a", "8c"]),
        ("{,.x},{one}{}", [",{one}{}", ".x,{one}{}"]),
        ("{-1..01}", ["-1", "00", "01"]),
        ("", [""]),
    ],
)
def test_braces_expand_as_bash_expands_them(pattern, expanded):
    assert expand_braces(pattern) == expanded


@pytest.mark.parametrize("pattern", ["a{0..1", "a}b{c", "{a,{b}"])
def test_unbalanced_braces_are_an_error(pattern):
    with pytest.raises(ValueError, match="unbalanced braces"):
        expand_braces(pattern)


def test_what_is_not_there_is_an_error_that_names_it(tmp_path):
    for source in (tmp_path, tmp_path / "*.tar"):
        with pytest.raises(FileNotFoundError, match="no shards found at"):
            resolve_shards(source)
    for source in ("memory://nowhere/a.tar", "memory://nowhere/{0..2}.tar"):
        with pytest.raises(FileNotFoundError, match="does not exist"):
            resolve_shards(source)
    with pytest.raises(ValueError, match="cannot read nonsense://a.tar.*fsspec"):
        resolve_shards("nonsense://a.tar")
    write_flawed_set(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"train-4\.tar, which does not exist"):
        resolve_shards(f"{tmp_path}/train-{{0..4}}.tar")


def test_a_shard_named_twice_is_an_error(tmp_path):
    write_flawed_set(tmp_path)
    with pytest.raises(ValueError, match=r"train-0\.tar occurs more than once"):
        index_shards(f"{tmp_path}/train-{{0,0}}.tar")


def test_a_set_without_a_sample_is_an_error(tmp_path):
    write_shard(tmp_path / "a.tar", [])
    with pytest.raises(ValueError, match="no sample"):
        index_shards(tmp_path)


def test_an_unusable_row_outside_the_shard_is_an_error():
    with pytest.raises(ValueError, match=r"a\.tar has 3 samples"):
        Shard(url="a.tar", num_samples=3, keys_sha256="", content_sha256="", unusable={3: "x"})


def test_indexing_decodes_no_image(tmp_path):
    manifest = index_shards(write_shard(tmp_path / "a.tar", [with_broken_image(0), pair(1)]))
    assert torch.equal(manifest.usable_ids(), torch.tensor([0, 1]))


def test_real_sets_have_the_counts_of_their_description():
    assert index_shards(real_data("openstax-figures") / "val-0000.tar").usable_ids().numel() == 1000
    eurosat = index_shards(real_data("classification/eurosat/train"))
    assert len(eurosat.usable_ids()) == 0
    assert len(eurosat.usable_ids(with_captions=False)) == 1000


def test_a_changed_value_is_noticed_and_may_be_meant(tmp_path):
    path = tmp_path / "manifest.json"
    manifest = index_shards(write_flawed_set(tmp_path))
    manifest.save(path)
    text = path.read_text()
    path.write_text(text.replace('"weight": 1.0', '"weight": 3.0', 1))
    with pytest.raises(ValueError, match=r"manifest\.json is damaged \(it has changed since"):
        Manifest.load(path)
    document = json.loads(path.read_text())
    del document["sha256"]
    path.write_text(json.dumps(document))
    assert Manifest.load(path).shards[0].weight == 3.0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"shards": {}}, "its shards must be a list"),
        ({"shards": ["a.tar"]}, r"shards\[0\] must be an object"),
        ({"url": 3}, r"shards\[0\]\.url must be a str, got 3"),
        ({"num_samples": 5.0}, r"shards\[0\]\.num_samples must be a int, got 5\.0"),
        ({"num_samples": -5}, "cannot be -5"),
        ({"num_samples": 10**18}, r"has 15 rows, and its shards 10{15}"),
        ({"weight": "1"}, r"shards\[0\]\.weight must be a float, got '1'"),
        ({"weight": float("nan")}, "weight of shard .* must be positive"),
        ({"unusable": [1]}, r"shards\[0\] must be an object with unusable rows"),
        ({"unusable": {"x": "no image"}}, r"shards\[0\]\.unusable has 'x'"),
        ({"unusable": {"1": None}}, r"shards\[0\]\.unusable has '1': None"),
        ({"layout": "table"}, r"shards\[0\]\.layout must be an object"),
        ({"modified": 7}, r"shards\[0\]\.modified must be a str, got 7"),
        ({"more": 7}, r"shards\[0\] has no 'more'"),
        ({"rows": "../manifest.rows"}, "its rows must be a file beside it"),
        ({"rows": "/etc/passwd"}, "its rows must be a file beside it"),
        ({"rows": 5}, "its rows must be a file beside it"),
    ],
)
def test_values_of_other_types_are_named(tmp_path, changes, message):
    path = tmp_path / "manifest.json"
    index_shards(write_flawed_set(tmp_path)).save(path)
    document = json.loads(path.read_text())
    del document["sha256"]
    for name, value in changes.items():
        (document if name in document else document["shards"][0])[name] = value
    path.write_text(json.dumps(document))
    with pytest.raises(ValueError, match=rf"manifest\.json is damaged \(.*{message}"):
        Manifest.load(path)


def test_columns_of_rows_have_one_length_and_their_types(tmp_path):
    path = tmp_path / "manifest.json"
    manifest = index_shards(write_flawed_set(tmp_path))
    manifest.save(path)
    (rows,) = tmp_path.glob("manifest.rows-*")
    columns = load_file(rows)
    for change in ({"size": columns["size"].long()}, {"start": columns["start"][:-1]}):
        save_file(columns | change, rows)
        with pytest.raises(ValueError, match=r"damaged \(.*columns of other types or lengths"):
            Manifest.load(path)
    save_file({"start": columns["start"]}, rows)
    with pytest.raises(ValueError, match=r"damaged \(.* has no "):
        Manifest.load(path)
    save_file(columns | {"size": columns["size"] + 2**30}, rows)
    with pytest.raises(ValueError, match="the manifest of .* places a sample at bytes"):
        OpenShards(Manifest.load(path)).read([0])
