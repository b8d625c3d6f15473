"""WebDataset shards: the samples of a tar file in order, and how their fields are decoded."""

import io
import json
import re
import tarfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from tarfile import BLOCKSIZE
from typing import Any

import numpy as np
from PIL import Image

from drrho.data.manifest import EMPTY_CAPTION, NO_CAPTION, UNDECODABLE_CAPTION
from drrho.data.reading.images import UnusableSample, decode_image_bytes
from drrho.data.reading.layout import Layout
from drrho.data.reading.remote import Stream
from drrho.data.reading.storage import open_file
from drrho.data.reading.tar import ZERO_BLOCK, TarFile, tar_files
from drrho.data.rows import Files, needed_places
from drrho.runtime.errors import without_secrets
from drrho.runtime.files import parse_json

IMAGE_EXTENSIONS = ("jpg", "jpeg", "png", "webp")
# What images are called that are not read, or that have a dot in their key.
LIKE_IMAGES = frozenset(
    [*IMAGE_EXTENSIONS, "gif", "bmp", "tif", "tiff", "avif", "heic", "jp2", "jxl", "svg"]
)
CAPTION_EXTENSION = "txt"
ANCHOR_EXTENSION = "anchor"  # the text of a pair of texts that is in the place of the image
CONTENTS = (*IMAGE_EXTENSIONS, ANCHOR_EXTENSION)
CAPTIONS_EXTENSION = "captions.json"  # a list of several; the first is the caption in the txt
# The files of a sample that are decoded, beside images that are called otherwise.
DECODED = frozenset(
    [*IMAGE_EXTENSIONS, CAPTION_EXTENSION, CAPTIONS_EXTENSION, "json", "cls", "npy"]
)
META_FILE = re.compile(r"__[^/]*__($|/)")  # about the shard, not part of a sample
FILE_NAME = re.compile(r"((?:.*/)?[^.]+)\.([^/]*)")  # key and extension


@dataclass(frozen=True, kw_only=True)
class RawSample:
    """One sample of a shard, undecoded.

    Attributes:
        key: the name its files share in the tar.
        row: position in the shard, counting every sample, usable or not.
        fields: the bytes of its files by lower-case extension, such as "jpg", "txt" or "cls".
        span: byte range of its files in the shard.
        sizes: bytes of its files by extension, if they follow one another with one header each;
            else None.
        no_image: why it has no image, if it has none.
        upright: whether its image is turned as its EXIF orientation says when it is decoded.
    """

    key: str
    row: int
    fields: dict[str, bytes]
    span: tuple[int, int] = (0, 0)
    sizes: dict[str, int] | None = None
    no_image: str = "no image"
    upright: bool = False

    @property
    def checksum(self) -> int:
        """CRC-32 of key, caption and image, less 2^31: whether they have changed."""
        checksum = zlib.crc32(self.key.encode(errors="surrogateescape"))
        checksum = zlib.crc32(self.fields.get(CAPTION_EXTENSION, b""), checksum)
        checksum = zlib.crc32(self.fields.get(CAPTIONS_EXTENSION, b""), checksum)
        return zlib.crc32(image_bytes(self) or b"", checksum) - 2**31


def read_shard(url: str) -> Iterator[RawSample]:
    """Read every sample of a shard, in the order of the tar file.

    Args:
        url: local path or fsspec URL of an uncompressed tar file in the WebDataset layout.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is no tar, is truncated, or holds a file twice.
    """
    try:
        with closing(open_file(url)) as stream:
            yield from _samples(stream)
    except FileNotFoundError:
        raise FileNotFoundError(
            f"shard {without_secrets(url)} does not exist. If the data moved, run `drrho index` "
            "again"
        ) from None
    except ConnectionError:
        raise
    except Exception as error:  # of any file system
        raise ValueError(
            f"shard {without_secrets(url)} cannot be read: {error or type(error).__name__}. A "
            "shard is a complete, uncompressed tar file that holds each file once; fetch or write "
            "it again"
        ) from error


def parse_sample(content: bytes, *, row: int) -> RawSample | None:
    """Parse the sample in a byte range of a tar file; None if it is not exactly one sample."""
    try:
        samples = list(_samples(io.BytesIO(content + ZERO_BLOCK)))
    except ValueError:
        return None
    return replace(samples[0], row=row) if len(samples) == 1 else None


def read_range(
    files: Files, layout: Layout | None
) -> tuple[int, list[tuple[str, int, int]]] | None:
    """Return how many bytes of a sample are read, and the places of what is decoded of it.

    None where there is no image: what there is instead is found by parsing all.
    """
    image = None if layout is None else layout.image
    wanted = DECODED if image is None else DECODED | {image}
    images = IMAGE_EXTENSIONS if image is None else (image,)
    places = needed_places(files, wanted)
    if not any(extension in images for extension, _, _ in places):
        return None
    return places[-1][2], places


def cut_sample(content: bytes, places: list[tuple[str, int, int]], *, row: int) -> RawSample | None:
    """Cut the files of a sample out of its bytes; None if a header has another size.

    The key is taken from the first header.
    """
    fields = {}
    for extension, start, end in places:
        size = content[start - BLOCKSIZE + 124 : start - BLOCKSIZE + 135]
        if not size.isdigit() or int(size, 8) != end - start or len(content) < end:
            return None
        fields[extension] = content[start:end]
    name = content[:100].partition(b"\0")[0]
    if prefix := content[345:500].partition(b"\0")[0]:
        name = prefix + b"/" + name
    found = FILE_NAME.fullmatch(name.decode(errors="surrogateescape"))
    return None if found is None else RawSample(key=found[1], row=row, fields=fields)


def write_sample(tar: tarfile.TarFile, sample: Mapping[str, bytes | str]) -> None:
    """Append the files of a sample: `__key__`, and contents by extension. Equal samples give equal
    bytes.
    """
    for extension, content in sorted(sample.items()):
        if extension != "__key__":
            data = content.encode() if isinstance(content, str) else content
            member = tarfile.TarInfo(f"{sample['__key__']}.{extension}")
            member.size, member.mode = len(data), 0o444
            member.uname = member.gname = "drrho"
            tar.addfile(member, io.BytesIO(data))


def _samples(stream: Stream) -> Iterator[RawSample]:
    """Group consecutive files whose names differ in the extension alone.

    Names are keys, not paths: nothing is ever written under them.
    """
    row = 0
    files: list[TarFile] = []
    fields: dict[str, bytes] = {}
    key = None
    for file in tar_files(stream):
        name = FILE_NAME.fullmatch(file.name)
        if name is None or META_FILE.match(file.name):
            continue
        extension = name[2].lower()
        if name[1] != key:
            if key is not None:
                yield _sample(key, row, fields, files)
                row += 1
            key, fields, files = name[1], {}, []
        if extension in fields:
            raise ValueError(f"duplicate file {file.name} at byte {file.start:,}")
        fields[extension] = file.content
        files.append(file)
    if key is not None:
        yield _sample(key, row, fields, files)


def _sample(key: str, row: int, fields: dict[str, bytes], files: list[TarFile]) -> RawSample:
    end = files[0].start
    for file in files:
        # Another header, such as a long name's, or another file in between.
        if file.start != end or file.at != file.start + BLOCKSIZE:
            sizes = None
            break
        end = file.end
    else:
        sizes = {extension: len(content) for extension, content in fields.items()}
    return RawSample(
        key=key, row=row, fields=fields, span=(files[0].start, files[-1].end), sizes=sizes
    )


def image_bytes(sample: RawSample) -> bytes | None:
    """Return the encoded image, or the anchor of a pair of texts; None if there is none."""
    for extension in CONTENTS:
        if extension in sample.fields:
            return sample.fields[extension]
    return None


def find_fault(sample: RawSample) -> str | None:
    """Say why the sample is no image-caption pair, without decoding it; None if it is one."""
    content = image_bytes(sample)
    if content is None:
        return _missing_image(sample)
    if not content.strip(b"\0"):  # zeros are what a download with holes has
        return "empty image"
    try:
        if ANCHOR_EXTENSION in sample.fields:
            decode_image(sample)
        decode_caption(sample)
    except UnusableSample as unusable:
        return unusable.reason
    return None


def renamed(sample: RawSample, layout: Layout) -> RawSample:
    """Call the image and the caption of a sample in a tar file what others call them."""
    fields = dict(sample.fields)
    if layout.image is not None:
        image = fields.get(layout.image)
        fields = {name: content for name, content in fields.items() if name not in IMAGE_EXTENSIONS}
        if image is not None:
            fields[IMAGE_EXTENSIONS[0]] = image
    if layout.caption is not None:
        fields.pop(CAPTION_EXTENSION, None)
        fields.pop(CAPTIONS_EXTENSION, None)
        with suppress(UnusableSample):
            fields |= caption_fields(_texts_in_json(sample, layout.caption))
    return replace(sample, fields=fields)


def _texts_in_json(sample: RawSample, field: str) -> list[str]:
    found = decode_metadata(replace(sample, fields={"json": sample.fields.get("json", b"{}")}))
    return texts_of(found, field)


def texts_of(found: Mapping[str, Any], field: str) -> list[str]:
    """Return the text, or the list of texts, in a field of a JSON object; empty if it has none."""
    texts = found.get(field)
    texts = texts if isinstance(texts, list) else [texts]
    return [text for text in texts if isinstance(text, str)]


def caption_fields(captions: list[str]) -> dict[str, bytes]:
    """Encode captions as the files that a sample in a tar file has."""
    fields: dict[str, bytes] = {}
    if captions:
        fields[CAPTION_EXTENSION] = captions[0].encode(errors="surrogateescape")
    if len(captions) > 1:
        fields[CAPTIONS_EXTENSION] = json.dumps(captions).encode()
    return fields


def _missing_image(sample: RawSample) -> str:
    """Say why a sample has no image, with the files of it that look like one."""
    others = [e for e in sorted(sample.fields) if e.rpartition(".")[2] in LIKE_IMAGES]
    return f"{sample.no_image}, but .{', .'.join(others[:3])}" if others else sample.no_image


def decode_image(sample: RawSample, *, at_least: int | None = None) -> Image.Image | str:
    """Decode the image of a sample, as `decode_image_bytes`; UnusableSample if there is none.

    Of a pair of texts it is the anchor, without white space around it.
    """
    content = image_bytes(sample)
    if content is None:
        raise UnusableSample(_missing_image(sample))
    if ANCHOR_EXTENSION in sample.fields:
        return _decode_anchor(content)
    return decode_image_bytes(content, at_least=at_least, upright=sample.upright)


def _decode_anchor(content: bytes) -> str:
    try:
        anchor = content.decode().strip()
    except ValueError as error:
        raise UnusableSample("undecodable anchor") from error
    if not anchor:
        raise UnusableSample("empty anchor")
    return anchor


def decode_caption(sample: RawSample) -> str:
    """Decode the first caption of the sample; errors as `decode_captions`."""
    return decode_captions(sample)[0]


def decode_captions(sample: RawSample) -> list[str]:
    """Decode the captions in captions.json, or the one in txt, without white space around them.

    Raises:
        UnusableSample: there is none, all are empty, or they are no UTF-8 text or list of texts.
    """
    one, several = (sample.fields.get(e) for e in (CAPTION_EXTENSION, CAPTIONS_EXTENSION))
    if one is None and several is None:
        raise UnusableSample(NO_CAPTION)
    try:
        captions = [(one or b"").decode()] if several is None else parse_json(several)
        if not isinstance(captions, list) or not all(isinstance(c, str) for c in captions):
            raise ValueError("captions.json must be a list of texts")
        if b"\0" in "".join(captions).encode():  # half of a surrogate pair is no text
            raise ValueError("a caption has a NUL character, as of a download with holes")
    except ValueError as error:
        raise UnusableSample(UNDECODABLE_CAPTION) from error
    captions = [caption.strip() for caption in captions if caption.strip()]
    if not captions:
        raise UnusableSample(EMPTY_CAPTION)
    return captions


def decode_metadata(sample: RawSample) -> dict:
    """Decode the object in the sample's json file; empty if there is none.

    The class index in its cls file is added as "cls", and the list of numbers in its npy file
    (such as the groups that it belongs to) as "npy".

    Raises:
        UnusableSample: the json is no object, the cls no whole number, or the npy no row of
            numbers.
    """
    try:
        metadata: Any = parse_json(sample.fields.get("json", b"{}"))
    except ValueError as error:
        raise UnusableSample("corrupt json") from error
    if not isinstance(metadata, dict):
        raise UnusableSample("corrupt json")
    if "cls" in sample.fields:
        try:
            metadata["cls"] = int(sample.fields["cls"])
        except ValueError as error:
            raise UnusableSample("corrupt class index") from error
    if "npy" in sample.fields:
        metadata["npy"] = _decode_numbers(sample.fields["npy"])
    return metadata


def _decode_numbers(content: bytes) -> list[int | float]:
    """Read a row of numbers; nothing is unpickled, and no more allocated than there is."""
    stream = io.BytesIO(content)
    try:
        version = np.lib.format.read_magic(stream)
        read_header = {
            (1, 0): np.lib.format.read_array_header_1_0,
            (2, 0): np.lib.format.read_array_header_2_0,
        }[version]
        (length,), _, dtype = read_header(stream)
        if dtype.kind not in "buif" or length * dtype.itemsize != len(content) - stream.tell():
            raise ValueError("the header does not fit the content")
    except (ValueError, KeyError, OSError) as error:
        raise UnusableSample("corrupt npy") from error
    return np.frombuffer(content, dtype, offset=stream.tell()).tolist()
