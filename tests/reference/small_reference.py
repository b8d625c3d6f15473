"""A reference model of a few numbers, whose embedding of a sample can be worked out by hand."""

import io

import torch
from PIL import Image
from tests.data.tar_files import pair, to_tensor, to_tokens
from torch import Tensor, nn

from drrho.encoding.encoder import EmbeddingModel
from drrho.models.two_tower import TwoTower

DIM = 12


class SmallTowers(nn.Module):
    """Sines of the grey level and of the caption's number; dropout shows a forgotten eval()."""

    def __init__(self, seed: int):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.image = nn.Parameter(torch.randn(3, DIM, generator=generator))
        self.text = nn.Parameter(torch.randn(2, DIM, generator=generator))
        self.dropout = nn.Dropout(0.5)

    def encode_image(self, images: Tensor, normalize: bool = False) -> Tensor:
        return torch.sin(self.dropout(9 * images.mean((2, 3)) @ self.image))

    def encode_text(self, tokens: Tensor, normalize: bool = False) -> Tensor:
        return torch.sin(self.dropout(0.1 * tokens.float() @ self.text))


def two_tower(seed: int = 0, *, module: nn.Module | None = None) -> TwoTower:
    def forbidden(image):
        raise AssertionError("a reference has no use for the training transform")

    return TwoTower(
        module=module or SmallTowers(seed),
        train_transform=forbidden,
        eval_transform=to_tensor,
        tokenizer=to_tokens,
        identity={
            "architecture": "small",
            "pretrained": "none",
            "weights_sha256": str(seed),
            "eval_transform": "to_tensor",
            "tokenizer": "to_tokens",
        },
    )


def embeddings_of(number: int, *, seed: int = 0) -> tuple[Tensor, Tensor]:
    """The unit embeddings of the sample with this number, computed from its picture and caption."""
    module, fields = SmallTowers(seed).eval(), pair(number)
    image = to_tensor(Image.open(io.BytesIO(fields["jpg"])))
    tokens = to_tokens([fields["txt"].decode()])
    with torch.no_grad():
        embeddings = module.encode_image(image[None])[0], module.encode_text(tokens)[0]
    return embeddings[0] / embeddings[0].norm(), embeddings[1] / embeddings[1].norm()


def small_encoder(seed: int = 0, *, module: nn.Module | None = None) -> EmbeddingModel:
    return EmbeddingModel.frozen(two_tower(seed, module=module), precision="float32", device="cpu")
