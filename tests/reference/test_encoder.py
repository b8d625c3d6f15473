"""A reference is frozen, gives unit float32 embeddings, and computes as precisely as asked."""

import pytest
import torch
from tests.reference.small_reference import DIM, small_encoder, two_tower

from drrho.encoding.encoder import EmbeddingModel


@pytest.fixture
def images():
    return torch.rand(4, 3, 8, 8)


@pytest.fixture
def tokens():
    return torch.randint(0, 50, (4, 2))


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
def test_embeddings_are_unit_and_float32_in_every_precision(images, tokens, precision):
    encoder = EmbeddingModel.frozen(two_tower(), precision=precision, device="cpu")
    exact = small_encoder()
    for embeddings, expected in (
        (encoder.encode_pixels(images), exact.encode_pixels(images)),
        (encoder.encode_tokens(tokens), exact.encode_tokens(tokens)),
    ):
        assert embeddings.dtype == torch.float32
        torch.testing.assert_close(embeddings.norm(dim=-1), torch.ones(4))
        error = (embeddings - expected).abs().max()
        assert error == 0 if precision == "float32" else 0 < error < 0.2


def test_a_reference_is_frozen(images):
    tower = two_tower()
    encoder = EmbeddingModel.frozen(tower, precision="float32", device="cpu")
    embeddings = encoder.encode_pixels(images.requires_grad_())
    assert not embeddings.requires_grad
    assert not any(parameter.requires_grad for parameter in tower.module.parameters())
    assert torch.equal(embeddings, encoder.encode_pixels(images))  # no dropout


def test_a_reference_has_its_own_transform_tokenizer_and_identity():
    tower = two_tower()
    encoder = EmbeddingModel.frozen(tower, precision="bfloat16", device="cpu")
    assert encoder.transform is tower.eval_transform
    assert encoder.tokenizer is tower.tokenizer
    assert encoder.identity == tower.identity | {"precision": "bfloat16"}


def test_the_embedding_dimension_is_known_without_data():
    assert small_encoder().embedding_dim == DIM
