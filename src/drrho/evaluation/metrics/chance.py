"""What guessing reaches: the mean of a metric over all orders of the candidates."""

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float64, Int
from torch import Tensor

from drrho.evaluation.metrics.retrieval import Pairs
from drrho.plotting.table import CHANCE


def beside(metrics: Mapping[str, float], chance: Mapping[str, float]) -> dict[str, float]:
    """Put the chance level of each metric that has one behind it, as `METRIC/chance`."""
    found: dict[str, float] = {}
    for name, value in metrics.items():
        found[name] = value
        if name in chance:
            found[name + CHANCE] = chance[name]
    return found


def retrieval_chance(
    pairs: Pairs, *, images: int, texts: int, recall_at: Sequence[int] = (1, 5, 10)
) -> dict[str, float]:
    """Compute what `summarise_ranks` gives on average if every order is as likely as another.

    Args:
        pairs: which images and texts belong together.
        images, texts: how many there are.
    """
    counts = {
        "image_to_text": torch.bincount(pairs[0], minlength=images),
        "text_to_image": torch.bincount(pairs[1], minlength=texts),
    }
    metrics: dict[str, float] = {}
    for direction, candidates in (("image_to_text", texts), ("text_to_image", images)):
        beyond = _all_beyond(counts[direction], candidates)
        for k in recall_at:
            metrics[f"{direction}/R@{k}"] = 1 - float(beyond[min(k, candidates)])
        metrics[f"mrr_{direction}"] = _mean_reciprocal(beyond)
    metrics["mrr"] = (metrics["mrr_image_to_text"] + metrics["mrr_text_to_image"]) / 2
    return metrics


def reciprocal_rank_chance(candidates: int, right: int = 1) -> float:
    """Compute the expected reciprocal rank of the best of `right` candidates in random order."""
    return _mean_reciprocal(_all_beyond(torch.tensor([right]), candidates))


def _mean_reciprocal(beyond: Float64[Tensor, " ranks"]) -> float:
    return float(((beyond[:-1] - beyond[1:]) / torch.arange(1, len(beyond))).sum())


def _all_beyond(positives: Int[Tensor, " queries"], candidates: int) -> Float64[Tensor, " ranks"]:
    """Compute the share of queries none of whose p positives is among the first r of n.

    For one query it is C(n - r, p) / C(n, p), for r from 0 to n.
    """
    numbers, queries = positives.unique(return_counts=True)
    left = torch.arange(candidates, -1, -1, dtype=torch.float64)  # n - r
    total = torch.zeros(candidates + 1, dtype=torch.float64)
    for p, weight in zip(numbers.tolist(), queries.tolist(), strict=True):
        possible = left >= p
        ways = _log_choose(left[possible], p) - _log_choose(left[:1], p)
        total[possible] += weight * ways.exp()
    return total / len(positives)


def _log_choose(n: Float64[Tensor, " _"], k: int) -> Float64[Tensor, " _"]:
    return torch.lgamma(n + 1) - torch.lgamma(n - k + 1) - torch.lgamma(torch.tensor(k + 1.0))


def label_chance(num_classes: int) -> dict[str, float]:
    """Compute what `summarise_labels` gives for guessing among the classes."""
    one = 1 / num_classes
    return {"top1": one, "top5": min(1.0, 5 * one), "mean_per_class_recall": one}
