"""Decoding of images: the one place where bytes become pixels."""

import io
import warnings
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
from PIL import Image, ImageFile, ImageOps, UnidentifiedImageError

Output = TypeVar("Output")

# Pillow reads more formats, some of them with programs (Ghostscript for EPS). What a file is called
# does not matter.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")
# Pillow's own bound, beyond which it only warns: a small file may hold gigabytes of pixels.
MAX_PIXELS = 89_478_485
MAX_ELONGATION = 500  # of the longer side over the shorter, which a transform enlarges to its own
# Decoding may take this much memory, or so many times the size of the file if that is more.
MAX_BYTES, MAX_EXPANSION = 5 * MAX_PIXELS, 200
# Bytes that decoders take for a pixel beside the result.
DECODER_BYTES = {"WEBP": 12, "AVIF": 6, "TIFF": 8}
PROGRESSIVE_BYTES = 6  # libjpeg keeps all coefficients
PIXEL_BYTES = {"1": 1, "L": 1, "P": 1, "I;16": 2, "I;16B": 2, "I;16L": 2}  # others have 4
WHOLE_SIZE = "drrho whole size"  # in the info of an image that may be decoded smaller
ORIENTATION = 0x0112  # EXIF's tag: how an image is to be turned or mirrored before it is shown
# How files that may have the tag begin, what comes before the tag, and within how many bytes.
# Pillow turns TIFF itself.
MAY_BE_TURNED = (
    (b"\xff\xd8", (b"Exif\0\0",), 2**16),
    (b"\x89PNG", (b"eXIf",), None),
    (b"RIFF", (b"EXIF",), None),
    (b"\0\0\0", (b"irot", b"imir"), 2**12),  # AVIF
)
STRIP_PIXELS = 2**20  # transparency is resolved in strips, which take a few copies each

NOT_AN_IMAGE = "corrupt image, or none in the format " + ", ".join(FORMATS)


class UnusableSample(Exception):
    """Error: a part of a sample is missing or cannot be decoded.

    Attributes:
        reason: a short phrase that is the same for every sample with this fault, to count by.
    """

    def __init__(self, reason: str):
        super().__init__(reason)
        self.reason = reason


def decode_image_bytes(
    content: bytes, *, at_least: int | None = None, upright: bool = False
) -> Image.Image:
    """Decode an encoded image to RGB; transparent parts become white.

    Args:
        upright: turns and mirrors the image as its EXIF orientation says.
        at_least: decodes a JPEG at 1/2, 1/4 or 1/8 of its size, as far as both sides keep so many
            pixels; other formats are decoded whole. The whole size is then in the image's `info`.

    Raises:
        UnusableSample: the bytes are in none of `FORMATS`, or do not decode to the last row; or
            the image has more than `MAX_PIXELS`, would take too much memory, or is longer than
            `MAX_ELONGATION` times its width, which is seen before it is decoded.
    """
    # Pillow fills what a truncated file lacks with grey if any library has set this switch.
    tolerant, ImageFile.LOAD_TRUNCATED_IMAGES = ImageFile.LOAD_TRUNCATED_IMAGES, False
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of damage that is an error or does not matter
            image = _open(content, upright=upright)
            if at_least is not None:  # Pillow's draft does nothing to other formats
                size = image.size
                image.draft(None, (at_least, at_least))  # pyright: ignore[reportArgumentType]
                image.info[WHOLE_SIZE] = size
            image.load()
            if upright:
                image = _turned(image)
    except UnusableSample:
        raise
    except Image.DecompressionBombError as error:
        raise UnusableSample("image too large") from error
    except UnidentifiedImageError as error:
        raise UnusableSample(NOT_AN_IMAGE) from error
    except Exception as error:  # its decoders raise OSError, SyntaxError, struct.error, ...
        raise UnusableSample("corrupt image") from error
    finally:
        ImageFile.LOAD_TRUNCATED_IMAGES = tolerant
    try:
        return convert_to_rgb(image)
    except (ValueError, OSError) as error:  # a palette or transparency that is none
        raise UnusableSample("corrupt image") from error


def is_turned(content: bytes) -> bool:
    """Whether an image has an EXIF orientation that moves its pixels."""
    if not _may_be_turned(content):
        return False
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return _open(content, upright=True).getexif().get(ORIENTATION, 1) in range(2, 9)
    except Exception:  # it shows when it is decoded
        return False


def _may_be_turned(content: bytes) -> bool:
    return any(
        content.startswith(begin) and any(content.find(mark, 0, within) >= 0 for mark in marks)
        for begin, marks, within in MAY_BE_TURNED
    )


def _turned(image: Image.Image) -> Image.Image:
    turned = ImageOps.exif_transpose(image)
    whole = turned.info.get(WHOLE_SIZE)
    if whole is not None and turned.size != image.size:
        turned.info[WHOLE_SIZE] = whole[::-1]
    return turned


def takes_texts(transform: Callable[..., object]) -> bool:
    """Whether a transform is one of the anchors of pairs of texts."""
    return getattr(transform, "takes_texts", False)


def transformed(transform: Callable[[Any], Output], image: Image.Image | str) -> Output:
    """Apply a transform to an image, or to the anchor of a pair of texts.

    Raises:
        UnusableSample: the transform raised any error, such as a lack of memory.
        ValueError: the transform is one of images, and this is a text, or the other way round.
    """
    if isinstance(image, str) != takes_texts(transform):
        found, taken = ("texts", "images") if isinstance(image, str) else ("images", "texts")
        remedy = "sentence-transformers:PATH" if found == "texts" else "another model"
        raise ValueError(
            f"the data have {found} where the model takes {taken}: pairs of texts are for models "
            f"of texts, pairs of image and text for those of both; take {remedy}"
        )
    try:
        return transform(image)
    except Exception as error:
        message = ": ".join(filter(None, (type(error).__name__, " ".join(str(error).split()))))
        raise UnusableSample(f"the transform failed ({message:.80})") from error


def _open(content: bytes, *, upright: bool) -> Image.Image:
    """Read the header of an image, and refuse one that would take too much memory."""
    image = Image.open(io.BytesIO(content), formats=FORMATS)
    pixels = image.width * image.height
    pixel_bytes = 4 + DECODER_BYTES.get(image.format or "", 0)
    if image.mode != "RGB":
        pixel_bytes += PIXEL_BYTES.get(image.mode, 4)
    if "progressive" in image.info:
        pixel_bytes += PROGRESSIVE_BYTES
    if upright and _may_be_turned(content):
        pixel_bytes += 4
    most = max(MAX_BYTES, MAX_EXPANSION * len(content))
    if pixels > MAX_PIXELS or pixels * pixel_bytes > most:
        raise UnusableSample("image too large")
    if max(image.size) > MAX_ELONGATION * min(image.size):
        raise UnusableSample("image too elongated")
    return image


def convert_to_rgb(image: Image.Image) -> Image.Image:
    """Convert an image to RGB; transparent parts become white."""
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if not (_has_16_bits(image) or image.has_transparency_data):
        return image.convert("RGB")
    result = Image.new("RGB", image.size)
    rows = max(1, STRIP_PIXELS // image.width)
    for top in range(0, image.height, rows):
        strip = image.crop((0, top, image.width, min(top + rows, image.height)))
        result.paste(_converted(strip), (0, top))
    return result


def _has_16_bits(image: Image.Image) -> bool:
    return image.mode == "I" or image.mode.startswith("I;16")


def _converted(image: Image.Image) -> Image.Image:
    if _has_16_bits(image):  # greyscale, which Pillow would clip to white above 255
        grey = (np.asarray(image) // 257).clip(0, 255).astype(np.uint8)
        return Image.fromarray(grey).convert("RGB")
    ground = Image.new("RGBA", image.size, "white")
    return Image.alpha_composite(ground, image.convert("RGBA")).convert("RGB")
