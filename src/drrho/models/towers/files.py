"""Towers in folders, which need nothing else but a program that built one."""

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from drrho.models.hugging_face import HUGGING_FACE_FILE
from drrho.models.program import PROGRAM_FILE, rerun_program, save_with_program
from drrho.models.towers.hugging_face import build_hugging_face_tower
from drrho.models.towers.sentence_transformers import MODULES_FILE, build_sentence_tower
from drrho.models.towers.tower import (
    HalfOfTwoTower,
    ImageTower,
    SavesItself,
    Side,
    TextTower,
    image_tower_of,
    text_tower_of,
)
from drrho.models.towers.vision import VISION_FILE, load_vision
from drrho.models.two_tower import TwoTower


def save_tower(tower: ImageTower | TextTower, folder: Path, weights: Mapping[str, Tensor]) -> None:
    """Write a tower into a folder of its own.

    Args:
        weights: the state of the tower's module.

    Raises:
        ValueError: its module was made elsewhere, by no program that could make it again.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if PROGRAM_FILE in tower.architecture:
        save_with_program(tower, folder, weights)
    elif isinstance(tower.module, HalfOfTwoTower):
        # This module knows joined models, which have towers.
        from drrho.models.build import save_model  # noqa: PLC0415

        whole = {name.removeprefix("model."): value for name, value in weights.items()}
        save_model(tower.module.two_tower, folder, weights=whole)
    elif isinstance(tower.module, SavesItself):
        tower.module.save(folder, weights)
    else:
        raise ValueError(
            f"tower {tower.identity.get('architecture')!r} cannot be saved; build it by a program, "
            "python:FILE.py"
        )


def load_tower(folder: Path, side: Side) -> ImageTower | TextTower:
    """Load what `save_tower` wrote.

    Raises:
        FileNotFoundError: the folder holds no tower.
        ValueError: it is damaged, or built by a program that is not trusted.
    """
    if (folder / PROGRAM_FILE).is_file():
        return half(rerun_program(folder, kinds_of(side)), side)
    if side == "image" and (folder / VISION_FILE).is_file():
        return load_vision(folder)
    if side == "text" and (folder / MODULES_FILE).is_file():
        return build_sentence_tower(folder)
    if (folder / HUGGING_FACE_FILE).is_file():
        return build_hugging_face_tower(folder, side)
    from drrho.models.build import load_model  # noqa: PLC0415  # as above

    return half(load_model(folder), side)


def kinds_of(side: Side) -> tuple[type, ...]:
    """List what a program may build in the place of a tower."""
    return (ImageTower if side == "image" else TextTower, TwoTower)


def half(built: ImageTower | TextTower | TwoTower, side: Side) -> ImageTower | TextTower:
    """Return a tower as it is, and of a dual encoder the one of that side."""
    if not isinstance(built, TwoTower):
        return built
    return image_tower_of(built) if side == "image" else text_tower_of(built)
