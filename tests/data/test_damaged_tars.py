"""Tar files that are damaged, cut, joined or made to harm: refused, with the place of the fault."""

import io
import random
import re
import tarfile
import tracemalloc

import pytest
from tests.data.tar_files import pair, picture, write_files, write_shard

from drrho.data.index import IndexConfig, write_manifest
from drrho.data.indexing import index_shards
from drrho.data.reading.shards import find_fault, read_shard

FORMATS = {
    "ustar": (tarfile.USTAR_FORMAT, "{}", 0),
    "webdataset": (tarfile.PAX_FORMAT, "{}", 1_700_000_000.25),  # a time with a fraction is pax's
    "long names": (tarfile.GNU_FORMAT, "folder/" * 16 + "{}", 0),
}


def archive(kind, count=4):
    form, name, time = FORMATS[kind]
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=form) as tar:
        for number in range(count):
            for extension, content in pair(number).items():
                member = tarfile.TarInfo(f"{name.format(number)}.{extension}")
                member.size, member.mtime = len(content), time
                tar.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def places_of_headers(content):
    """Every byte that belongs to no file's content or to the padding behind it."""
    with tarfile.open(fileobj=io.BytesIO(content)) as tar:
        members = tar.getmembers()
    ends = [0] + [m.offset_data + -(-m.size // 512) * 512 for m in members]
    return [b for end, m in zip(ends, members, strict=False) for b in range(end, m.offset_data)]


def read(path, content):
    path.write_bytes(content)
    return list(read_shard(str(path)))


def summary(samples):
    return [(sample.key, sample.fields) for sample in samples]


@pytest.mark.parametrize("kind", FORMATS)
def test_a_flipped_bit_in_a_header_is_refused_or_changes_nothing(tmp_path, kind):
    whole = archive(kind)
    right = summary(read(tmp_path / "a.tar", whole))
    generator = random.Random(0)
    refused = []
    for place in generator.sample(places_of_headers(whole), 80):
        damaged = bytearray(whole)
        damaged[place] ^= 1 << generator.randrange(8)
        try:
            samples = read(tmp_path / "a.tar", damaged)
        except ValueError as error:
            refused.append(str(error))
        else:  # names too long for a header have no checksum: their sample falls apart
            assert summary(samples) == right or any(map(find_fault, samples))
    assert len(refused) > 30
    assert all(re.search(r"a\.tar cannot be read: .* byte ", message) for message in refused)


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("length", [512, 4096])
def test_a_hole_over_a_header_is_refused(tmp_path, kind, length):
    whole = archive(kind)
    headers = {place - place % 512 for place in places_of_headers(whole)}
    # A hole that reaches over the last file cannot be told from the zeros that end an archive.
    for start in range(0, max(headers) + 1024 - length, 512):
        damaged = bytearray(whole)
        damaged[start : start + length] = bytes(length)
        if headers & set(range(start, start + length, 512)):
            with pytest.raises(ValueError, match=r"a\.tar cannot be read.* byte "):
                read(tmp_path / "a.tar", damaged)
        else:  # contents have no checksum; the keys are those of all samples
            assert len(read(tmp_path / "a.tar", damaged)) == 4


def test_joined_archives_and_a_missing_rest_are_refused(tmp_path):
    whole = archive("ustar")
    with pytest.raises(ValueError, match=r"end the archive at byte .*, and other bytes follow"):
        read(tmp_path / "a.tar", whole + archive("webdataset"))
    with pytest.raises(ValueError, match="its rest is missing"):
        read(tmp_path / "a.tar", whole + bytes(10 * tarfile.RECORDSIZE))
    assert len(read(tmp_path / "a.tar", whole.ljust(2**20, b"\0"))) == 4, "padded to 1 MiB"


def test_of_a_damaged_shard_no_manifest_is_written(tmp_path):
    whole = archive("ustar")
    (tmp_path / "a.tar").write_bytes(whole[:512] + bytes(4096) + whole[4608:] + whole)
    with pytest.raises(ValueError, match=r"a\.tar cannot be read"):
        write_manifest(IndexConfig(str(tmp_path)))
    assert not (tmp_path / "manifest.json").exists()


def header(**fields):
    member = tarfile.TarInfo("a.jpg")
    for name, value in fields.items():
        setattr(member, name, value)
    return bytearray(member.tobuf(tarfile.GNU_FORMAT))


def with_checksum(block):
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def negative():
    block = header()
    block[124:136] = b"\xff" * 10 + b"\xfe\x00"
    return with_checksum(block)


def pax(records):
    content = b"".join(records)
    block = header(type=tarfile.XHDTYPE, size=len(content))
    return with_checksum(block) + content + bytes(-len(content) % 512) + with_checksum(header())


@pytest.mark.parametrize(
    "content",
    [
        negative(),
        with_checksum(header(size=2**40)),
        with_checksum(header(type=tarfile.GNUTYPE_LONGNAME, size=2**33)),
        with_checksum(header(type=tarfile.GNUTYPE_SPARSE, size=512)),
        with_checksum(header(type=tarfile.GNUTYPE_LONGNAME, size=0)),
        pax([b"19 size=9999999999\n"]),
        pax([b"11 size=-9\n"]),
        pax([b"22 GNU.sparse.major=1\n", b"22 GNU.sparse.minor=0\n"]),
        pax([b"9999999 path=a.jpg\n"]),
        pax([b"0 path=a.jpg\n"]),
        pax([b"16 pbth=b.jpg123\n"]),
        pax([b"12 path=b.jpg"]),
    ],
)
def test_sizes_that_the_archive_does_not_hold_are_refused_at_once(tmp_path, content):
    """Negative, huge and sparse ones: endless loops and gigabytes in other readers."""
    tracemalloc.start()
    with pytest.raises(ValueError, match=r"a\.tar cannot be read: .* byte "):
        read(tmp_path / "a.tar", content + bytes(10_240))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 10_000_000


def test_zeros_in_place_of_image_or_caption_are_no_pair(tmp_path):
    rows = [pair(0) | {"jpg": bytes(900)}, pair(1) | {"txt": bytes(20)}, pair(2)]
    manifest = index_shards(write_shard(tmp_path / "a.tar", rows))
    assert manifest.shards[0].unusable == {0: "empty image", 1: "corrupt caption"}


def test_names_are_utf_8_whatever_the_locale(tmp_path, monkeypatch):
    monkeypatch.setattr(tarfile, "ENCODING", "ascii")
    write_files(tmp_path / "a.tar", [("é.jpg", picture(0)), ("é.txt", b"0")])
    assert [sample.key for sample in read_shard(str(tmp_path / "a.tar"))] == ["é"]
