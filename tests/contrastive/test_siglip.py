"""SigLIP's loss against its definition, and tile by tile against the exact function."""

import pytest
import torch
from torch.testing import assert_close

from drrho.contrastive.objectives.siglip import siglip_anchor_losses, tiled_siglip_anchor_losses
from drrho.contrastive.pairs import PairEmbeddings
from drrho.contrastive.tiles import strip
from tests.contrastive.conftest import draw_pairs


def test_it_is_binary_cross_entropy_of_every_pair(target):
    tau, bias = torch.tensor(0.1).double(), torch.tensor(-3.0).double()
    questions = target.image @ target.text.T / tau + bias
    answers = torch.eye(7, dtype=torch.float64)
    expected = torch.nn.functional.binary_cross_entropy_with_logits(
        questions, answers, reduction="sum"
    )
    assert_close(siglip_anchor_losses(target, temperature=tau, bias=bias).sum(), expected)


@pytest.mark.parametrize("tile", [5, 64])
def test_tiles_are_the_exact_function(tile, monkeypatch):
    monkeypatch.setattr(strip, "CPU_TILE", tile)
    target = draw_pairs(23, 6, seed=0)
    numbers = [torch.tensor(n, dtype=torch.float64) for n in (0.1, -4.0)]
    grad_output = torch.randn(23, dtype=torch.float64, generator=torch.Generator().manual_seed(0))

    def value_and_gradients(function):
        leaves = [e.clone().requires_grad_() for e in (*target, *numbers)]
        value = function(PairEmbeddings(*leaves[:2]), temperature=leaves[2], bias=leaves[3])
        return value, *torch.autograd.grad((value * grad_output).sum(), leaves)

    exact = value_and_gradients(siglip_anchor_losses)
    for ours, theirs in zip(value_and_gradients(tiled_siglip_anchor_losses), exact, strict=True):
        assert_close(ours, theirs, rtol=1e-12, atol=1e-12 * theirs.abs().max().item())


def test_half_precision_is_within_the_plain_codes_error(monkeypatch):
    monkeypatch.setattr(strip, "CPU_TILE", 16)
    target = draw_pairs(40, 16, seed=0, dtype=torch.bfloat16)
    numbers = [torch.tensor(0.1), torch.tensor(-10.0)]

    def errors(function):
        wide = PairEmbeddings(*(e.double() for e in target))
        found = []
        for pairs in (target, wide):
            leaves = [e.clone().requires_grad_() for e in (*pairs, *numbers)]
            value = function(PairEmbeddings(*leaves[:2]), temperature=leaves[2], bias=leaves[3])
            found.append((value, *torch.autograd.grad(value.mean(), leaves)))
        return [
            (ours.double() - exact).abs().max() / exact.abs().max()
            for ours, exact in zip(*found, strict=True)
        ]

    for ours, plain in zip(
        errors(tiled_siglip_anchor_losses), errors(siglip_anchor_losses), strict=True
    ):
        assert ours <= 1.5 * plain + 2e-6
