"""One tower: a frozen model that turns images, or texts, into features."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from drrho.models.two_tower import ImageTransform, Tokenizer, TwoTower

Side = Literal["image", "text"]


@dataclass(frozen=True, kw_only=True)
class ImageTower:
    """A vision model with its transform.

    Attributes:
        module: called with images that went through `transform`, gives features (B, d) of any
            length and scale.
        transform: RGB image -> tensor, deterministic.
        identity: what the features depend on, as text: architecture, weights_sha256,
            eval_transform.
        architecture: plain data from which the tower can be built again; only a program's needs
            it.
    """

    module: nn.Module
    transform: ImageTransform
    identity: dict[str, str]
    architecture: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class TextTower:
    """A text model with its tokenizer; the fields are as in `ImageTower`.

    Attributes:
        module: called with token ids of `tokenizer`, gives features (B, d).
        tokenizer: captions -> token ids.
        identity: architecture, weights_sha256, tokenizer.
        architecture: as of `ImageTower`.
    """

    module: nn.Module
    tokenizer: Tokenizer
    identity: dict[str, str]
    architecture: dict[str, Any] = field(default_factory=dict)


@runtime_checkable
class SavesItself(Protocol):
    """A tower's module that writes what its loader reads."""

    def save(self, folder: Path, weights: Mapping[str, Tensor]) -> None:
        """Write architecture and weights, which have the names of the module's own state."""


class HalfOfTwoTower(nn.Module):
    """One tower of a dual encoder: its embeddings, not normalised.

    Args:
        model: the whole dual encoder, which is saved whole.
        side: which of its towers is meant.
    """

    def __init__(self, model: TwoTower, side: Side) -> None:
        super().__init__()
        self.model: Any = model.module  # nn.Module does not say that its attributes are functions
        self.two_tower, self.side = model, side

    def forward(self, inputs: Shaped[Tensor, "batch ..."]) -> Float[Tensor, "batch dim"]:
        encode = self.model.encode_image if self.side == "image" else self.model.encode_text
        return encode(inputs, normalize=False)


def image_tower_of(model: TwoTower) -> ImageTower:
    """Take the image tower of a dual encoder."""
    names = ("architecture", "weights_sha256", "eval_transform")
    return ImageTower(
        module=HalfOfTwoTower(model, "image"),
        transform=model.eval_transform,
        identity={name: model.identity[name] for name in names if name in model.identity},
    )


def text_tower_of(model: TwoTower) -> TextTower:
    """Take the text tower of a dual encoder."""
    names = ("architecture", "weights_sha256", "tokenizer")
    return TextTower(
        module=HalfOfTwoTower(model, "text"),
        tokenizer=model.tokenizer,
        identity={name: model.identity[name] for name in names if name in model.identity},
    )


def features_of(
    tower: nn.Module, inputs: Shaped[Tensor, "batch ..."], *, name: str
) -> Float[Tensor, "batch dim"]:
    """Run a tower; ValueError unless it gives one vector for each input."""
    features = tower(inputs)
    if not isinstance(features, Tensor) or features.ndim != 2 or len(features) != len(inputs):
        found = tuple(features.shape) if isinstance(features, Tensor) else type(features).__name__
        raise ValueError(
            f"{name} gives {found} for {len(inputs)} inputs, where (inputs, features) are needed"
        )
    return features.to(torch.float32)
