"""A dual encoder of separately trained vision and text models: towers and linear heads.

Its folder holds both towers whole, so that it needs nothing but itself, wherever it goes. A tower
that a program built needs that program, unchanged, and the word of whoever loads it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from textwrap import shorten
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from jaxtyping import Float, Int
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn
from torch.nn.functional import normalize as to_unit_length

from drrho.models.towers.files import load_tower, save_tower
from drrho.models.towers.tower import ImageTower, Side, TextTower, features_of
from drrho.models.two_tower import TwoTower, weights_sha256
from drrho.runtime.checks import require_at_least
from drrho.runtime.files import require_regular, write_atomically, write_json
from drrho.runtime.records import FORMAT, from_json, read_versioned, to_json

JOINED_FILE = "joined.json"
HEADS_FILE = "heads.safetensors"
SIDES: tuple[Side, Side] = ("image", "text")
Method = Literal["ridge", "cca", "contrastive"]


class MRR(NamedTuple):
    """A mean reciprocal rank with its 95 % interval, and what guessing reaches."""

    value: float
    low: float
    high: float
    guessing: float


@dataclass(frozen=True, kw_only=True)
class FittedHead:
    """How a pair of heads was fitted, and what it reached on pairs held out to choose by.

    Attributes:
        method: "ridge" regression of text features on image features, "cca", canonical
            correlation analysis, or "contrastive", a short fit of CLIP's loss.
        settings: in words.
        mrr: mean reciprocal rank on the pairs that heads were chosen by.
    """

    method: Method
    settings: str
    mrr: float


@dataclass(frozen=True, kw_only=True)
class JoinedCard:
    """Contents of `joined.json`: of what a joined model was made, and how good it is.

    Attributes:
        image, text: the towers as they were named; for people, nothing is read from there.
        image_features, text_features: number of features of each tower.
        embed_dim: dimension of the shared space.
        head: the heads that were chosen.
        tried: the best of each method.
        fitted_on: pairs that the heads were fitted on.
        chosen_on: held-out pairs that they were chosen by.
        judged_on: pairs that neither the fit nor the choice has seen.
        held_out: mean reciprocal rank on those, both directions, on distinct captions.
        data: `content_sha256` of the shards that it has seen.
    """

    version: ClassVar = 1
    image: str
    text: str
    image_features: int
    text_features: int
    embed_dim: int
    head: FittedHead
    tried: tuple[FittedHead, ...]
    fitted_on: int
    chosen_on: int
    judged_on: int
    held_out: MRR
    data: tuple[str, ...]

    def __post_init__(self) -> None:
        sizes = ("image_features", "text_features", "embed_dim")
        require_at_least(1, **{name: getattr(self, name) for name in sizes})
        if max(getattr(self, name) for name in sizes) > 2**16:
            raise ValueError("a tower has at most 65,536 features")


class JoinedTwoTower(nn.Module):
    """open_clip's interface for two towers, each followed by an affine map of unit features.

    Args:
        towers: image and text tower.
        sizes: features of the image tower, of the text tower, and of the shared space.
    """

    def __init__(self, towers: tuple[nn.Module, nn.Module], sizes: tuple[int, int, int]) -> None:
        super().__init__()
        self.image_tower, self.text_tower = towers
        *inputs, output = sizes
        # Fitted weights are loaded; torch's generator is left alone.
        self.image_head, self.text_head = (
            nn.utils.skip_init(nn.Linear, size, output) for size in inputs
        )

    def encode_image(
        self, images: Float[Tensor, "batch 3 height width"], normalize: bool = False
    ) -> Float[Tensor, "batch dim"]:
        """Embed images that went through the image tower's transform."""
        features = features_of(self.image_tower, images, name="the image tower")
        return _project(self.image_head, features, normalize)

    def encode_text(
        self, tokens: Int[Tensor, "batch context"], normalize: bool = False
    ) -> Float[Tensor, "batch dim"]:
        """Embed token ids of the text tower's tokenizer."""
        features = features_of(self.text_tower, tokens, name="the text tower")
        return _project(self.text_head, features, normalize)


def join_towers(image: ImageTower, text: TextTower, card: JoinedCard) -> TwoTower:
    """Put two towers together; the heads' weights are to be loaded."""
    sizes = (card.image_features, card.text_features, card.embed_dim)
    module = JoinedTwoTower((image.module, text.module), sizes)
    return TwoTower(
        module=module,
        train_transform=image.transform,
        eval_transform=image.transform,
        tokenizer=text.tokenizer,
        identity={
            "architecture": f"{image.identity.get('architecture')} joined with "
            f"{text.identity.get('architecture')}, {card.embed_dim} dimensions",
            "pretrained": "joined with drrho",
            "eval_transform": image.identity.get("eval_transform", ""),
            "tokenizer": text.identity.get("tokenizer", ""),
        },
        architecture={
            JOINED_FILE: {FORMAT: card.version, **to_json(card)},
            **{
                f"{side}/{name}": content
                for side, tower in zip(SIDES, (image, text), strict=True)
                for name, content in tower.architecture.items()
            },
        },
    )


def with_heads(model: TwoTower, heads: Mapping[str, Tensor]) -> TwoTower:
    """Load the weights of the heads into a model of `join_towers`.

    Args:
        heads: `image_head.weight`, `image_head.bias` and those of the text.

    Raises:
        ValueError: they do not fit.
    """
    module = model.module
    wanted = {name for name in module.state_dict() if name.split(".")[0].endswith("_head")}
    if heads.keys() != wanted:
        raise ValueError(f"heads have {sorted(heads)}, where {sorted(wanted)} are needed")
    module.load_state_dict(dict(heads), strict=False)
    identity = model.identity | {"weights_sha256": weights_sha256(module)}
    return replace(model, identity=identity)


def save_joined(model: TwoTower, folder: Path, weights: Mapping[str, Tensor]) -> None:
    """Write both towers, the heads, and last the card, whose presence says that all is there."""
    module = model.module
    assert isinstance(module, JoinedTwoTower)
    for side in SIDES:
        prefixes = f"{side}_tower.", f"{side}/"
        own, architecture = (
            {n.removeprefix(prefix): it for n, it in named.items() if n.startswith(prefix)}
            for prefix, named in zip(prefixes, (weights, model.architecture), strict=True)
        )
        save_tower(
            ImageTower(
                module=module.image_tower,
                transform=model.eval_transform,
                identity={},
                architecture=architecture,
            )
            if side == "image"
            else TextTower(
                module=module.text_tower,
                tokenizer=model.tokenizer,
                identity={},
                architecture=architecture,
            ),
            folder / side,
            own,
        )
    heads = {n: w.contiguous() for n, w in weights.items() if n.split(".")[0].endswith("_head")}
    write_atomically(folder / HEADS_FILE, save(heads))
    write_json(folder / JOINED_FILE, model.architecture[JOINED_FILE])


def load_joined(folder: Path) -> TwoTower:
    """Load what `save_joined` wrote.

    Raises:
        FileNotFoundError: a part is not there.
        ValueError: a part is damaged, or a tower is built by a program that is not trusted.
    """
    card = read_joined_card(folder)
    heads = load_heads(folder / HEADS_FILE, card)
    image, text = (load_tower(folder / side, side) for side in SIDES)
    assert isinstance(image, ImageTower)
    assert isinstance(text, TextTower)
    return with_heads(join_towers(image, text, card), heads)


def load_heads(path: Path, card: JoinedCard) -> dict[str, Tensor]:
    """Load the heads, and compare their shapes with the card before anything is built of it.

    Raises:
        FileNotFoundError: they are not there.
        ValueError: they are damaged, or do not fit the card.
    """
    require_regular(path)
    try:
        heads = load_file(path)
    except (RuntimeError, SafetensorError) as error:
        raise ValueError(f"{path} is damaged: {shorten(str(error), 800)}") from error
    sizes = {"image": card.image_features, "text": card.text_features}
    wanted = {f"{side}_head.bias": (card.embed_dim,) for side in sizes}
    wanted |= {f"{side}_head.weight": (card.embed_dim, size) for side, size in sizes.items()}
    found = {name: tuple(value.shape) for name, value in heads.items()}
    if found != wanted or not all(value.isfinite().all() for value in heads.values()):
        raise ValueError(f"{path} does not fit {JOINED_FILE}: it has {found}, not {wanted}")
    return heads


def read_joined_card(folder: Path) -> JoinedCard:
    """Read how a joined model was made, and how good it is; errors as `read_record`."""
    path = folder / JOINED_FILE
    return from_json(JoinedCard, read_versioned(path, JoinedCard), where=str(path))


def _project(head: Any, features: Tensor, normalize: bool) -> Tensor:
    # In float32 also under autocast: the heads are small, and centring needs the digits.
    with torch.autocast(features.device.type, enabled=False):
        embeddings = head(to_unit_length(features, dim=-1))
    return to_unit_length(embeddings, dim=-1) if normalize else embeddings
