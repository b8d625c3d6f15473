"""Layers of a model's towers: which parameters an image or a text passes, and in which order."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from PIL import Image
from torch import Tensor, nn

from drrho.models.two_tower import TwoTower
from drrho.runtime.randomness import preserved_generators

Tower = Literal["image", "text"]
TOWERS: tuple[Tower, ...] = ("image", "text")
Layer = tuple[str, ...]  # names of parameters


@dataclass(frozen=True, kw_only=True)
class TowerLayers:
    """Trainable parameters of each tower by layer, from the input to the embedding.

    The first layer holds all that comes before the first block (embeddings, stem), then there is
    one for each block, to the last of which the normalisation after it belongs; what follows
    (projection, head) is the last. These are the groups of open_clip's transformers. A tower
    without a stack of blocks is one layer.

    Attributes:
        image, text: names of parameters by layer.
    """

    image: tuple[Layer, ...]
    text: tuple[Layer, ...]

    def of(self, tower: Tower) -> tuple[Layer, ...]:
        return self.image if tower == "image" else self.text


def layers_of(model: TwoTower) -> TowerLayers:
    """Find the layers of both towers by a forward and a backward pass over an image and a text.

    A parameter belongs to the tower whose embedding has a gradient in it; its place is that of its
    use. Gradients, buffers, modes and random states are left as they were.

    Raises:
        ValueError: both towers use a parameter.
    """
    order = {tower: _order_of_use(model, tower) for tower in TOWERS}
    if shared := set(order["image"]) & set(order["text"]):
        raise ValueError(
            f"both towers use the parameter {min(shared)!r}: rates by tower and locks of a tower "
            "need towers of their own"
        )
    blocks = list(_blocks(model.module))
    found = {tower: tuple(_layers(order[tower], blocks, model.module)) for tower in TOWERS}
    return TowerLayers(image=found["image"], text=found["text"])


def sample_inputs(model: TwoTower, number: int = 2) -> tuple[Tensor, Tensor]:
    """Make images and tokens that the towers take, on the CPU, without a random draw."""
    with preserved_generators():
        image = model.train_transform(Image.new("RGB", (64, 64)))
    return torch.stack([image] * number), model.tokenizer(["a caption"] * number)


def _order_of_use(model: TwoTower, tower: Tower) -> list[str]:
    """Name the trainable parameters of a tower in the order in which the forward pass uses them.

    Autograd finishes the gradient of a parameter when the backward pass leaves its first use.
    """
    module: Any = model.module
    images, tokens = sample_inputs(model)
    trained = [(name, p) for name, p in module.named_parameters() if p.requires_grad]
    gradients = [p.grad for _, p in trained]
    modes = [(part, part.training) for part in module.modules()]
    finished: list[str] = []
    hooks = [
        p.register_post_accumulate_grad_hook(lambda _, name=name: finished.append(name))
        for name, p in trained
    ]
    module.eval()  # statistics stay as they are
    try:
        with preserved_generators(), torch.enable_grad():
            found = module.encode_image(images) if tower == "image" else module.encode_text(tokens)
            if found.requires_grad:
                found.float().sum().backward()
    finally:
        for hook in hooks:
            hook.remove()
        for (_, p), gradient in zip(trained, gradients, strict=True):
            p.grad = gradient
        for part, mode in modes:
            part.training = mode
    return finished[::-1]


def _blocks(module: nn.Module, prefix: str = "") -> Iterator[str]:
    """Name the blocks of all stacks: the parts with weights of the outermost lists of modules."""
    for name, child in module.named_children():
        parts = [
            f"{prefix}{name}.{part}"
            for part, content in child.named_children()
            if any(True for _ in content.parameters())
        ]
        stacked = isinstance(child, nn.ModuleList) or (
            isinstance(child, nn.Sequential) and len(parts) > 1
        )
        if stacked and parts:
            yield from parts
        else:
            yield from _blocks(child, f"{prefix}{name}.")


def _layers(order: Sequence[str], blocks: Sequence[str], module: nn.Module) -> Iterator[Layer]:
    """Cut the parameters of a tower into layers, at its blocks."""
    block_of = {
        name: next((block for block in blocks if name.startswith(f"{block}.")), None)
        for name in order
    }
    own = [block for name in order if (block := block_of[name]) is not None]
    inside = list(dict.fromkeys(own))
    if not inside:
        if order:
            yield tuple(order)
        return
    first = min(place for place, name in enumerate(order) if block_of[name] is not None)
    last = max(place for place, name in enumerate(order) if block_of[name] is not None)
    between: dict[str, list[str]] = {block: [] for block in inside}
    current = inside[0]
    for name in order[first : last + 1]:
        current = block_of[name] or current
        between[current].append(name)
    after = list(order[last + 1 :])
    vectors = {name for name, p in module.named_parameters() if p.ndim < 2}
    while after and after[0] in vectors:  # the normalisation after the last block
        between[inside[-1]].append(after.pop(0))
    if order[:first]:
        yield tuple(order[:first])
    for block in inside:
        yield tuple(between[block])
    if after:
        yield tuple(after)
