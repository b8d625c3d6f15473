"""Image-to-text and text-to-image retrieval, on distinct texts."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from drrho.evaluation.ranks import PositiveRanks, positive_ranks


def distinct_texts(captions: Sequence[str]) -> tuple[list[str], Int[Tensor, " captions"]]:
    """The different captions, in the order of their first appearance, and each caption's index.

    Images with the same caption share one text: asked for the text of one of them, a model cannot
    prefer the "right" copy of two equal strings.
    """
    index_of: dict[str, int] = {}
    indices = [index_of.setdefault(caption, len(index_of)) for caption in captions]
    return list(index_of), torch.tensor(indices, dtype=torch.int64)


@dataclass(frozen=True)
class RetrievalRanks:
    """Where the right answer of every query stands.

    Attributes:
        image_to_text: for each image, of its caption among the distinct texts.
        text_to_image: for each distinct text, of the best-ranked image that carries it.
    """

    image_to_text: PositiveRanks
    text_to_image: PositiveRanks


def retrieval_ranks(
    image_embeddings: Float[Tensor, "images dim"],
    text_embeddings: Float[Tensor, "texts dim"],
    text_of_image: Int[Tensor, " images"],
    *,
    chunk_size: int = 512,
) -> RetrievalRanks:
    """Ranks in both directions, for `summarise_ranks` and, query by query, for an interval:

        ranks = retrieval_ranks(images, texts, text_of_image)
        low, high = bootstrap_interval(ranks.image_to_text.reciprocal(), generator=generator)

    Args:
        text_of_image: row of `text_embeddings` with the caption of each image, as
            `distinct_texts` returns it.
        chunk_size: queries compared at once; memory is O(chunk_size x max(images, texts)) and
            the ranks do not depend on it.

    Raises:
        ValueError: no images or texts, an embedding that is not finite, an index out of range, or
            a text that no image carries.
    """
    texts = torch.arange(len(text_embeddings), device=text_of_image.device)
    return RetrievalRanks(
        image_to_text=positive_ranks(
            image_embeddings,
            text_embeddings,
            query_labels=text_of_image,
            candidate_labels=texts,
            chunk_size=chunk_size,
        ),
        text_to_image=positive_ranks(
            text_embeddings,
            image_embeddings,
            query_labels=texts,
            candidate_labels=text_of_image,
            chunk_size=chunk_size,
        ),
    )


def retrieval(
    image_embeddings: Float[Tensor, "images dim"],
    text_embeddings: Float[Tensor, "texts dim"],
    text_of_image: Int[Tensor, " images"],
    *,
    recall_at: Sequence[int] = (1, 5, 10),
    chunk_size: int = 512,
) -> dict[str, float]:
    """Recall and mean reciprocal rank in both directions.

    Args and errors: as of `retrieval_ranks`.

    Returns:
        `image_to_text/R@k` and `text_to_image/R@k` (shares of queries, 0 to 1) for each k of
        `recall_at`, `mrr_image_to_text`, `mrr_text_to_image`, and `mrr`, the mean of the two.
    """
    ranks = retrieval_ranks(image_embeddings, text_embeddings, text_of_image, chunk_size=chunk_size)
    return summarise_ranks(ranks, recall_at=recall_at)


def summarise_ranks(
    ranks: RetrievalRanks, *, recall_at: Sequence[int] = (1, 5, 10)
) -> dict[str, float]:
    """What `retrieval` returns, from ranks that are kept for other purposes too.

    Raises:
        ValueError: a k of `recall_at` is not positive.
    """
    metrics: dict[str, float] = {}
    for direction, side in (
        ("image_to_text", ranks.image_to_text),
        ("text_to_image", ranks.text_to_image),
    ):
        for k in recall_at:
            metrics[f"{direction}/R@{k}"] = float(side.hits(k).mean())
        metrics[f"mrr_{direction}"] = float(side.reciprocal().mean())
    metrics["mrr"] = (metrics["mrr_image_to_text"] + metrics["mrr_text_to_image"]) / 2
    return metrics


def reciprocal_rank_of_images(
    ranks: RetrievalRanks, text_of_image: Int[Tensor, " images"]
) -> Float[Tensor, " images"]:
    """One value per image whose mean is `mrr`: for intervals, and for paired differences.

    Half of it is the image's own reciprocal rank as a query. The other half is the reciprocal
    rank of its text as a query, shared among the images that carry the text and scaled so that
    the mean over images is the mean over texts.
    """
    of_texts = ranks.text_to_image.reciprocal()
    carriers = torch.bincount(text_of_image, minlength=len(of_texts))
    share = of_texts / carriers * (len(text_of_image) / len(of_texts))
    return (ranks.image_to_text.reciprocal() + share[text_of_image]) / 2
