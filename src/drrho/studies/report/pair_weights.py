"""Weights of single negatives and anchors: which pairs an objective presses apart.

`diagnostics` says how concentrated the weights of a batch are; this says which pairs have them.
"""

import math
from collections.abc import Iterable
from typing import NamedTuple

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from drrho.contrastive.pairs import PairEmbeddings, check_negatives, check_pairs
from drrho.runtime.checks import require_at_least, require_positive

STRIP_ENTRIES = 2**22  # similarities held at once: some rows of the matrix, never all
# Bins of log10 of a weight: from "next to nothing" to more than any sample's share.
HISTOGRAM_EDGES = tuple(x / 4 for x in range(-24, 17))


class Negatives(NamedTuple):
    """Some negatives of each anchor, row for row.

    Attributes:
        index: of the negative among the pairs.
        weight: `(B - 1) p_ij`: 1 is an even share.
        plain_weight: the same without the reference.
    """

    index: Int64[Tensor, "anchors shown"]
    weight: Float[Tensor, "anchors shown"]
    plain_weight: Float[Tensor, "anchors shown"]


class AnchorWeights(NamedTuple):
    """Weights of one direction of an objective.

    Attributes:
        log_gap_mean: `log g_i`.
        weight: `g_i / (epsilon + g_i)`, the share of its gradient that an anchor keeps.
        hardest: the negatives of the largest weight, in descending order.
        raised: the negative to which the reference gives most weight.
        lowered: the negative from which the reference takes most weight.
        histogram: number of the weights of negatives in each bin of `HISTOGRAM_EDGES`, by log10 of
            (B - 1) p_ij; the outer bins hold what is beyond them.
    """

    log_gap_mean: Float[Tensor, " anchors"]
    weight: Float[Tensor, " anchors"]
    hardest: Negatives
    raised: Negatives
    lowered: Negatives
    histogram: Int64[Tensor, " bins"]


@torch.no_grad()
def image_anchor_weights(
    target: PairEmbeddings,
    reference: PairEmbeddings | None,
    *,
    temperature: float,
    epsilon: float,
    num_hardest: int = 5,
) -> AnchorWeights:
    """Computes the weights of images as anchors, with the others' texts as negatives.

        p_ij = e^{z_ij} / sum_{k != i} e^{z_ik},   z = (S - R) / tau

    For texts as anchors exchange image and text of both models (`exchanged`). Without a reference
    `raised` and `lowered` hold each anchor's hardest negative, with equal weights.

    Args:
        target: unit embeddings of B pairs by the model in training.
        reference: by the reference, of any dimension and scale.
        temperature: tau, in units of cosine similarity.
        epsilon: floor of the sums.
        num_hardest: of each anchor, at most B - 1.

    Raises:
        ValueError: fewer than two pairs, numbers of rows that differ, or a number out of range.

    Source: docs/mathematics.md, "Weights of pairs".
    """
    check_pairs(target, reference)
    num_pairs = len(target.image)
    check_negatives(num_pairs)
    require_positive(temperature=temperature)
    require_at_least(1, num_hardest=num_hardest)
    rows = max(1, STRIP_ENTRIES // num_pairs)
    strips = [
        _strip_weights(
            target,
            reference,
            rows=slice(start, min(start + rows, num_pairs)),
            temperature=temperature,
            epsilon=epsilon,
            num_hardest=min(num_hardest, num_pairs - 1),
        )
        for start in range(0, num_pairs, rows)
    ]
    log_means, weights, hardest, raised, lowered, histograms = zip(*strips, strict=True)
    return AnchorWeights(
        torch.cat(log_means),
        torch.cat(weights),
        _joined(hardest),
        _joined(raised),
        _joined(lowered),
        torch.stack(histograms).sum(dim=0),
    )


def exchanged(pairs: PairEmbeddings | None) -> PairEmbeddings | None:
    """The pairs with texts in the place of images, so that texts are the anchors."""
    return None if pairs is None else PairEmbeddings(image=pairs.text, text=pairs.image)


def _strip_weights(
    target: PairEmbeddings,
    reference: PairEmbeddings | None,
    *,
    rows: slice,
    temperature: float,
    epsilon: float,
    num_hardest: int,
) -> AnchorWeights:
    """Computes the weights of some images against all texts."""
    num_negatives = len(target.image) - 1
    plain = target.image[rows].float() @ target.text.float().T
    x = plain
    if reference is not None:
        x = plain - reference.image[rows].float() @ reference.text.float().T
    own = torch.arange(rows.start, rows.stop, device=x.device)[:, None]
    positives = x.gather(1, own)

    def log_weights(similarities: Tensor) -> Tensor:
        z = (similarities / temperature).scatter(1, own, -math.inf)
        return z.log_softmax(dim=1) + math.log(num_negatives)

    log_gaps = ((x - positives) / temperature).scatter(1, own, -math.inf)
    log_weight = log_weights(x)
    weight = log_weight.exp()
    plain_weight = weight if reference is None else log_weights(plain).exp()

    def chosen(order: Tensor, count: int) -> Negatives:
        index = order.topk(count, dim=1).indices
        return Negatives(index, weight.gather(1, index), plain_weight.gather(1, index))

    # The positive is no negative: its change is below all others.
    change = (weight - plain_weight).scatter(1, own, -math.inf)
    fall = (plain_weight - weight).scatter(1, own, -math.inf)
    if reference is None:
        change = fall = log_weight
    edges = torch.tensor(HISTOGRAM_EDGES[1:-1], device=x.device)
    logarithms = log_weight / math.log(10)
    bins = torch.bucketize(logarithms, edges).scatter(1, own, len(edges) + 1)
    counts = torch.bincount(bins.flatten(), minlength=len(edges) + 2)[:-1]
    log_gap_mean = log_gaps.logsumexp(dim=1) - math.log(num_negatives)
    return AnchorWeights(
        log_gap_mean=log_gap_mean,
        weight=torch.sigmoid(log_gap_mean - math.log(epsilon)),
        hardest=chosen(log_weight, num_hardest),
        raised=chosen(change, 1),
        lowered=chosen(fall, 1),
        histogram=counts,
    )


def _joined(parts: Iterable[Negatives]) -> Negatives:
    return Negatives(*(torch.cat(column) for column in zip(*parts, strict=True)))
