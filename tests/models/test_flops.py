"""Operations of the small model, against a count by hand."""

import pytest
import torch

from drrho.models.build import Model, build_model
from drrho.models.flops import forward_flops
from drrho.models.small import SmallConfig


def test_it_is_the_count_by_hand():
    width, dim, text, layers = 2, 8, 12, 3
    config = SmallConfig(
        embed_dim=dim, image_width=width, text_width=text, text_layers=layers, text_heads=2
    )
    model = build_model(Model(name="small", small=config), seed=0)
    captions = ["a red box", "a red box"]
    flops = forward_flops(model, torch.zeros(3, 3, 64, 64), captions)
    channels = [(3, 2, 32), (2, 4, 16), (4, 4, 16), (4, 8, 8), (8, 8, 8), (8, 16, 4)]
    convolutions = sum(2 * 9 * before * after * side**2 for before, after, side in channels)
    assert flops.image == convolutions + 2 * (16 * 16) * dim
    n = int(model.tokenizer(captions).argmax(dim=-1).max()) + 1
    products = 2 * n * text * (3 * text + text + 4 * text + 4 * text)  # in, out, two of the MLP
    attention = 2 * 2 * n * n * text
    assert flops.text == layers * (products + attention) + 2 * text * dim
    assert flops.total == flops.image + flops.text


def test_nothing_to_count_is_refused():
    model = build_model(Model(name="small", small=SmallConfig(image_width=1)), seed=0)
    with pytest.raises(ValueError, match="at least one image"):
        forward_flops(model, torch.zeros(0, 3, 64, 64), [])
