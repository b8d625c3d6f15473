"""Running a model over a data set, so that everything else in this room takes embeddings."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from drrho.evaluation.zero_shot import ZeroShotTask, class_embeddings

Input = TypeVar("Input", Tensor, list[str])
EncodeImages = Callable[[Tensor], Tensor]  # (batch, 3, height, width) -> (batch, dim)
EncodeTexts = Callable[[list[str]], Tensor]  # batch texts -> (batch, dim)


@runtime_checkable
class EvaluationBatch(Protocol):
    """What is read of a batch of samples in the order of the data set."""

    @property
    def images(self) -> Float[Tensor, "batch 3 height width"]: ...

    @property
    def captions(self) -> Sequence[str]: ...

    @property
    def metadata(self) -> Sequence[Mapping[str, object]]: ...


@dataclass(frozen=True, kw_only=True)
class EmbeddedImages:
    """A data set after the image encoder, in its own order; tensors in host memory.

    Attributes:
        image_embeddings: float32, of the length the encoder gives them.
        captions: the caption of each image.
        metadata: of each image, with the labels of zero-shot tasks.
    """

    image_embeddings: Float[Tensor, "images dim"]
    captions: list[str]
    metadata: list[Mapping[str, object]]


def embed_images(batches: Iterable[EvaluationBatch], encode: EncodeImages) -> EmbeddedImages:
    """Encodes every batch once.

    Args:
        encode: brings the images to its device and runs there, in its own precision.

    Raises:
        ValueError: there is no batch.
    """
    embeddings, captions, metadata = [], [], []
    for batch in batches:
        embeddings.append(_on_host(encode, batch.images))
        captions.extend(batch.captions)
        metadata.extend(batch.metadata)
    if not embeddings:
        raise ValueError("the data set has no usable sample; there is nothing to evaluate")
    return EmbeddedImages(
        image_embeddings=torch.cat(embeddings),
        captions=captions,
        metadata=metadata,
    )


def embed_texts(
    texts: Sequence[str], encode: EncodeTexts, *, batch_size: int
) -> Float[Tensor, "texts dim"]:
    """Encodes texts a batch at a time; float32 in host memory.

    Raises:
        ValueError: there are no texts, or `batch_size` is not positive.
    """
    if not texts or batch_size < 1:
        raise ValueError(
            f"embed_texts needs texts and a positive batch_size, got {len(texts)} texts and "
            f"batch_size = {batch_size}"
        )
    starts = range(0, len(texts), batch_size)
    return torch.cat([_on_host(encode, list(texts[i : i + batch_size])) for i in starts])


def embed_classes(
    task: ZeroShotTask, encode: EncodeTexts, *, batch_size: int
) -> Float[Tensor, "classes dim"]:
    """The class embeddings of a task; batches may span classes."""
    prompts = [prompt for name in task.class_names for prompt in task.prompts(name)]
    embeddings = embed_texts(prompts, encode, batch_size=batch_size)
    return class_embeddings(embeddings.unflatten(0, (len(task.class_names), len(task.templates))))


@torch.no_grad()
def _on_host(encode: Callable[[Input], Tensor], batch: Input) -> Float[Tensor, "batch dim"]:
    return encode(batch).float().cpu()
