"""The small model: trimming captions is exact, positions are seen, widths are checked."""

import pytest
import torch
from torch.testing import assert_close

from drrho.models.small import SmallConfig, SmallTwoTower

NARROW = SmallConfig(embed_dim=8, image_width=2, text_width=8, text_heads=2, context_length=12)


@pytest.fixture
def model():
    return SmallTwoTower(NARROW, vocabulary_size=50).eval()


def test_padding_and_longer_captions_beside_it_do_not_change_an_embedding(model):
    short = torch.tensor([[48, 5, 6, 49, 0, 0, 0, 0, 0, 0, 0, 0]])
    long = torch.tensor([[48, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 49]])
    alone = model.encode_text(short)
    assert_close(model.encode_text(torch.cat([short, long]))[:1], alone, atol=1e-6, rtol=1e-5)
    assert_close(model.encode_text(short[:, :4]), alone, atol=1e-6, rtol=1e-5)
    assert not torch.allclose(model.encode_text(long), alone, atol=1e-3)


def test_the_order_of_words_matters(model):
    orders = torch.tensor([[48, 5, 6, 49], [48, 6, 5, 49]])
    first, second = model.encode_text(orders)
    assert not torch.allclose(first, second, atol=1e-4)


def test_the_place_of_things_matters(model):
    images = torch.zeros(2, 3, 64, 64)
    images[0, :, :16, :16] = 1
    images[1, :, -16:, -16:] = 1
    first, second = model.encode_image(images)
    assert not torch.allclose(first, second, atol=1e-4)


def test_normalize_gives_unit_length(model):
    images = torch.randn(3, 3, 64, 64)
    tokens = torch.tensor([[48, 5, 6, 49]])
    for embeddings in (
        model.encode_image(images, normalize=True),
        model.encode_text(tokens, normalize=True),
    ):
        assert_close(embeddings.norm(dim=-1), torch.ones(len(embeddings)))


@pytest.mark.parametrize("options", [{"image_width": 0}, {"text_width": 9, "text_heads": 2}])
def test_widths_are_checked(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        SmallConfig(**options)
