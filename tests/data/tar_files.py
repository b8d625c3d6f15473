"""Shards made for tests: each image shows its number as a grey level, its caption as text."""

import io
import json
import os
import tarfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

GREY_STEP = 6  # between the grey levels of two numbers: more than JPEG blurs


def encoded(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def picture(number: int) -> bytes:
    """A JPEG with texture, so that it has bytes to lose, around the grey level of the number."""
    noise = np.random.default_rng(number).integers(-3, 4, (32, 32, 3))
    pixels = (GREY_STEP * number + 4 + noise).clip(0, 255).astype(np.uint8)
    return encoded(Image.fromarray(pixels), "JPEG", quality=95)


def pair(number: int) -> dict[str, bytes]:
    return {
        "jpg": picture(number),
        "txt": f"picture number {number}".encode(),
        "json": json.dumps({"number": number}).encode(),
    }


def without_caption(number: int) -> dict[str, bytes]:
    return {"jpg": picture(number)}


def with_broken_image(number: int) -> dict[str, bytes]:
    """Half of a JPEG: only decoding shows that something is wrong."""
    content = picture(number)
    return pair(number) | {"jpg": content[: len(content) // 2]}


def write_shard(path: Path, samples: Iterable[dict[str, bytes]], *, first_key: int = 0) -> Path:
    return write_files(
        path,
        (
            (f"{number:06d}.{extension}", content)
            for number, fields in enumerate(samples, start=first_key)
            for extension, content in fields.items()
        ),
    )


def write_files(path: Path, files: Iterable[tuple[str, bytes]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, content in files:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


def write_flawed_set(folder: Path) -> Path:
    """Four shards of 5, 6, 0 and 4 rows; number = id. Unusable: 1, 7, 8. Broken images: 3, 12."""
    rows = [pair(number) for number in range(15)]
    rows[1] = without_caption(1)
    rows[7] = {"txt": b"a caption of nothing"}
    rows[8] = pair(8) | {"txt": b" \n"}
    rows[3], rows[12] = with_broken_image(3), with_broken_image(12)
    write_shard(folder / "train-0.tar", rows[:5])
    write_shard(folder / "train-1.tar", rows[5:11], first_key=5)
    write_shard(folder / "train-2.tar", [])
    write_shard(folder / "train-3.tar", rows[11:], first_key=11)
    return folder


UNUSABLE = {1: "no caption", 7: "no image", 8: "empty caption"}
BROKEN = {3: "corrupt image", 12: "corrupt image"}
READABLE = sorted(set(range(15)) - UNUSABLE.keys() - BROKEN.keys())


def to_tensor(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255


def numbers_shown(images: Tensor) -> list[int]:
    """The number that each image shows."""
    levels = images.flatten(1).mean(1) * 255
    return ((levels - 4) / GREY_STEP).round().int().tolist()


def to_tokens(captions: list[str]) -> Tensor:
    """Two tokens: the length of the caption, and the number at its end or 0."""
    ends = [caption.split()[-1] for caption in captions]
    numbers = [int(end) if end.isdigit() else 0 for end in ends]
    return torch.tensor([list(map(len, captions)), numbers]).T


def real_data(folder: str) -> Path:
    """A folder of the development data sets; the test is skipped where they are not."""
    default = Path(__file__).parents[3] / "shared" / "data"
    path = Path(os.environ.get("DRRHO_DATA", default)) / folder
    if not path.is_dir():
        pytest.skip(f"no real data at {path}; set DRRHO_DATA to the folder that holds them")
    return path
