"""Strict reading of tar files: what is not whole is an error that names the place.

Single headers are parsed by the standard library; which of them follow one another is decided
here, because `tarfile` takes a damaged header, a hole of zeros or a second archive for the end.
"""

import os
import re
import tarfile
import zlib
from collections.abc import Callable, Iterator
from tarfile import BLOCKSIZE, TarInfo
from typing import NamedTuple

from drrho.data.reading.remote import Stream

# How the files of other programs begin that are called .tar.
PACKED = {
    b"\x1f\x8b": "gzip",
    b"BZh": "bzip2",
    b"\xfd7zXZ": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"PK": "zip",
}
ZERO_BLOCK = bytes(BLOCKSIZE)
MAX_CONTENT = 2**28  # bytes of one file; the largest image that is decoded has about as many
MAX_EXTENSION = 2**20  # bytes of a long name or of extended attributes
MAX_RECORD = 2**22  # bytes; archives are padded to whole records, of 10,240 bytes as a rule
EXTENSIONS = (tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK)
READ_WHOLE = (*EXTENSIONS, tarfile.XGLTYPE)
WITHOUT_CONTENT = (
    *(tarfile.LNKTYPE, tarfile.SYMTYPE, tarfile.DIRTYPE),
    *(tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE),
)
IN_PARTS = (tarfile.GNUTYPE_SPARSE, b"M")  # a sparse file, and the rest of one in another archive
PAX_RECORD = re.compile(rb"([0-9]{1,7}) ([^=]{1,255})=")
# The keywords of POSIX; keywords of vendors have a dot.
PAX_KEYWORDS = frozenset(
    b"atime charset comment ctime gid gname hdrcharset linkpath mtime path size uid uname".split()
)


# All that follows the name in a header as most programs write it: numbers in octal digits, the type
# of a regular file. Groups: size, checksum, type, prefix of the name. Others take longer to parse.
OCTAL_8 = rb"(?:[0-7]{7}[ \0]|[0-7]{6}[ \0]{2})"
PLAIN_HEADER = re.compile(
    rb"%(o)s{3}([0-7]{11})[ \0][0-7]{11}[ \0]([0-7]{6}[ \0]{2}|[0-7]{7}[ \0])([0\0])"
    rb".{100}.{72}(?:\0{8}|%(o)s){2}([^\0]{0,155})\0" % {b"o": OCTAL_8},
    re.DOTALL,
)
HALF = BLOCKSIZE // 2


class Header(NamedTuple):
    """What is read of a header: name, type and size of a file."""

    name: str
    type: bytes
    size: int


class TarFile(NamedTuple):
    """Regular file in a tar file; `start` of its headers and `end` of its last block in bytes.

    `at` is the place of the content.
    """

    name: str
    content: bytes
    start: int
    at: int
    end: int


def tar_files(
    stream: Stream, *, wanted: Callable[[str], bool] = lambda _name: True
) -> Iterator[TarFile]:
    """Read the regular files of an uncompressed tar file, in order.

    Args:
        wanted: whether a file of this name is read; others have no content.

    Raises:
        ValueError: a header is damaged, a file is sparse, larger than `MAX_CONTENT` or reaches
            over the end, or something other than zeros follows the end of the archive.
    """
    stream.seek(0, os.SEEK_END)
    size = stream.tell()
    stream.seek(0)
    place, start, name, length = 0, None, None, None
    while (block := _read(stream, BLOCKSIZE)) != ZERO_BLOCK:
        header = _plain_header(block) or _header(block, place)
        if length is None:
            length = 0 if header.type in WITHOUT_CONTENT else header.size
        end = place + BLOCKSIZE + -(-length // BLOCKSIZE) * BLOCKSIZE
        is_file = header.type in tarfile.REGULAR_TYPES
        if is_file:
            read = wanted(header.name if name is None else name)
        else:
            read = header.type in READ_WHOLE
        _require_length(header, length, place, left=size - place - BLOCKSIZE, read=read)
        content = _read(stream, length) if read else b""
        start = place if start is None else start
        length = None
        if header.type in EXTENSIONS:
            name, length = _extended(header, content, place, name=name)
        elif header.type == tarfile.XGLTYPE:
            if _pax_records(content, place).keys() & {b"path", b"size"}:
                raise ValueError(f"its global header at byte {place:,} names or sizes all files")
            start = None
        else:
            if is_file:
                at = place + BLOCKSIZE
                yield TarFile(header.name if name is None else name, content, start, at, end)
            start = name = None
        place = end
        stream.seek(place)
    if start is not None:
        raise ValueError(f"its header at byte {start:,} has no file behind it")
    _require_only_zeros(stream, place, size)


def _read(stream: Stream, length: int) -> bytes:
    content = stream.read(length)
    if len(content) < length:
        stream.seek(0, os.SEEK_END)
        raise ValueError(
            f"it ends at byte {stream.tell():,}, within a file or before the zero blocks "
            "that close an archive"
        )
    return content


def _require_length(header: Header, length: int, place: int, *, left: int, read: bool) -> None:
    """Raise unless the archive holds a file's bytes, and they are not too many to be read."""
    if not 0 <= length <= left:
        raise ValueError(
            f"its file {header.name!r} at byte {place:,} should have {length:,} bytes, and "
            f"{left:,} are left"
        )
    most = MAX_CONTENT if header.type in tarfile.REGULAR_TYPES else MAX_EXTENSION
    if read and length > most:
        raise ValueError(
            f"its file {header.name!r} at byte {place:,} has {length:,} bytes, and at most "
            f"{most:,} are read of such a file"
        )


def _plain_header(block: bytes) -> Header | None:
    """Parse the header of a regular file as most programs write it; None for any other."""
    found = PLAIN_HEADER.match(block, 100)
    if found is None:
        return None
    size, checksum, kind, prefix = found.groups()
    # The sum of all bytes, with spaces for the checksum itself. That of up to 257 bytes is the
    # lower half of their Adler-32, less 1.
    total = (zlib.adler32(block[:HALF]) & 0xFFFF) + (zlib.adler32(block[HALF:]) & 0xFFFF) - 2
    if total - sum(block[148:156]) + 8 * ord(" ") != int(checksum.rstrip(b" \0"), 8):
        return None
    name = block[:100].partition(b"\0")[0].decode(errors="surrogateescape")
    if kind == tarfile.AREGTYPE and name.endswith("/"):  # a folder of old programs
        return None
    if prefix:
        name = f"{prefix.decode(errors='surrogateescape')}/{name}"
    return Header(name, kind, int(size, 8))


def _header(block: bytes, place: int) -> Header:
    """Parse any header by the standard library."""
    try:
        header = TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except tarfile.HeaderError as error:
        packed = next((kind for begin, kind in PACKED.items() if block.startswith(begin)), None)
        if place == 0 and packed is not None:
            raise ValueError(f"it is packed ({packed}): unpack it") from error
        raise ValueError(f"the header at byte {place:,} is damaged ({error})") from error
    if header.type in IN_PARTS:
        raise ValueError(f"its file {header.name!r} at byte {place:,} is stored in parts (sparse)")
    return Header(header.name, header.type, header.size)


def _extended(
    header: Header, content: bytes, place: int, *, name: str | None
) -> tuple[str | None, int | None]:
    """Return name and size that an extension header gives the file behind it, if any."""
    if header.type == tarfile.GNUTYPE_LONGLINK:
        return name, None
    if header.type == tarfile.GNUTYPE_LONGNAME:
        if not content.strip(b"\0") or b"\0" in content.rstrip(b"\0"):
            raise ValueError(f"the long name at byte {place:,} is damaged")
        return content.rstrip(b"\0").decode(errors="surrogateescape"), None
    records = _pax_records(content, place)
    if b"path" in records:
        name = records[b"path"].decode(errors="surrogateescape")
    if b"size" not in records:
        return name, None
    if not records[b"size"].isdigit():
        raise ValueError(f"the size in the extended header at byte {place:,} is no number")
    return name, int(records[b"size"])


def _pax_records(content: bytes, place: int) -> dict[bytes, bytes]:
    """Parse the records "LENGTH KEYWORD=VALUE" of an extended header, which fill it."""
    records: dict[bytes, bytes] = {}
    at = 0
    while at < len(content):
        found = PAX_RECORD.match(content, at)
        end = at + int(found[1]) if found else 0
        if found is None or not found.end() < end <= len(content) or content[end - 1] != ord("\n"):
            raise ValueError(f"the extended header at byte {place:,} is damaged")
        if found[2] not in PAX_KEYWORDS and b"." not in found[2]:
            raise ValueError(f"the extended header at byte {place:,} has an unknown {found[2]!r}")
        if found[2].startswith(b"GNU.sparse."):
            raise ValueError(f"the file at byte {place:,} is stored in parts (sparse)")
        records[found[2]] = content[found.end() : end - 1]
        at = end
    return records


def _require_only_zeros(stream: Stream, place: int, size: int) -> None:
    """Raise unless an archive that ends at a place is followed by the zeros that fill its record.

    The longest possible record is the largest power of two that divides the size, because whole
    records are written.
    """
    record = max(tarfile.RECORDSIZE, min(size & -size, MAX_RECORD))
    stream.seek(place)
    at = place
    while content := stream.read(min(MAX_EXTENSION, size - at)):
        if rest := len(content.lstrip(b"\0")):
            raise ValueError(
                f"zeros end the archive at byte {place:,}, and other bytes follow at byte "
                f"{at + len(content) - rest:,}: it has a hole, or archives were joined by `cat`"
            )
        at += len(content)
        if at - place > 2 * BLOCKSIZE + record:
            break
    if size - place >= 2 * BLOCKSIZE + record:
        raise ValueError(
            f"zeros end the archive at byte {place:,}, and {size - place:,} bytes of zeros are "
            "more than an archive is padded with: its rest is missing"
        )
