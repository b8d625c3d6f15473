"""Retrieval among a sample of pairs, beside what guessing would reach."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from drrho.evaluation.metrics.bootstrap import bootstrap_interval
from drrho.evaluation.metrics.retrieval import (
    distinct_texts,
    reciprocal_rank_of_images,
    retrieval_ranks,
)
from drrho.models.joined import MRR


def mrr_of_pairs(
    images: Float[Tensor, "pairs dim"],
    texts: Float[Tensor, "pairs dim"],
    captions: Sequence[str],
    *,
    generator: torch.Generator,
) -> MRR:
    """Compute the mean reciprocal rank on distinct captions, both directions, with its interval.

    Args:
        images, texts: embeddings of the same pairs, of any length.
        captions: of the pairs; equal ones are one text, and any of their images is right.
    """
    values, guessing = reciprocal_ranks_of_pairs(images, texts, captions)
    low, high = bootstrap_interval(values, generator=generator)
    return MRR(float(values.mean()), low, high, guessing)


def reciprocal_ranks_of_pairs(
    images: Float[Tensor, "pairs dim"],
    texts: Float[Tensor, "pairs dim"],
    captions: Sequence[str],
) -> tuple[Float[Tensor, " pairs"], float]:
    """Compute one value per pair, whose mean is the mean reciprocal rank, and that of guessing."""
    distinct, pairs = distinct_texts(captions)
    index = {caption: row for row, caption in reversed(list(enumerate(captions)))}
    first = torch.tensor([index[caption] for caption in distinct])
    ranks = retrieval_ranks(images.float(), texts[first].float(), pairs)
    carriers = torch.bincount(pairs[1], minlength=len(distinct)).tolist()
    # Of images to texts one of all is right; of texts to images as many as carry the text.
    by_number = {n: guessed(len(captions), n) for n in set(carriers)}
    of_texts = sum(by_number[n] for n in carriers) / len(carriers)
    guessing = (guessed(len(distinct), 1) + of_texts) / 2
    return reciprocal_rank_of_images(ranks, pairs), guessing


def guessed(candidates: int, right: int) -> float:
    """Compute the expected reciprocal rank of the best of `right` candidates in random order."""
    # P(best at rank r) = C(N - r, m - 1) / C(N, m), by its ratio from one rank to the next.
    chance, total = right / candidates, 0.0
    for rank in range(1, candidates - right + 2):
        total += chance / rank
        if rank < candidates:
            chance *= (candidates - rank - right + 1) / (candidates - rank)
    return total
