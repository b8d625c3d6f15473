"""Pairs for the examples of this folder: noisy pictures of 24 concepts, some captions wrong."""

from typing import NamedTuple

import torch
from torch import Tensor

import drrho.integrations  # noqa: F401 - before what imports torchvision

CONCEPTS, SIZE, LENGTH, VOCABULARY = 24, 8, 4, 32
END = VOCABULARY - 1  # the largest token ends a caption, where open_clip and CLIPModel read it


class Pairs(NamedTuple):
    """A sample's id is its row."""

    images: Tensor
    texts: Tensor
    concepts: Tensor


def draw(num_samples: int, *, seed: int, wrong: float = 0.0) -> Pairs:
    """A share `wrong` of the captions is of another concept."""
    generator = torch.Generator().manual_seed(seed)
    concepts = torch.randint(CONCEPTS, (num_samples,), generator=generator)
    patterns = torch.randn(CONCEPTS, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    noise = torch.randn(num_samples, 3, SIZE, SIZE, generator=generator)
    replaced = torch.rand(num_samples, generator=generator) < wrong
    others = torch.randint(CONCEPTS, (num_samples,), generator=generator)
    return Pairs(
        patterns[concepts] + 2.0 * noise, captions()[concepts.where(~replaced, others)], concepts
    )


def captions() -> Tensor:
    """The caption of each concept."""
    concepts = torch.arange(CONCEPTS)
    ends = torch.full_like(concepts, END)
    return torch.stack([1 + concepts // 5, 7 + concepts % 5, ends, 0 * ends], dim=1)


def accuracy(images: Tensor, texts: Tensor, concepts: Tensor) -> float:
    """How often an image is closest to its own concept's caption, of embeddings."""
    return float(((images @ texts.T).argmax(dim=1) == concepts).float().mean())
