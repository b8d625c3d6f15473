"""Decoding of images: which formats, what becomes of colours, and what is refused."""

import struct
import subprocess
import tracemalloc
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFile
from tests.data.tar_files import encoded, pair, to_tensor, write_shard

import drrho
from drrho.data.examples import evaluation_batches
from drrho.data.indexing import index_shards
from drrho.data.reading import images
from drrho.data.reading.images import FORMATS, decode_image_bytes
from drrho.data.reading.shards import RawSample, UnusableSample, decode_image


def sample(**fields):
    return RawSample(key="k", row=0, fields=fields)


def grey_16_bit():
    return Image.fromarray(np.full((8, 8), 257 * 100, dtype=np.uint16))


@pytest.mark.parametrize(
    ("image", "kind", "colour"),
    [
        (Image.new("RGB", (8, 8), (10, 200, 30)), "PNG", (10, 200, 30)),
        (Image.new("RGB", (8, 8), (10, 200, 30)), "WEBP", (10, 200, 30)),
        (Image.new("L", (8, 8), 70), "PNG", (70, 70, 70)),
        (Image.new("1", (8, 8), 1), "PNG", (255, 255, 255)),
        (grey_16_bit(), "PNG", (100, 100, 100)),
        (Image.new("RGBA", (8, 8), (200, 0, 0, 0)), "PNG", (255, 255, 255)),
        (Image.new("RGBA", (8, 8), (0, 0, 0, 51)), "PNG", (204, 204, 204)),
        (Image.new("LA", (8, 8), (0, 0)), "PNG", (255, 255, 255)),
        (Image.new("CMYK", (8, 8), (0, 0, 0, 0)), "JPEG", (255, 255, 255)),
        (Image.new("CMYK", (8, 8), (0, 0, 0, 255)), "JPEG", (0, 0, 0)),
    ],
    ids=lambda value: getattr(value, "mode", None),
)
def test_every_colour_mode_becomes_rgb_on_white(image, kind, colour):
    options = {"lossless": True} if kind == "WEBP" else {}
    decoded = decode_image(sample(png=encoded(image, kind, **options)))
    assert decoded.mode == "RGB"
    np.testing.assert_allclose(np.array(decoded)[4, 4], colour, atol=2)


def test_a_palette_keeps_its_colours_and_its_transparency():
    image = Image.new("P", (8, 8), 0)
    image.putpalette([10, 20, 30, 200, 100, 50])
    assert decode_image(sample(png=encoded(image))).getpixel((0, 0)) == (10, 20, 30)
    transparent = sample(png=encoded(image, transparency=0))
    assert decode_image(transparent).getpixel((0, 0)) == (255, 255, 255)


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("tolerant", [False, True])
def test_a_truncated_image_is_never_half_decoded(kind, tolerant, monkeypatch):
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", tolerant)
    noise = np.random.default_rng(0).integers(0, 256, (48, 48, 3), dtype=np.uint8)
    whole = encoded(Image.fromarray(noise), kind)
    for length in range(0, int(0.95 * len(whole)), 97):
        with pytest.raises(UnusableSample, match="corrupt image"):
            decode_image(sample(jpg=whole[:length]))
    assert tolerant == ImageFile.LOAD_TRUNCATED_IMAGES


def test_a_transparency_beyond_the_palette_is_a_corrupt_image():
    content = encoded(Image.new("P", (8, 8), 0))
    chunk = b"tRNS" + bytes(300)  # a palette has 256 colours
    chunk = struct.pack(">I", 300) + chunk + struct.pack(">I", zlib.crc32(chunk))
    pixels = content.index(b"IDAT") - 4
    with pytest.raises(UnusableSample, match="corrupt image"):
        decode_image(sample(png=content[:pixels] + chunk + content[pixels:]))


def test_a_fault_of_the_program_is_not_taken_for_a_corrupt_image(monkeypatch):
    monkeypatch.delattr(Image.Image, "has_transparency_data")  # as before Pillow 10.1
    with pytest.raises(AttributeError):
        decode_image(sample(png=encoded(Image.new("L", (8, 8)))))


@pytest.mark.parametrize("side", [10_000, 20_000])
def test_an_image_bomb_is_not_decoded(side):
    """Some kilobytes that would be 300 MB or 1.2 GB of pixels."""
    content = encoded(Image.new("1", (side, side)), "PNG")
    tracemalloc.start()
    with pytest.raises(UnusableSample, match="image too large"):
        decode_image(sample(png=content))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 10_000_000


def test_bytes_become_pixels_in_one_place():
    """With a list of formats, so that no other decoder of Pillow ever runs."""
    source = Path(drrho.__file__).parent
    opened = [p.name for p in source.rglob("*.py") if "Image.open(" in p.read_text()]
    assert opened == ["images.py"]
    assert (source / "data/reading/images.py").read_text().count("Image.open(") == 1


POSTSCRIPT = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n%%EOF\n"


def test_postscript_called_jpg_is_counted_and_never_run(tmp_path, monkeypatch):
    def run(*arguments, **options):
        raise AssertionError(f"started {arguments}")

    for name in ("Popen", "check_call", "run"):
        monkeypatch.setattr(subprocess, name, run)
    rows = [pair(0) | {"jpg": POSTSCRIPT}, pair(1)]
    manifest = index_shards(write_shard(tmp_path / "a.tar", rows))
    (batch,) = evaluation_batches(manifest, to_tensor, batch_size=2)
    assert batch.sample_ids.tolist() == [1]
    (skipped,) = batch.skipped
    assert skipped[1].startswith("corrupt image, or none in the format JPEG, PNG, WEBP")


@pytest.mark.parametrize("kind", FORMATS)
def test_the_format_is_told_by_the_bytes(kind):
    options = {"quality": 100} if kind in ("JPEG", "WEBP", "AVIF") else {}
    image = decode_image(
        sample(jpg=encoded(Image.new("RGB", (16, 16), (200, 30, 90)), kind, **options))
    )
    np.testing.assert_allclose(np.array(image)[8, 8], (200, 30, 90), atol=4)


def test_an_image_that_a_transform_would_blow_up_is_refused():
    """201 bytes; with its shorter side enlarged to 224 it has 50 billion pixels."""
    with pytest.raises(UnusableSample, match="image too elongated"):
        decode_image_bytes(encoded(Image.new("1", (1, 1_000_000))))
    assert decode_image_bytes(encoded(Image.new("1", (2, 1000)))).size == (2, 1000)


@pytest.mark.parametrize(
    ("kind", "mode", "options", "fits"),
    [
        ("PNG", "RGB", {}, True),
        ("PNG", "L", {}, True),
        ("JPEG", "RGB", {}, True),
        ("PNG", "RGBA", {}, False),
        ("JPEG", "RGB", {"progressive": True}, False),
        ("WEBP", "RGB", {}, False),
        ("AVIF", "RGB", {}, False),
        ("TIFF", "RGB", {"compression": "tiff_lzw"}, False),
    ],
)
def test_what_decoding_takes_is_bounded_by_the_file(monkeypatch, kind, mode, options, fits):
    """With the real bounds a file of 340 kB takes at most 450 MB, whatever its header says."""
    monkeypatch.setattr(images, "MAX_BYTES", 5 * 100 * 100)
    content = encoded(Image.new(mode, (100, 100)), kind, **options)
    monkeypatch.setattr(images, "MAX_EXPANSION", 300_000 / len(content))
    assert decode_image_bytes(content).size == (100, 100), "a larger file may take more"
    monkeypatch.setattr(images, "MAX_EXPANSION", 0)
    if fits:
        assert decode_image_bytes(content).size == (100, 100)
    else:
        with pytest.raises(UnusableSample, match="image too large"):
            decode_image_bytes(content)
