"""Image-to-text and text-to-image retrieval; a text may have several images, an image texts."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from drrho.evaluation.metrics.ranks import PositiveRanks, positive_ranks

Pairs = Int[Tensor, "2 pairs"]  # rows of an image and of a text that belong together


def distinct_texts(captions: Sequence[str | Sequence[str]]) -> tuple[list[str], Pairs]:
    """List the distinct captions, in the order of first appearance, and the pairs with images.

    Images with the same caption share one text, since a model cannot prefer one of two equal
    strings. An image has one caption or several.
    """
    index_of: dict[str, int] = {}
    pairs = [
        (image, index_of.setdefault(caption, len(index_of)))
        for image, texts in enumerate(captions)
        for caption in ([texts] if isinstance(texts, str) else dict.fromkeys(texts))
    ]
    return list(index_of), torch.tensor(pairs, dtype=torch.int64).reshape(-1, 2).T


def separate_texts(captions: Sequence[Sequence[str]]) -> tuple[list[str], Pairs]:
    """List every caption of every image as a text of its own, as clip_benchmark counts them."""
    texts = [caption for several in captions for caption in several]
    images = torch.repeat_interleave(torch.tensor([len(several) for several in captions]))
    return texts, torch.stack([images, torch.arange(len(texts))])


@dataclass(frozen=True)
class RetrievalRanks:
    """Ranks of the right answers, in both directions.

    Attributes:
        image_to_text: for each image, of the best-ranked of its texts.
        text_to_image: for each text, of the best-ranked image that carries it.
    """

    image_to_text: PositiveRanks
    text_to_image: PositiveRanks


def retrieval_ranks(
    image_embeddings: Float[Tensor, "images dim"],
    text_embeddings: Float[Tensor, "texts dim"],
    pairs: Pairs,
    *,
    rank: Callable[..., PositiveRanks] = positive_ranks,
) -> RetrievalRanks:
    """Rank in both directions, for `summarise_ranks` and, query by query, for an interval:

        ranks = retrieval_ranks(images, texts, pairs)
        low, high = bootstrap_interval(ranks.image_to_text.reciprocal(), generator=generator)

    Args:
        pairs: which images and texts belong together, from `distinct_texts` or `separate_texts`.
        rank: called as `positive_ranks(queries, candidates, positives=...)`.

    Raises:
        ValueError: no images or texts, an embedding that is not finite, a row out of range, or an
            image or text that belongs to none.
    """
    return RetrievalRanks(
        image_to_text=rank(image_embeddings, text_embeddings, positives=pairs),
        text_to_image=rank(text_embeddings, image_embeddings, positives=pairs.flip(0)),
    )


def summarise_ranks(
    ranks: RetrievalRanks, *, recall_at: Sequence[int] = (1, 5, 10)
) -> dict[str, float]:
    """Compute recall and mean reciprocal rank in both directions.

    Returns:
        `image_to_text/R@k` and `text_to_image/R@k` (shares of queries, 0 to 1) for each positive k
        of `recall_at`, `mrr_image_to_text`, `mrr_text_to_image`, and `mrr`, the mean of the two.
    """
    metrics: dict[str, float] = {}
    for direction, side in vars(ranks).items():
        for k in recall_at:
            metrics[f"{direction}/R@{k}"] = float(side.hits(k).mean())
        metrics[f"mrr_{direction}"] = float(side.reciprocal().mean())
    metrics["mrr"] = (metrics["mrr_image_to_text"] + metrics["mrr_text_to_image"]) / 2
    return metrics


def clip_benchmark_recalls(
    ranks: RetrievalRanks, *, recall_at: Sequence[int] = (1, 5, 10)
) -> dict[str, float]:
    """Compute recalls under the names of clip_benchmark and DataComp.

    Args:
        ranks: ranks on the texts of `separate_texts`.

    Returns:
        For each positive k of `recall_at`: `image_retrieval_recall@k`, the share of texts whose
        image is among the first k, and `text_retrieval_recall@k`, the share of images with a text
        among the first k. For k = 1 also their mean, `mean_recall@1`.

    Source: clip_benchmark 1.6.2, metrics.zeroshot_retrieval; DataComp, eval_utils/retr_eval.py.
    """
    metrics: dict[str, float] = {}
    for k in recall_at:
        metrics[f"image_retrieval_recall@{k}"] = float(ranks.text_to_image.hits(k).mean())
        metrics[f"text_retrieval_recall@{k}"] = float(ranks.image_to_text.hits(k).mean())
    if 1 in recall_at:
        sides = metrics["text_retrieval_recall@1"], metrics["image_retrieval_recall@1"]
        metrics["mean_recall@1"] = sum(sides) / 2
    return metrics


def reciprocal_rank_of_images(ranks: RetrievalRanks, pairs: Pairs) -> Float[Tensor, " images"]:
    """Compute one value per image whose mean is `mrr`, for intervals and paired differences.

    Half of it is the image's own reciprocal rank as a query. The other half is the reciprocal
    ranks of its texts as queries, each shared among the images that carry the text and scaled so
    that the mean over images is the mean over texts.
    """
    of_images, of_texts = ranks.image_to_text.reciprocal(), ranks.text_to_image.reciprocal()
    images, texts = pairs
    share = of_texts / torch.bincount(texts, minlength=len(of_texts))
    shares = torch.bincount(images, weights=share[texts], minlength=len(of_images))
    return (of_images + shares * (len(of_images) / len(of_texts))) / 2
