"""Embedding a data set keeps the order and what belongs to each sample."""

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from drrho.encoding.embed import embed_images, embed_texts


@dataclass(frozen=True)
class ImageBatch:
    sample_ids: Tensor
    images: Tensor
    all_captions: list[list[str]]
    metadata: list[dict]


def batches(sizes):
    start = 0
    for size in sizes:
        ids = torch.arange(start, start + size)
        images = ids.float()[:, None, None, None].expand(-1, 3, 2, 2)
        yield ImageBatch(ids, images, [[f"text {i}"] for i in ids], [{"id": int(i)} for i in ids])
        start += size


def encode_letters(texts):
    """One dimension per text length and first letter, so that each text has its own embedding."""
    return torch.tensor([[len(text), ord(text[0]), 1.0] for text in texts])


def test_samples_stay_together_and_in_order():
    layer = nn.Linear(3, 2)
    encoded = embed_images(batches([3, 1, 2]), lambda images: layer(images.mean((2, 3))).bfloat16())
    assert encoded.sample_ids.tolist() == list(range(6))
    assert encoded.captions == [[f"text {i}"] for i in range(6)]
    assert [entry["id"] for entry in encoded.metadata] == list(range(6))
    assert encoded.image_embeddings.dtype == torch.float32
    assert not encoded.image_embeddings.requires_grad
    expected = layer(torch.arange(6.0)[:, None].expand(-1, 3)).bfloat16().float()
    assert torch.equal(encoded.image_embeddings, expected)


def test_batch_size_of_texts_does_not_matter():
    texts = [f"{letter}" * n for n, letter in enumerate("abcdefg", start=1)]
    sizes = []

    def encode(batch):
        sizes.append(len(batch))
        return encode_letters(batch)

    assert torch.equal(embed_texts(texts, encode, batch_size=3), encode_letters(texts))
    assert sizes == [3, 3, 1]


def test_nothing_to_embed_is_an_error():
    with pytest.raises(ValueError, match="no usable sample"):
        embed_images([], lambda images: images)
    with pytest.raises(ValueError, match="got 0 texts"):
        embed_texts([], encode_letters, batch_size=4)
    with pytest.raises(ValueError, match="batch_size = 0"):
        embed_texts(["a"], encode_letters, batch_size=0)
