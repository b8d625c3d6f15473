"""WebDataset shards: the samples of a tar file in order, and how their fields are decoded."""

import io
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO

import numpy as np
from PIL import Image, ImageFile
from webdataset.tariterators import group_by_keys, tar_file_expander

from drrho.data.manifest import EMPTY_CAPTION, NO_CAPTION, UNDECODABLE_CAPTION

IMAGE_EXTENSIONS = ("jpg", "jpeg", "png", "webp")
CAPTION_EXTENSION = "txt"


@dataclass(frozen=True, kw_only=True)
class RawSample:
    """One sample of a shard, undecoded.

    Attributes:
        key: the name its files share in the tar.
        row: its place in the shard, counting every sample, usable or not.
        fields: the bytes of its files by lower-case extension, such as "jpg", "txt" or "cls".
    """

    key: str
    row: int
    fields: dict[str, bytes]


class UnusableSample(Exception):
    """A sample lacks, or does not let decode, what was asked of it.

    Attributes:
        reason: a short phrase that is the same for every sample with this fault, to count by.
    """

    def __init__(self, reason: str):
        super().__init__(reason)
        self.reason = reason


def read_shard(url: str) -> Iterator[RawSample]:
    """Every sample of a shard in the order of the tar file.

    Args:
        url: path of an uncompressed tar file in the WebDataset layout.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is no tar, is truncated, or holds a file twice.
    """
    try:
        # Opened here and not by webdataset, which would run a url "pipe:..." as a command.
        with open(url, "rb") as stream:
            files = tar_file_expander([{"url": url, "stream": stream}])
            for row, sample in enumerate(group_by_keys(files)):
                fields = {name: data for name, data in sample.items() if name[:2] != "__"}
                yield RawSample(key=sample["__key__"], row=row, fields=fields)
            _require_end_of_archive(stream)
    except FileNotFoundError:
        raise FileNotFoundError(
            f"shard {url} does not exist; shards are read from local paths. If the data moved, "
            "run `drrho index` again"
        ) from None
    except Exception as error:  # tarfile, zlib, OSError, webdataset: all mean the same here
        raise ValueError(
            f"shard {url} cannot be read: {error.args[0] if error.args else error}. A shard is a "
            "complete, uncompressed tar file that holds each file once; fetch or write it again"
        ) from error


def image_bytes(sample: RawSample) -> bytes | None:
    """The encoded image, or None if the sample has none."""
    for extension in IMAGE_EXTENSIONS:
        if extension in sample.fields:
            return sample.fields[extension]
    return None


def find_fault(sample: RawSample) -> str | None:
    """Why the sample is no image-caption pair, as far as one sees without decoding the image."""
    content = image_bytes(sample)
    if content is None:
        return "no image"
    if not content:
        return "empty image"
    try:
        decode_caption(sample)
    except UnusableSample as unusable:
        return unusable.reason
    return None


def decode_image(sample: RawSample) -> Image.Image:
    """The image in RGB; what is transparent shows white.

    Raises:
        UnusableSample: there is no image, or its bytes do not decode to the last row.
    """
    content = image_bytes(sample)
    if content is None:
        raise UnusableSample("no image")
    # Pillow fills what a truncated file lacks with grey if any library has set this switch.
    tolerant, ImageFile.LOAD_TRUNCATED_IMAGES = ImageFile.LOAD_TRUNCATED_IMAGES, False
    try:
        image = Image.open(io.BytesIO(content))
        image.load()
    except Exception as error:  # its decoders raise OSError, SyntaxError, struct.error, ...
        raise UnusableSample("corrupt image") from error
    finally:
        ImageFile.LOAD_TRUNCATED_IMAGES = tolerant
    try:
        return _to_rgb(image)
    except (ValueError, OSError) as error:  # a palette or transparency that is none
        raise UnusableSample("corrupt image") from error


def decode_caption(sample: RawSample) -> str:
    """The caption, without white space around it.

    Raises:
        UnusableSample: there is none, it is empty, or it is not UTF-8.
    """
    content = sample.fields.get(CAPTION_EXTENSION)
    if content is None:
        raise UnusableSample(NO_CAPTION)
    try:
        caption = content.decode().strip()
    except UnicodeDecodeError as error:
        raise UnusableSample(UNDECODABLE_CAPTION) from error
    if not caption:
        raise UnusableSample(EMPTY_CAPTION)
    return caption


def decode_metadata(sample: RawSample) -> dict:
    """The object in the sample's json file, and under "cls" the class index of its cls file.

    A sample without either gives an empty dict.

    Raises:
        UnusableSample: the json is no object, or the cls no whole number.
    """
    metadata = {}
    if "json" in sample.fields:
        try:
            metadata = json.loads(sample.fields["json"])
        except ValueError as error:
            raise UnusableSample("corrupt json") from error
        if not isinstance(metadata, dict):
            raise UnusableSample("corrupt json")
    if "cls" in sample.fields:
        try:
            metadata["cls"] = int(sample.fields["cls"])
        except ValueError as error:
            raise UnusableSample("corrupt class index") from error
    return metadata


def _require_end_of_archive(stream: IO[bytes]) -> None:
    """Catches a file cut between two members, which tarfile takes for a complete archive."""
    stream.seek(0, os.SEEK_END)
    stream.seek(-min(512, stream.tell()), os.SEEK_END)
    if any(stream.read()):
        raise ValueError("it does not end with the zero block that closes a tar file")


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode == "I" or image.mode.startswith("I;16"):
        # 16-bit greyscale, which Pillow would clip to white above 255.
        grey = (np.asarray(image) // 257).clip(0, 255).astype(np.uint8)
        return Image.fromarray(grey).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        ground = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(ground, image).convert("RGB")
    return image.convert("RGB")
