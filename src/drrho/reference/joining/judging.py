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
from drrho.models.towers.joined import MRR
from drrho.reference.judgement import guessed_mrr


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
    """Compute a value for each pair, whose mean is the MRR, and the MRR of guessing."""
    distinct, pairs = distinct_texts(captions)
    index = {caption: row for row, caption in reversed(list(enumerate(captions)))}
    first = torch.tensor([index[caption] for caption in distinct])
    ranks = retrieval_ranks(images.float(), texts[first].float(), pairs)
    carriers = torch.bincount(pairs[1], minlength=len(distinct)).tolist()
    return reciprocal_rank_of_images(ranks, pairs), guessed_mrr(carriers)
