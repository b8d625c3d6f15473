"""How familiar a caption is: its likeness to the nearest other caption of the training data.

Held-out pairs are harder where they are of things that the training data do not have. To tell that
from a reference that has seen the training pairs, both are compared where they are equally
familiar. Likeness is the cosine of the frequencies of letter trigrams, weighted by how rare they
are (tf-idf), which no model has learned.
"""

import math
import zlib
from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float32, Float64, Int64
from torch import Tensor

DIMENSIONS = 1024  # trigrams share them by a hash
BINS = 6  # of familiarity, with as many held-out pairs each; fewer where these are few
FEWEST_IN_BIN = 5  # pairs of either kind
ROWS = 512  # compared at once


class Matched(NamedTuple):
    """Weights of training and of held-out pairs under which both are equally familiar."""

    train: Float64[Tensor, " train"]
    held_out: Float64[Tensor, " held_out"]


def familiarity(
    captions: Sequence[str],
    among: Sequence[str],
    *,
    own: Int64[Tensor, " captions"] | None = None,
) -> Float32[Tensor, " captions"]:
    """Compute the likeness of each caption to the nearest of others; 1 for one that is there.

    Args:
        among: captions of the training data.
        own: places in `among` of captions that are themselves there, or -1: this place does not
            count.
    """
    counts = _trigrams(among)
    rarity = torch.log((1 + len(among)) / (1 + (counts > 0).sum(dim=0)))
    known = torch.nn.functional.normalize(counts * rarity, dim=1)
    wanted = torch.nn.functional.normalize(_trigrams(captions) * rarity, dim=1)
    found = []
    for start in range(0, len(wanted), ROWS):
        likeness = wanted[start : start + ROWS] @ known.T
        if own is not None:
            places = own[start : start + ROWS]
            rows = (places >= 0).nonzero().squeeze(1)
            likeness[rows, places[rows]] = -math.inf
        found.append(likeness.amax(dim=1))
    return torch.cat(found)


def matched(
    train: Float32[Tensor, " train"], held_out: Float32[Tensor, " held_out"]
) -> Matched | None:
    """Weigh pairs of both kinds so that equally many are as familiar as each other.

    Pairs as no other kind has are left out.

    Returns:
        None if too few are left to compare.
    """
    number = max(1, min(BINS, len(held_out) // (2 * FEWEST_IN_BIN)))
    edges = held_out.quantile(torch.linspace(0, 1, number + 1)[1:-1]).unique()
    bins = [torch.bucketize(side, edges) for side in (train, held_out)]
    counts = [side.bincount(minlength=len(edges) + 1).double() for side in bins]
    both = (counts[0] >= FEWEST_IN_BIN) & (counts[1] >= FEWEST_IN_BIN)
    if not both.any():
        return None
    share = counts[1] * both
    of_train = (share / counts[0].clamp_min(1))[bins[0]]
    return Matched(train=of_train, held_out=both.double()[bins[1]])


def _trigrams(captions: Sequence[str]) -> Float32[Tensor, "captions 1024"]:
    """Count the letter trigrams of each caption, words apart."""
    found = torch.zeros(len(captions), DIMENSIONS)
    for row, caption in enumerate(captions):
        for word in caption.lower().split():
            padded = f" {word} "
            for place in range(len(padded) - 2):
                found[row, zlib.crc32(padded[place : place + 3].encode()) % DIMENSIONS] += 1
    return found
