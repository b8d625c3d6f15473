"""What an index does with shards that cannot be read, and which folders it takes."""

import gzip
import json
from pathlib import Path

import pytest
from PIL import Image
from tests.data.tar_files import (
    encoded,
    pair,
    picture,
    to_tensor,
    write_files,
    write_shard,
)

from drrho.cli import main
from drrho.data import indexing
from drrho.data.examples import evaluation_batches
from drrho.data.index import IndexConfig, write_manifest
from drrho.data.indexing import index_shards
from drrho.data.manifest import Manifest


@pytest.fixture
def read(monkeypatch):
    """Names of the shards that are read."""
    read = []
    original = indexing.read_shard
    monkeypatch.setattr(indexing, "read_shard", lambda u: read.append(u[-5:]) or original(u))
    return read


@pytest.fixture
def folder(tmp_path):
    """Five shards, of which two are cut."""
    for number in range(5):
        path = write_shard(tmp_path / f"{number}.tar", [pair(number)])
        if number in (1, 3):
            path.write_bytes(path.read_bytes()[:700])
    return tmp_path


def test_all_bad_shards_are_listed_and_the_good_ones_kept(folder, read):
    with pytest.raises(ValueError, match="2 of 5 shards cannot be read") as caught:
        write_manifest(IndexConfig(data=str(folder)))
    for part in ("1.tar cannot be read", "3.tar cannot be read", "--skip-bad-shards", "is kept"):
        assert part in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (folder / "manifest.json").exists()
    assert len(read) == 5
    read.clear()
    for number in (1, 3):
        write_shard(folder / f"{number}.tar", [pair(number)])
    manifest, _ = write_manifest(IndexConfig(data=str(folder)))
    assert read == ["1.tar", "3.tar"]
    assert manifest == index_shards(folder)
    assert not list(folder.glob(".*")), "what was kept is removed at the end"


def test_bad_shards_are_left_out_if_asked_for(folder):
    with pytest.warns(UserWarning, match=r"left out: .*1\.tar cannot be read.*3\.tar cannot be"):
        manifest, path = write_manifest(IndexConfig(data=str(folder), skip_bad_shards=True))
    assert [shard.url[-5:] for shard in manifest.shards] == ["0.tar", "2.tar", "4.tar"]
    assert Manifest.load(path) == manifest


def test_what_was_read_before_an_interruption_is_kept(folder, read, monkeypatch):
    for number in (1, 3):
        (folder / f"{number}.tar").unlink()
    with monkeypatch.context() as patch:
        patch.setattr(indexing, "read_shard", stopping_at("4.tar", indexing.read_shard))
        with pytest.raises(KeyboardInterrupt):
            write_manifest(IndexConfig(data=str(folder)))
    read.clear()
    write_manifest(IndexConfig(data=str(folder)))
    assert read == ["4.tar"]


def stopping_at(name, original):
    def read(url):
        if url.endswith(name):
            raise KeyboardInterrupt
        return original(url)

    return read


def test_links_to_folders_are_followed_and_hidden_folders_left_out(tmp_path):
    for name in ("set/cat", "set/.ipynb_checkpoints", "set/cat/.thumbnails", "elsewhere/dog"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "a.jpg").write_bytes(picture(0))
    (tmp_path / "set" / "cat" / "._a.jpg").write_bytes(b"of another system")
    (tmp_path / "set" / "dog").symlink_to(tmp_path / "elsewhere" / "dog")
    (tmp_path / "set" / "cat" / "up").symlink_to(tmp_path / "set")
    (tmp_path / "set" / "again").symlink_to(tmp_path / "set" / "cat")
    manifest = index_shards(tmp_path / "set")
    assert [shard.url for shard in manifest.shards] == [
        str(tmp_path / "set" / name) for name in ("cat", "dog")
    ]
    assert manifest.num_samples == 2


@pytest.mark.parametrize(
    ("files", "said", "remedy"),
    [
        (["img0.v2.jpg", "img0.v2.txt"], "1 no image, but .v2.jpg", "v2.jpg"),
        (["0.0.jpg", "0.1.jpg", "0.txt"], "1 no image, but .0.jpg, .1.jpg", "0.jpg"),
        (["0.gif", "0.txt", "1.tiff"], "1 no image, but .gif, 1 no image, but .tiff", "gif"),
        (["0.txt"], "1 no image", "v2.jpg"),
    ],
)
def test_where_nothing_is_usable_it_fails_and_says_what_there_is(
    tmp_path, capsys, files, said, remedy
):
    write_files(tmp_path / "a.tar", [(name, b"content") for name in files])
    assert main(["index", str(tmp_path)]) == 1
    message = capsys.readouterr().err
    assert f"is usable ({said})" in message
    assert "KEY.jpg" in message and f"--image-extension {remedy}," in message
    assert not (tmp_path / "manifest.json").exists()


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.tar", gzip.compress(picture(0)), "it is packed (gzip): unpack it"),
        ("a.csv", "image,caption\n0.png,caf\xe9\n".encode("utf-16"), "text in UTF-16; save it as"),
        ("a.csv", b"", "names no columns: it is empty"),
        ("a.jsonl", b"[1, 2]\n", "names no columns: it is empty, or has no objects"),
    ],
)
def test_a_file_that_is_something_else_is_called_by_what_it_is(
    tmp_path, capsys, name, content, said
):
    (tmp_path / name).write_bytes(content)
    assert main(["index", str(tmp_path / name), "--output", str(tmp_path / "m.json")]) == 1
    assert said in capsys.readouterr().err


def test_captions_in_another_encoding_are_said(tmp_path, capsys):
    (tmp_path / "0.png").write_bytes(picture(0))
    (tmp_path / "a.csv").write_bytes("image,caption\n0.png,caf\xe9\n".encode("latin-1"))
    assert main(["index", str(tmp_path / "a.csv"), "--output", str(tmp_path / "m.json")]) == 0
    said = capsys.readouterr().out
    assert (
        "none has a caption (1 corrupt caption): for labels only (texts are read as UTF-8" in said
    )


@pytest.mark.parametrize("name", ["__MACOSX", "@eaDir", ".ipynb_checkpoints"])
def test_copies_that_programs_leave_behind_are_no_classes(tmp_path, name):
    for folder in ("cat", "dog", f"cat/{name}", name):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "0.png").write_bytes(picture(0))
    urls = [Path(shard.url).name for shard in index_shards(tmp_path).shards]
    assert urls == ["cat", "dog"]


@pytest.mark.parametrize("extension", ["v2.jpg", "gif", "0.JPG"])
def test_images_and_captions_of_other_names_are_named(tmp_path, extension):
    grey = encoded(Image.new("RGB", (32, 32), (4, 4, 4)), "GIF")
    files = [
        *(("a." + extension, grey), ("a.1.jpg", picture(9)), ("a.json", b'{"caption": "one"}')),
        *(("b." + extension, picture(1)), ("b.json", b'{"caption": ["two", "zwei"]}')),
        *(("c." + extension, picture(2)), ("c.json", b'{"caption": 5}'), ("c.txt", b"no")),
        *(("d.jpg", picture(3)), ("d.json", b'{"caption": "four"}')),
    ]
    write_files(tmp_path / "a.tar", files)
    config = IndexConfig(data=str(tmp_path), image_extension=extension, caption_field="caption")
    manifest, path = write_manifest(config)
    assert manifest.shards[0].unusable == {2: "no caption", 3: "no image"}
    (batch,) = evaluation_batches(Manifest.load(path), to_tensor, batch_size=4, parts=("caption",))
    assert batch.captions == [["one"], ["two", "zwei"]]
    assert write_manifest(config)[0] == manifest
    assert index_shards(tmp_path).shards[0].contents != manifest.shards[0].contents


def test_an_option_of_tar_files_without_one_is_an_error(tmp_path):
    (tmp_path / "a.csv").write_text("image,caption\n0.jpg,a\n")
    with pytest.raises(ValueError, match="caption_field = 'caption' has no effect"):
        write_manifest(IndexConfig(data=str(tmp_path), caption_field="caption"))


def test_names_of_tables_have_any_case_and_other_files_are_no_damaged_tar_files(tmp_path):
    (tmp_path / "0.jpg").write_bytes(picture(0))
    (tmp_path / "X.CSV").write_text("image,caption\n0.jpg,a\n")
    assert len(index_shards(tmp_path).usable_ids()) == 1
    lines = [{"image": "0.jpg", "caption": ["a", "b"]}, {"image": "0.jpg"}, [], None]
    path = tmp_path / "x.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)) + "\n{\n")
    broken = dict.fromkeys((2, 3, 4), "the line is no JSON object")
    assert index_shards(path).shards[0].unusable == {1: "no caption"} | broken
    for name in ("x.txt", "x.tar.gz", "x.zip", "x.JPG"):
        (tmp_path / name).write_bytes(b"other")
        with pytest.raises(ValueError, match=rf"{name} is neither a tar file nor a table"):
            index_shards(tmp_path / name)


def test_data_for_labels_are_not_called_unusable(tmp_path, capsys):
    write_files(tmp_path / "a.tar", [("0.jpg", picture(0)), ("0.cls", b"1"), ("1.cls", b"2")])
    assert main(["index", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert "2 samples in 1 shards, 1 unusable (1 no image); none has a caption: for labels" in said
