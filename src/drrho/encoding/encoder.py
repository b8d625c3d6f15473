"""Models with their transforms and tokenizers: images and texts in, unit embeddings out."""

from collections.abc import Callable, Sequence
from copy import copy
from functools import cached_property
from os import PathLike, fspath
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from jaxtyping import Float, Float32, Int, Shaped
from PIL import Image
from torch import Tensor
from torch.nn.functional import normalize

from drrho.contrastive.pairs import PairEmbeddings
from drrho.data.reading.images import (
    UnusableSample,
    convert_to_rgb,
    decode_image_bytes,
    transformed,
)
from drrho.data.reading.tar import MAX_CONTENT
from drrho.data.views import View
from drrho.models.build import Model, build_model, find_model
from drrho.models.program import trusting
from drrho.models.two_tower import ImageTransform, Tokenizer, TwoTower
from drrho.runtime.files import read_regular
from drrho.runtime.launch import Device, resolve_device

Precision = Literal["float32", "bfloat16", "float16"]
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
ImageLike = str | PathLike[str] | Image.Image | Tensor
Item = TypeVar("Item")


class EmbeddingModel:
    """A trained model with its transform and tokenizer, ready to embed images and texts.

    Embeddings are float32, of unit length, without gradient and in host memory, so that
    `image @ text.T` are cosine similarities.

    Args:
        towers: the model, on `device` and in evaluation mode.
        precision: floating-point type of the matrix products (autocast); weights, and operations
            that are sensitive to rounding, stay in float32.

    Attributes:
        transform: RGB image -> tensor, deterministic.
        tokenizer: captions -> token ids.
        view: view of the samples that embeddings are stored of; None for samples as they are.
        trained_on: `content_sha256` of the shards that it was trained on; None if unknown.

    Raises:
        ValueError: `precision` is none of the three.
    """

    def __init__(
        self, towers: TwoTower, *, device: torch.device | str, precision: Precision = "float32"
    ) -> None:
        if precision not in DTYPES:
            raise ValueError(f"precision must be float32, bfloat16 or float16, got {precision!r}")
        self.towers, self.precision = towers, precision
        self.device = torch.device(device)
        # Any: nn.Module does not say that its attributes are functions.
        self.module: Any = towers.module
        self.transform: ImageTransform = towers.eval_transform
        self.tokenizer: Tokenizer = towers.tokenizer
        self.view: View | None = None
        self.trained_on: tuple[str, ...] | None = None

    @classmethod
    def frozen(
        cls, towers: TwoTower, *, device: torch.device | str, precision: Precision = "float32"
    ) -> "EmbeddingModel":
        """Take over a model: move it to `device`, set it to evaluation and freeze it."""
        towers.module.to(device).eval().requires_grad_(False)
        return cls(towers, device=device, precision=precision)

    def of_view(self, view: View | None) -> "EmbeddingModel":
        """Return the same model for embeddings of another view."""
        other = copy(self)
        other.view = view
        return other

    def __repr__(self) -> str:
        name, weights = self.identity["architecture"], self.identity["weights_sha256"][:12]
        return f"EmbeddingModel({name}, weights {weights}, {self.device})"

    @property
    def identity(self) -> dict[str, str]:
        """What the embeddings depend on, for comparisons."""
        view = {} if self.view is None else self.view.identity
        return self.towers.identity | {"precision": self.precision} | view

    @cached_property
    def embedding_dim(self) -> int:
        """Dimension d of the embeddings."""
        return self.encode_text("a").shape[-1]

    def encode_image(
        self, images: ImageLike | Sequence[ImageLike], *, batch_size: int = 64
    ) -> Float32[Tensor, "images dim"]:
        """Embed images.

        Args:
            images: one or several of: a path, a Pillow image, or a tensor (3, height, width) that
                went through `transform`; or a tensor (B, 3, height, width) of such.
            batch_size: images opened and encoded at once.

        Raises:
            FileNotFoundError: a path does not exist.
            ValueError: there is no image, or a file is none.
        """
        if isinstance(images, Tensor):
            several: Sequence[ImageLike] = list(images if images.ndim == 4 else images[None])
        else:
            several = [images] if isinstance(images, str | PathLike | Image.Image) else images

        def encode(batch: Sequence[ImageLike]) -> Tensor:
            return self.encode_pixels(torch.stack([self._pixels(image) for image in batch]))

        return _in_batches(several, encode, batch_size=batch_size, name="images")

    def encode_text(
        self, texts: str | Sequence[str], *, batch_size: int = 256
    ) -> Float32[Tensor, "texts dim"]:
        """Embed texts, `batch_size` at once, each cut off at the tokenizer's context length.

        Raises:
            ValueError: there is no text.
        """

        def encode(batch: Sequence[str]) -> Tensor:
            return self.encode_tokens(self.tokenizer(list(batch)))

        several = [texts] if isinstance(texts, str) else texts
        return _in_batches(several, encode, batch_size=batch_size, name="texts")

    def encode_pairs(
        self, pixels: Float[Tensor, "batch channels height width"], captions: list[str]
    ) -> PairEmbeddings:
        """Embed a batch of pairs, whose images went through `transform`."""
        return PairEmbeddings(
            self.encode_pixels(pixels), self.encode_tokens(self.tokenizer(captions))
        )

    def encode_pixels(
        self, pixels: Float[Tensor, "batch channels height width"]
    ) -> Float32[Tensor, "batch dim"]:
        """Embed a batch of images that went through `transform`."""
        return self._encode(self.module.encode_image, pixels).cpu()

    def encode_tokens(self, tokens: Int[Tensor, "batch length"]) -> Float32[Tensor, "batch dim"]:
        """Embed a batch of texts that went through `tokenizer`."""
        return self._encode(self.module.encode_text, tokens).cpu()

    def encode_inputs(
        self,
        pixels: Shaped[Tensor, "batch ..."],
        tokens: Int[Tensor, "batch length"],
    ) -> PairEmbeddings:
        """Embed a batch of pairs that went through `transform` and `tokenizer`; they stay on the
        model's device.
        """
        return PairEmbeddings(
            self._encode(self.module.encode_image, pixels),
            self._encode(self.module.encode_text, tokens),
        )

    @torch.no_grad()
    def _encode(
        self, tower: Callable[..., Tensor], inputs: Shaped[Tensor, "batch ..."]
    ) -> Float32[Tensor, "batch dim"]:
        inputs, dtype = inputs.to(self.device, non_blocking=True), DTYPES[self.precision]
        with torch.autocast(self.device.type, dtype, enabled=dtype != torch.float32):
            embeddings = tower(inputs, normalize=False)
        # Half-precision rounding of the norm would be a bias shared by a whole row of cosines.
        return normalize(embeddings.float(), dim=-1)

    def _pixels(self, image: ImageLike) -> Float[Tensor, "3 height width"]:
        if isinstance(image, Tensor):
            return image
        if isinstance(image, Image.Image):
            return self.transform(convert_to_rgb(image))
        try:
            content = read_regular(Path(image).expanduser(), most=MAX_CONTENT)
            return transformed(self.transform, decode_image_bytes(content, upright=True))
        except UnusableSample as unusable:
            raise ValueError(f"{image}: {unusable.reason}") from unusable


def load(
    model: str | PathLike[str] | Model,
    *,
    pretrained: str | None = None,
    device: Device | torch.device = "auto",
    trust: bool = False,
) -> EmbeddingModel:
    """Load a trained model, with its transform and tokenizer, to embed images and texts.

    >>> model = drrho.load("runs/mine")
    >>> cosines = model.encode_image(["a.jpg", "b.jpg"]) @ model.encode_text(["a lemon"]).T

    Args:
        model: folder of a finished run or of an exported model; or a name as `drrho.Model` takes
            it, such as "ViT-B-32" (with `pretrained`), "local-dir:PATH" or "transformers:PATH".
        pretrained: open_clip's tag, or a checkpoint file such as `drrho.export` writes.
        device: "auto" takes the GPU if there is one.
        trust: run the program that the folder of a model names; needed for runs of
            "python:FILE.py".

    Raises:
        FileNotFoundError: the folder holds no finished run and no model.
        ValueError: no such model, or one whose weights would be random.
    """
    named = model if isinstance(model, Model) else find_model(fspath(model), pretrained=pretrained)
    if isinstance(model, Model) and pretrained is not None:
        raise ValueError("pretrained has no effect beside a Model, which has its own; leave it out")
    named.require_trained()
    place = device if isinstance(device, torch.device) else resolve_device(device)
    with trusting(everything=trust):
        towers = build_model(named, seed=0)
    # Not frozen: PyTorch's kernels for frozen weights may round otherwise than those that
    # evaluate a run.
    towers.module.to(place).eval()
    return EmbeddingModel(towers, device=place)


def _in_batches(
    items: Sequence[Item],
    encode: Callable[[Sequence[Item]], Tensor],
    *,
    batch_size: int,
    name: str,
) -> Float32[Tensor, "items dim"]:
    if not len(items) or batch_size < 1:
        raise ValueError(
            f"{name} must be at least one and batch_size positive, got {len(items)} and "
            f"{batch_size}"
        )
    starts = range(0, len(items), batch_size)
    return torch.cat([encode(items[i : i + batch_size]) for i in starts])
