"""Quality of a pair by two models: whether its caption belongs, is learned, is a repetition.

Every pair is held against the same negatives, so that the data set is seen in one pass.
"""

import math
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from drrho.contrastive.pairs import PairEmbeddings


class PairScores(NamedTuple):
    """Scores of pairs against common negatives; losses in units of cosine similarity.

    Attributes:
        similarity: of image and caption, by the target and by the reference.
        loss: `tau / 2 (log g1 + log g2)` of target, reference, and of their excess.
        rank: by the reference, mean over both directions of the logarithm of the share of
            negatives that are closer than the partner: 0 is last of all.
        chance_rank: the same of the image with the caption of one of the negatives.
    """

    similarity: Float[Tensor, "pairs 2"]
    loss: Float[Tensor, "pairs 3"]
    rank: Float[Tensor, " pairs"]
    chance_rank: Float[Tensor, " pairs"]


@torch.no_grad()
def pair_scores(
    target: PairEmbeddings,
    reference: PairEmbeddings,
    *,
    negatives: tuple[PairEmbeddings, PairEmbeddings],
    same: Bool[Tensor, "pairs negatives"],
    temperature: float,
) -> PairScores:
    """Scores pairs.

    Args:
        target, reference: unit embeddings of the pairs by either model.
        negatives: of other pairs, by target and by reference.
        same: which negatives are the pair itself, and do not count.
        temperature: tau, of both models.

    Raises:
        ValueError: a pair has no negative.

    Source: docs/mathematics.md, "Quality of pairs".
    """
    counts = (~same).sum(dim=1)
    if not bool((counts > 0).all()):
        raise ValueError("every pair needs a negative; give more of them")
    gaps, similarities = [], []
    for pairs, others in zip((target, reference), negatives, strict=True):
        own = _dots(pairs.image, pairs.text)
        to_texts = pairs.image.float() @ others.text.float().T
        to_images = pairs.text.float() @ others.image.float().T
        gaps.append(torch.stack([to_texts - own[:, None], to_images - own[:, None]]))
        similarities.append(own)
    # The reference's alone: a target is trained on the very pairs, and learns wrong ones by heart.
    (to_texts, to_images), own = gaps[1], similarities[1]
    ranks = [_log_rank(gap, same) for gap in (to_texts, to_images)]
    chances = _by_chance(to_texts + own[:, None], negatives[1], same)
    losses = [_loss(x, same, counts, temperature) for x in (*gaps, gaps[0] - gaps[1])]
    return PairScores(
        similarity=torch.stack(similarities, dim=1),
        loss=torch.stack(losses, dim=1),
        rank=torch.stack(ranks).mean(dim=0),
        chance_rank=torch.stack(chances).mean(dim=0),
    )


@torch.no_grad()
def match_ranks(pairs: PairEmbeddings, negatives: PairEmbeddings) -> Float[Tensor, " pairs"]:
    """The `rank` of `PairScores` of pairs that are none of the negatives."""
    own = _dots(pairs.image, pairs.text)[:, None]
    to_texts = pairs.image.float() @ negatives.text.float().T
    to_images = pairs.text.float() @ negatives.image.float().T
    same = torch.zeros_like(to_texts, dtype=torch.bool)
    return torch.stack([_log_rank(x - own, same) for x in (to_texts, to_images)]).mean(dim=0)


def mismatched_share(rank: Float[Tensor, " pairs"], chance_rank: Float[Tensor, " pairs"]) -> float:
    """The share of pairs whose caption belongs to another image, estimated from above.

    Half of the mismatched pairs rank below the median of pairs made by chance, and none of the
    matching ones that the reference understands: `#{rank > median} / (n / 2)`.

    Raises:
        ValueError: there are no pairs.

    Source: Storey, "A direct approach to false discovery rates", 2002, at the median.
    """
    if len(rank) == 0:
        raise ValueError("mismatched_share needs pairs")
    median = chance_rank.median()
    return min(1.0, 2 * float((rank > median).double().mean()))


@torch.no_grad()
def nearest_earlier(
    pairs: PairEmbeddings, earlier: PairEmbeddings, *, similarity: float
) -> Int64[Tensor, " pairs"]:
    """For each pair the first of the earlier ones that it repeats; -1 if it repeats none.

    It does where the cosines of the images and of the texts are both at least `similarity`.
    """
    image = pairs.image.float() @ earlier.image.float().T
    text = pairs.text.float() @ earlier.text.float().T
    alike = torch.minimum(image, text) >= similarity
    first = alike.int().argmax(dim=1)
    return first.where(alike.any(dim=1), -1)


def _by_chance(
    to_texts: Float[Tensor, "pairs negatives"],
    others: PairEmbeddings,
    same: Bool[Tensor, "pairs negatives"],
) -> list[Float[Tensor, " pairs"]]:
    """Both directions' ranks of the images with the captions of negatives, taken in turn."""
    place = torch.arange(len(to_texts), device=to_texts.device) % len(others.text)
    itself = same.gather(1, place[:, None]).squeeze(1)
    place = (place + itself.long()) % len(others.text)
    partner = torch.zeros_like(same).scatter(1, place[:, None], True)
    value = to_texts.gather(1, place[:, None])
    to_images = others.text[place].float() @ others.image.float().T
    return [_log_rank(x - value, same | partner) for x in (to_texts, to_images)]


def _loss(
    gaps: Float[Tensor, "2 pairs negatives"],
    same: Bool[Tensor, "pairs negatives"],
    counts: Int64[Tensor, " pairs"],
    temperature: float,
) -> Float[Tensor, " pairs"]:
    sums = (gaps / temperature).masked_fill(same, -math.inf).logsumexp(dim=2)
    return temperature * (sums - counts.log()).mean(dim=0)


def _log_rank(
    gaps: Float[Tensor, "pairs negatives"], same: Bool[Tensor, "pairs negatives"]
) -> Float[Tensor, " pairs"]:
    """Log of the share of closer negatives; one is added to both counts, so that none is finite."""
    closer = ((gaps > 0) & ~same).sum(dim=1)
    return ((closer + 1) / ((~same).sum(dim=1) + 1)).log()


def _dots(left: Tensor, right: Tensor) -> Float[Tensor, " pairs"]:
    return (left.float() * right.float()).sum(dim=1)
