"""One tower by its name: what `drrho reference join` takes as `--image` and `--text`."""

from pathlib import Path

from drrho.models.build import build_model, named_model
from drrho.models.program import run_program
from drrho.models.towers.files import half, kinds_of
from drrho.models.towers.hugging_face import build_hugging_face_tower
from drrho.models.towers.sentence_transformers import (
    build_sentence_tower,
    build_sentence_two_tower,
    embeds_images,
)
from drrho.models.towers.tower import ImageTower, Side, TextTower
from drrho.models.towers.vision import build_vision


def build_tower(
    source: str, side: Side, *, image_size: int | None = None
) -> ImageTower | TextTower:
    """Build one tower by its name, frozen, in evaluation mode, on the CPU.

    Args:
        source: "timm:NAME" or "torchvision:NAME", whose weights are among the downloads on this
            machine, or with "@FILE" in a file; "transformers:PATH"; "sentence-transformers:PATH";
            "python:FILE.py", whose `build()` returns an `ImageTower`, a `TextTower` or a
            `TwoTower`; or a dual encoder as `Model` takes it, of which one tower is taken, such
            as "ViT-B-32@TAG_OR_FILE" or "run:PATH".
        image_size: pixels of each side, only for timm and torchvision; None takes those that the
            weights were trained with.

    Raises:
        FileNotFoundError: there is no such file or folder, or there are no weights.
        ValueError: no such tower, its weights would be random, or `image_size` has no effect.
    """
    schema, _, place = source.partition(":")
    is_vision = schema in ("timm", "torchvision")
    if image_size is not None and not is_vision:
        raise ValueError(
            f"image_size = {image_size} has no effect on {source!r}, which has its own transform"
        )
    if is_vision:
        _require_side(source, side, "image")
    path = Path(place).expanduser()
    match schema:
        case "timm" | "torchvision":
            name, _, weights = place.partition("@")
            tower = build_vision(schema, name, weights or None, image_size=image_size)
        case "sentence-transformers" if embeds_images(path):
            tower = half(build_sentence_two_tower(path), side)
        case "sentence-transformers":
            _require_side(source, side, "text")
            tower = build_sentence_tower(path)
        case "transformers":
            tower = build_hugging_face_tower(path, side)
        case "python":
            tower = half(run_program(path, kinds_of(side)), side)
        case _:
            model = named_model(source)
            model.require_trained()
            tower = half(build_model(model, seed=0), side)
    tower.module.eval().requires_grad_(False)
    return tower


def _require_side(source: str, side: Side, own: Side) -> None:
    if side != own:
        raise ValueError(f"{source!r} embeds {own}s, and cannot be given as the {side} tower")
