"""Trained models for use: images and texts in, unit embeddings out."""

from collections.abc import Callable, Sequence
from os import PathLike
from pathlib import Path
from typing import Any, TypeVar

import torch
from jaxtyping import Float, Float32
from PIL import Image
from torch import Tensor

from drrho.data.reading.shards import UnusableSample, convert_to_rgb, decode_image_bytes
from drrho.models.build import Model, build_model, find_model
from drrho.models.two_tower import ImageTransform, Tokenizer, TwoTower
from drrho.runtime.launch import Device, resolve_device

ImageLike = str | PathLike[str] | Image.Image | Tensor
Item = TypeVar("Item")


class EmbeddingModel:
    """A trained model with its transform and tokenizer, ready to embed images and texts.

    Embeddings are float32, of unit length, without gradient and in host memory, so that
    `image @ text.T` are cosine similarities.

    Args:
        towers: the model. It is taken over: moved to `device` and set to evaluation.
        device: where to compute.

    Attributes:
        transform: RGB image -> tensor, deterministic.
        tokenizer: captions -> token ids.
        identity: what the embeddings depend on: architecture, hash of the weights, transform and
            tokenizer.
        device: where to compute.
    """

    def __init__(self, towers: TwoTower, *, device: torch.device | str) -> None:
        self.device = torch.device(device)
        # Any: nn.Module does not say that its attributes are functions. Not frozen: PyTorch's
        # kernels for frozen weights round otherwise than those that evaluate a run.
        self.module: Any = towers.module.to(self.device).eval()
        self.transform: ImageTransform = towers.eval_transform
        self.tokenizer: Tokenizer = towers.tokenizer
        self.identity = towers.identity

    def __repr__(self) -> str:
        name, weights = self.identity["architecture"], self.identity["weights_sha256"][:12]
        return f"EmbeddingModel({name}, weights {weights}, {self.device})"

    @torch.no_grad()
    def encode_image(
        self, images: ImageLike | Sequence[ImageLike], *, batch_size: int = 64
    ) -> Float32[Tensor, "images dim"]:
        """Unit embeddings of images.

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
            pixels = torch.stack([self._pixels(image) for image in batch])
            return self.module.encode_image(pixels.to(self.device), normalize=True)

        return _in_batches(several, encode, batch_size=batch_size, name="images")

    @torch.no_grad()
    def encode_text(
        self, texts: str | Sequence[str], *, batch_size: int = 256
    ) -> Float32[Tensor, "texts dim"]:
        """Unit embeddings of one or several texts.

        Args:
            texts: cut off at the tokenizer's context length.
            batch_size: texts encoded at once.

        Raises:
            ValueError: there is no text.
        """

        def encode(batch: Sequence[str]) -> Tensor:
            tokens = self.tokenizer(list(batch)).to(self.device)
            return self.module.encode_text(tokens, normalize=True)

        several = [texts] if isinstance(texts, str) else texts
        return _in_batches(several, encode, batch_size=batch_size, name="texts")

    def _pixels(self, image: ImageLike) -> Float[Tensor, "3 height width"]:
        if isinstance(image, Tensor):
            return image
        if isinstance(image, Image.Image):
            return self.transform(convert_to_rgb(image))
        try:
            return self.transform(decode_image_bytes(Path(image).expanduser().read_bytes()))
        except UnusableSample as unusable:
            raise ValueError(f"{image}: {unusable.reason}") from unusable


def load(
    model: str | PathLike[str] | Model,
    *,
    pretrained: str | None = None,
    device: Device | torch.device = "auto",
) -> EmbeddingModel:
    """Loads a trained model, with its transform and tokenizer, to embed images and texts.

    >>> model = drrho.load("runs/mine")
    >>> cosines = model.encode_image(["a.jpg", "b.jpg"]) @ model.encode_text(["a lemon"]).T

    Args:
        model: folder of a finished run or of an exported model; or a name as `drrho.Model` takes
            it, such as "ViT-B-32" (with `pretrained`), "local-dir:PATH" or "transformers:PATH".
        pretrained: open_clip's tag, or a checkpoint file such as `drrho.export` writes.
        device: "auto" takes the GPU if there is one.

    Raises:
        FileNotFoundError: the folder holds no finished run and no model.
        ValueError: no such model, or one whose weights would be random.
    """
    named = model if isinstance(model, Model) else find_model(str(model), pretrained=pretrained)
    if isinstance(model, Model) and pretrained is not None:
        raise ValueError("pretrained has no effect beside a Model, which has its own; leave it out")
    named.require_trained()
    place = device if isinstance(device, torch.device) else resolve_device(device)
    return EmbeddingModel(build_model(named, seed=0), device=place)


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
    return torch.cat([encode(items[i : i + batch_size]).float().cpu() for i in starts])
