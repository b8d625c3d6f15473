"""Bounds on what the configuration of a received model may make a loader build.

A few bytes of JSON can ask for any width and any number of layers. What is built must be in
proportion to the weights that lie beside the configuration: its numbers are compared with them,
and the module is made without memory (on PyTorch's meta device) and counted, before it is built.
"""

import logging
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from drrho.runtime.files import require_regular

MOST_LAYERS = 1024
LARGEST_IMAGE = 4096  # pixels of a side; the transform gives 200 MB
SMALLEST_BOUND = 2**20  # configurations of tiny models have ids and lengths of large ones
SPARE = 2**24  # numbers beyond twice those of the weights: masks and tables that are not stored
LAYERS = ("layers", "depth", "depths", "blocks")
# Fields in whose parts the sides of images stand.
IMAGES = ("image_size", "img_size", "size", "crop_size")
SOURCES = (".safetensors", ".bin", ".pth", ".pt")


@dataclass(frozen=True)
class Held:
    """What files hold.

    Attributes:
        numbers: elements of all tensors, and no more than bytes.
        where: the files, for messages.
    """

    numbers: int
    where: str

    @classmethod
    def by(cls, folder: Path) -> "Held":
        """Count what the files of weights in a folder hold; their headers alone are read."""
        files = sorted(path for path in folder.iterdir() if path.suffix in SOURCES)
        numbers = sum(map(_numbers_of, files))
        where = ", ".join(str(path) for path in files[:3]) or str(folder)
        return cls(numbers, where)

    @classmethod
    def below(cls, folder: Path) -> "Held":
        """Take the bytes of all files below a folder for numbers."""
        files = [path for path in folder.rglob("*") if path.is_file()] if folder.is_dir() else []
        return cls(sum(path.stat().st_size for path in files), str(folder))

    @property
    def most(self) -> int:
        """The most numbers that a module may have."""
        return 2 * self.numbers + SPARE


def require_in_proportion(config: Mapping[str, Any], held: Held, *, where: str) -> None:
    """Raise ValueError if a number of a configuration cannot belong to the weights.

    Args:
        config: the configuration, as its file has it.
        where: the file, for the message.
    """
    for name, value in _numbers_in(config):
        if not isinstance(value, int):  # a ratio or a rate
            continue
        if name.endswith(LAYERS):
            most, why = MOST_LAYERS, "no model has so many layers"
        elif set(name.replace("[", ".").split(".")).intersection(IMAGES):
            most, why = LARGEST_IMAGE, "no model takes images that large"
        else:
            most = max(held.numbers, SMALLEST_BOUND)
            why = f"{held.where} holds {held.numbers:,} numbers"
        if value > most:
            raise ValueError(
                f"{where}: {name} = {_short(value)} is more than {most:,}: {why}. It was damaged, "
                "or does not belong to these weights"
            )


def require_fits(
    build: Callable[[], nn.Module], held: Held, *, config: Mapping[str, Any], where: str
) -> None:
    """Raise ValueError if a module is out of proportion to the weights; makes it without memory.

    Args:
        build: makes the module.
        config: the configuration that it follows, whose largest numbers are named.
        where: the file of the configuration.
    """
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)  # open_clip's, that its weights are random
    try:
        with torch.device("meta"):
            module = build()
    finally:
        logging.disable(before)
    tensors = {id(it): it for it in (*module.parameters(), *module.buffers())}
    numbers = sum(math.prod(it.shape) for it in tensors.values())
    if numbers <= held.most:
        return
    largest = max(module.state_dict().items(), key=lambda item: item[1].numel())
    named = sorted(_numbers_in(config), key=lambda item: -item[1])[:3]
    raise ValueError(
        f"{where} asks for a model of {numbers:,} numbers ({largest[0]} alone is "
        f"{tuple(largest[1].shape)}), and {held.where} holds {held.numbers:,}; its largest fields "
        f"are {', '.join(f'{name} = {_short(value)}' for name, value in named)}. It was damaged, "
        "or does not belong to these weights"
    )


def _numbers_in(value: Any, name: str = "") -> Iterator[tuple[str, int | float]]:
    """Walk through the numbers of a configuration, with their places; lists of layers add up."""
    if isinstance(value, Mapping):
        for key, part in value.items():
            yield from _numbers_in(part, f"{name}.{key}" if name else str(key))
    elif isinstance(value, list | tuple):
        if name.endswith(LAYERS) and all(type(part) is int for part in value):
            yield name, sum(value)
            return
        for i, part in enumerate(value):
            yield from _numbers_in(part, f"{name}[{i}]")
    elif type(value) is int or (isinstance(value, float) and math.isfinite(value)):
        yield name, value


def _short(value: float) -> str:
    return f"{value:,}" if value < 10**15 else "a number of many digits"


def _numbers_of(path: Path) -> int:
    """Count the numbers of a file of weights, by its header; of a pickle, its bytes."""
    require_regular(path)
    size = path.stat().st_size
    try:
        if path.suffix == ".safetensors":
            with safe_open(path, framework="pt") as file:
                shapes = [file.get_slice(name).get_shape() for name in file.keys()]  # noqa: SIM118
            return min(sum(map(math.prod, shapes)), size)
    except (SafetensorError, OSError):  # the loader says what is wrong with it
        return size
    return size
