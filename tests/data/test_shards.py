"""What is read from a tar file, and what is refused."""

import gzip
import io
import tarfile
from pathlib import Path

import pytest
from tests.data.tar_files import pair, picture, write_shard

from drrho.data.reading.shards import (
    RawSample,
    UnusableSample,
    decode_caption,
    decode_image,
    decode_metadata,
    parse_sample,
    read_shard,
)


def sample(**fields):
    return RawSample(key="k", row=0, fields=fields)


def test_every_sample_comes_in_tar_order_whatever_it_lacks(tmp_path):
    rows = [pair(0), {"txt": b""}, {"cls": b"3", "jpg": b"junk"}, pair(1)]
    read = list(read_shard(str(write_shard(tmp_path / "a.tar", rows))))
    assert [s.fields for s in read] == rows
    assert [s.row for s in read] == [0, 1, 2, 3]
    assert [s.key for s in read] == ["000000", "000001", "000002", "000003"]


def test_reads_what_webdataset_writes():
    """A file that the TarWriter of webdataset 1.0.2 wrote, one extension in upper case."""
    first, second = read_shard(str(Path(__file__).with_name("written_by_webdataset.tar")))
    assert decode_caption(first) == "words"
    assert decode_image(first).size == (32, 32)
    assert decode_metadata(first) == {"a": 1}
    assert decode_metadata(second) == {"cls": 7}
    assert second.key == "folder/z"


def test_an_empty_tar_has_no_samples(tmp_path):
    assert list(read_shard(str(write_shard(tmp_path / "a.tar", [])))) == []


def test_a_shard_cut_anywhere_is_an_error_that_names_it(tmp_path):
    whole = write_shard(tmp_path / "whole.tar", [pair(0), pair(1)])
    with tarfile.open(whole) as tar:
        end = max(m.offset_data + m.size for m in tar.getmembers())
    cut = tmp_path / "cut.tar"
    for length in range(0, end, 256):  # tar counts in blocks of 512: in them and between them
        cut.write_bytes(whole.read_bytes()[:length])
        with pytest.raises(ValueError, match=r"cut\.tar cannot be read"):
            list(read_shard(str(cut)))


def test_no_tar_and_repeated_files_are_errors_that_name_the_shard(tmp_path):
    path = tmp_path / "odd.tar"
    whole = write_shard(tmp_path / "whole.tar", [pair(0)]).read_bytes()
    for content in (b"<html>404</html>" * 99, gzip.compress(whole)):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"odd\.tar cannot be read.*uncompressed"):
            list(read_shard(str(path)))
    with tarfile.open(path, "w") as tar:
        for _ in range(2):
            tar.addfile(tarfile.TarInfo("a.txt"))
    with pytest.raises(ValueError, match=r"odd\.tar cannot be read.*duplicate"):
        list(read_shard(str(path)))
    with pytest.raises(FileNotFoundError, match=r"gone\.tar does not exist.*drrho index"):
        list(read_shard(str(tmp_path / "gone.tar")))


def test_a_url_is_never_run_as_a_command(tmp_path):
    with pytest.raises(FileNotFoundError, match="does not exist"):
        list(read_shard(f"pipe:touch {tmp_path / 'ran'}"))
    assert not (tmp_path / "ran").exists()


def test_members_outside_the_folder_are_samples_and_nothing_is_written(tmp_path, monkeypatch):
    (tmp_path / "in" / "side").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "in" / "side")
    names = ["/etc/passwd.txt", "../outside.txt", "link.txt", "inside.txt"]
    with tarfile.open("a.tar", "w") as tar:
        for name in names:
            member = tarfile.TarInfo(name)
            member.size = 4
            if name == "link.txt":
                member.type, member.linkname, member.size = tarfile.SYMTYPE, "/etc/passwd", 0
            tar.addfile(member, io.BytesIO(b"text"))
    assert [s.key for s in read_shard("a.tar")] == ["/etc/passwd", "../outside", "inside"]
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["a.tar", "in", "side"]


def test_a_sample_is_read_at_its_place(tmp_path):
    """Also behind long names, folders and files about the shard."""
    long = "folder/" * 30 + "x"
    with tarfile.open(tmp_path / "a.tar", "w", format=tarfile.PAX_FORMAT) as tar:
        folder = tarfile.TarInfo("folder")
        folder.type = tarfile.DIRTYPE
        tar.addfile(folder)
        for name, content in (
            *(("a.txt", b"one"), ("a.jpg", picture(1)), ("__index__", b"?")),
            *((f"{long}.txt", b"two"), (f"{long}.json", b"{}"), ("b.cls", b"3")),
        ):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    content = (tmp_path / "a.tar").read_bytes()
    read = list(read_shard(str(tmp_path / "a.tar")))
    assert [s.key for s in read] == ["a", long, "b"]
    for expected in read:
        start, end = expected.span
        found = parse_sample(content[start:end], row=expected.row)
        assert found is not None
        assert (found.key, found.row, found.fields) == (
            expected.key,
            expected.row,
            expected.fields,
        )
    assert parse_sample(content[start + 512 : end], row=2) is None
    assert parse_sample(content[:end], row=0) is None, "three samples are not one"


@pytest.mark.parametrize(
    ("fields", "reason"),
    [({}, "no caption"), ({"txt": b"\n "}, "empty caption"), ({"txt": b"\xff"}, "corrupt caption")],
)
def test_a_caption_that_says_nothing_is_no_caption(fields, reason):
    with pytest.raises(UnusableSample) as caught:
        decode_caption(sample(**fields))
    assert caught.value.reason == reason


@pytest.mark.parametrize("fields", [{"json": b"{"}, {"json": b"[1]"}, {"cls": b"cat"}])
def test_damaged_metadata_are_unusable(fields):
    with pytest.raises(UnusableSample, match="corrupt"):
        decode_metadata(sample(**fields))
