"""Running a model over a data set, so that everything else in this room takes embeddings."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

Input = TypeVar("Input", Tensor, list[str])
EncodeImages = Callable[[Tensor], Tensor]  # (batch, 3, height, width) -> (batch, dim)
EncodeTexts = Callable[[list[str]], Tensor]  # batch texts -> (batch, dim)


@runtime_checkable
class EvaluationBatch(Protocol):
    """What is read of a batch of samples in the order of the data set."""

    @property
    def sample_ids(self) -> Int[Tensor, " batch"]: ...

    @property
    def images(self) -> Float[Tensor, "batch 3 height width"]: ...

    @property
    def all_captions(self) -> Sequence[Sequence[str]]: ...

    @property
    def metadata(self) -> Sequence[Mapping[str, object]]: ...


@dataclass(frozen=True, kw_only=True)
class EmbeddedImages:
    """A data set after the image encoder, in its own order; tensors in host memory.

    Attributes:
        sample_ids: of each image in the data set.
        image_embeddings: float32, of the length the encoder gives them.
        captions: of each image, one or more; nothing where they were not read.
        metadata: of each image, with the labels of zero-shot tasks; nothing likewise.
    """

    sample_ids: Int[Tensor, " images"]
    image_embeddings: Float[Tensor, "images dim"]
    captions: list[Sequence[str]]
    metadata: list[Mapping[str, object]]


def embed_images(batches: Iterable[EvaluationBatch], encode: EncodeImages) -> EmbeddedImages:
    """Encodes every batch once.

    Args:
        encode: brings the images to its device and runs there, in its own precision.

    Raises:
        ValueError: there is no batch.
    """
    ids, embeddings, captions, metadata = [], [], [], []
    for batch in batches:
        ids.append(batch.sample_ids)
        embeddings.append(_on_host(encode, batch.images))
        captions.extend(batch.all_captions)
        metadata.extend(batch.metadata)
    if not embeddings:
        raise ValueError("the data set has no usable sample; there is nothing to evaluate")
    return EmbeddedImages(
        sample_ids=torch.cat(ids),
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


@torch.no_grad()
def _on_host(encode: Callable[[Input], Tensor], batch: Input) -> Float[Tensor, "batch dim"]:
    return encode(batch).float().cpu()
