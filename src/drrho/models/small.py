"""The small two-tower model: trains on a laptop's CPU in about a minute on small images.

With it every recipe, test and demonstration can run without a GPU or a download. It has the
interface of open_clip's models (`encode_image`, `encode_text`), and becomes one of them by
`open_clip_form`: its text tower is open_clip's own, and its image tower one of timm's, under the
names that `register` makes known.
"""

import importlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from drrho.runtime.checks import require_at_least
from drrho.runtime.torchvision import import_torchvision

IMAGE_SIZE = 64  # pixels; the convolutional tower ends in a 4 x 4 grid of it
IMAGE_MEAN, IMAGE_STD = (0.5, 0.5, 0.5), (0.28, 0.28, 0.28)
WIDEST = 256  # image_width that `register` knows
# Names here -> names in open_clip, of the whole model and of a text layer.
NAMES = {
    "token_embedding.weight": "token_embedding.weight",
    "position_embedding": "positional_embedding",
    "text_transformer.norm.weight": "ln_final.weight",
    "text_transformer.norm.bias": "ln_final.bias",
    "image_tower.7.weight": "visual.head.proj.weight",
    "image_tower.7.bias": "visual.head.proj.bias",
}
LAYER_NAMES = {
    "self_attn.": "attn.",
    "norm1.": "ln_1.",
    "norm2.": "ln_2.",
    "linear1.": "mlp.c_fc.",
    "linear2.": "mlp.c_proj.",
}


@dataclass(frozen=True, kw_only=True)
class SmallConfig:
    """Widths of the small model.

    Attributes:
        embed_dim: dimension of the shared embedding space.
        image_width: channels of the first convolution; the last has eight times as many.
        text_width: width of the text transformer; a multiple of `text_heads`.
        text_layers: transformer layers.
        text_heads: attention heads per layer.
        context_length: tokens per caption, the start and end tokens included.
    """

    embed_dim: int = 128
    image_width: int = 16
    text_width: int = 128
    text_layers: int = 2
    text_heads: int = 4
    context_length: int = 32

    def __post_init__(self):
        require_at_least(1, **vars(self))
        if self.text_width % self.text_heads:
            raise ValueError(
                f"text_width must be a multiple of text_heads, got {self.text_width} and "
                f"{self.text_heads}"
            )


class SmallTwoTower(nn.Module):
    """Six convolutions for 64 px images, a causal transformer for captions.

    The image tower ends in a flattened 4 x 4 grid rather than a global average, so that
    embeddings depend on where things are. Attention over text is causal, and the text's embedding
    is read at the end token (the largest id, as in CLIP); the padding after it is cut off.

    Weights are drawn from torch's global generator, which `build_model` seeds.
    """

    def __init__(self, config: SmallConfig, vocabulary_size: int):
        super().__init__()
        self.config = config
        width = config.image_width
        self.image_tower = nn.Sequential(
            *_convolutions(width), nn.Flatten(), nn.Linear(_features(width), config.embed_dim)
        )
        self.image_tower.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        self.token_embedding = nn.Embedding(vocabulary_size, config.text_width)
        self.position_embedding = nn.Parameter(
            torch.empty(config.context_length, config.text_width)
        )
        nn.init.normal_(self.token_embedding.weight, std=0.02)
        nn.init.normal_(self.position_embedding, std=0.01)
        layer = nn.TransformerEncoderLayer(
            config.text_width,
            config.text_heads,
            dim_feedforward=4 * config.text_width,
            dropout=0.0,
            activation="gelu",
            batch_first=True,
            norm_first=True,
        )
        self.text_transformer = nn.TransformerEncoder(
            layer,
            config.text_layers,
            norm=nn.LayerNorm(config.text_width),
            enable_nested_tensor=False,
        )
        self.text_projection = nn.Linear(config.text_width, config.embed_dim, bias=False)

    def encode_image(
        self, images: Float[Tensor, "batch 3 height width"], normalize: bool = False
    ) -> Float[Tensor, "batch dim"]:
        """Embed images of `IMAGE_SIZE` pixels, to unit length if `normalize`."""
        embeddings = self.image_tower(images.contiguous(memory_format=torch.channels_last))
        return F.normalize(embeddings, dim=-1) if normalize else embeddings

    def encode_text(
        self, tokens: Int[Tensor, "batch context"], normalize: bool = False
    ) -> Float[Tensor, "batch dim"]:
        """Embed token ids of the CLIP tokenizer, padded with zeros."""
        end = tokens.argmax(dim=-1)
        tokens = tokens[:, : int(end.max()) + 1]
        length = tokens.shape[1]
        hidden = self.token_embedding(tokens) + self.position_embedding[:length]
        causal = nn.Transformer.generate_square_subsequent_mask(
            length, device=hidden.device, dtype=hidden.dtype
        )
        hidden = self.text_transformer(hidden, mask=causal, is_causal=True)
        embeddings = self.text_projection(hidden[torch.arange(len(hidden), device=end.device), end])
        return F.normalize(embeddings, dim=-1) if normalize else embeddings


def _convolution(channels_in: int, channels_out: int, *, stride: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels_in, channels_out, 3, stride=stride, padding=1, bias=False),
        nn.BatchNorm2d(channels_out),
        nn.ReLU(inplace=True),
    )


def _convolutions(width: int) -> list[nn.Module]:
    return [
        _convolution(3, width, stride=2),
        _convolution(width, 2 * width, stride=2),
        _convolution(2 * width, 2 * width, stride=1),
        _convolution(2 * width, 4 * width, stride=2),
        _convolution(4 * width, 4 * width, stride=1),
        _convolution(4 * width, 8 * width, stride=2),
    ]


def _features(width: int) -> int:
    return 8 * width * 4 * 4


class SmallTrunk(nn.Module):
    """The convolutions of the image tower as a model of timm, whose features are the grid."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.convolutions = nn.Sequential(*_convolutions(width))
        self.convolutions.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        self.num_features = _features(width)
        # What open_clip reads of a model of timm.
        self.default_cfg = {"input_size": (3, IMAGE_SIZE, IMAGE_SIZE), "pool_size": None}

    def reset_classifier(self, num_classes: int, global_pool: str = "") -> None:
        """Do nothing: it has no classifier and no pooling."""

    def forward(
        self, images: Float[Tensor, "batch 3 height width"]
    ) -> Float[Tensor, "batch features"]:
        """Compute the features of images of `IMAGE_SIZE` pixels."""
        found = self.convolutions(images.contiguous(memory_format=torch.channels_last))
        return found.flatten(1)


def register() -> None:
    """Make the image towers known to timm, as drrho_small_WIDTH, and so to open_clip.

    A program that loads an exported small model calls this first.
    """
    import_torchvision()
    timm: Any = importlib.import_module("timm.models")
    if timm.is_model(_timm_name(1)):
        return

    def entry(width: int) -> Any:
        def build(pretrained: bool = False, **_: Any) -> SmallTrunk:
            if pretrained:
                raise ValueError(f"{_timm_name(width)} has no pretrained weights")
            return SmallTrunk(width)

        build.__name__ = _timm_name(width)
        return build

    for width in range(1, WIDEST + 1):
        timm.register_model(entry(width))


def _timm_name(width: int) -> str:
    return f"drrho_small_{width}"


def open_clip_form(
    config: SmallConfig, weights: Mapping[str, Tensor], *, vocabulary_size: int
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Convert the model to open_clip's configuration and weights, with the same embeddings.

    Returns:
        Content of `open_clip_config.json`, and the state of the model that it describes.

    Raises:
        ValueError: the image tower is too wide for `register`.
    """
    if config.image_width > WIDEST:
        raise ValueError(
            f"a small model with image_width = {config.image_width} cannot be written for "
            f"open_clip, which knows widths up to {WIDEST}"
        )
    vision = {
        "timm_model_name": _timm_name(config.image_width),
        "timm_pool": "",
        "timm_proj": "linear",
        "timm_proj_bias": True,
        "image_size": IMAGE_SIZE,
    }
    text = {
        "context_length": config.context_length,
        "vocab_size": vocabulary_size,
        "width": config.text_width,
        "heads": config.text_heads,
        "layers": config.text_layers,
    }
    preprocess = {"size": IMAGE_SIZE, "mode": "RGB", "mean": IMAGE_MEAN, "std": IMAGE_STD}
    found = {_open_clip_name(name): value for name, value in weights.items()}
    found["text_projection"] = found.pop("text_projection.weight").T.contiguous()
    # It belongs to the loss here; this is the value that open_clip begins with.
    found["logit_scale"] = torch.tensor(math.log(1 / 0.07))
    model = {"embed_dim": config.embed_dim, "vision_cfg": vision, "text_cfg": text}
    return {"model_cfg": model, "preprocess_cfg": preprocess}, found


def _open_clip_name(name: str) -> str:
    if name.startswith("text_transformer.layers."):
        _, _, number, own = name.split(".", 3)
        for ours, theirs in LAYER_NAMES.items():
            own = theirs + own.removeprefix(ours) if own.startswith(ours) else own
        return f"transformer.resblocks.{number}.{own}"
    convolutions = "visual.trunk.convolutions."
    return NAMES.get(name) or name.replace("image_tower.", convolutions)
