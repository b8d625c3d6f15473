"""Deterministic unit embeddings for the contrastive tests."""

import pytest
import torch
import torch.nn.functional as F

from drrho.contrastive.objectives.distillation import distillation_anchor_losses
from drrho.contrastive.pairs import PairEmbeddings


def distillation_loss(target, teachers, *, temperature):
    """MobileCLIP's loss: the mean over anchors."""
    return distillation_anchor_losses(target, teachers, temperature=temperature).mean()


def draw_pairs(num_pairs: int, dim: int, seed: int, dtype=torch.float64) -> PairEmbeddings:
    """Unit embeddings in which a pair's two sides resemble each other."""
    generator = torch.Generator().manual_seed(seed)
    image = torch.randn(num_pairs, dim, generator=generator, dtype=torch.float64)
    text = image + 0.7 * torch.randn(num_pairs, dim, generator=generator, dtype=torch.float64)
    return PairEmbeddings(*(F.normalize(e, dim=-1).to(dtype) for e in (image, text)))


@pytest.fixture
def target() -> PairEmbeddings:
    return draw_pairs(7, 5, seed=0)


@pytest.fixture
def reference() -> PairEmbeddings:
    return draw_pairs(7, 3, seed=1)
