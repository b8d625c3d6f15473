"""The small two-tower model: trains on a laptop's CPU in about a minute on small images.

With it every recipe, test and demonstration can run without a GPU or a download. It has the
interface of open_clip's models (`encode_image`, `encode_text`).
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from drrho.runtime.checks import require_at_least

IMAGE_SIZE = 64  # pixels; the convolutional tower ends in a 4 x 4 grid of it


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
        width = config.image_width
        self.image_tower = nn.Sequential(
            _convolution(3, width, stride=2),
            _convolution(width, 2 * width, stride=2),
            _convolution(2 * width, 2 * width, stride=1),
            _convolution(2 * width, 4 * width, stride=2),
            _convolution(4 * width, 4 * width, stride=1),
            _convolution(4 * width, 8 * width, stride=2),
            nn.Flatten(),
            nn.Linear(8 * width * 4 * 4, config.embed_dim),
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
