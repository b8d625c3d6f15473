"""Steerability of contrastive references, from embeddings of held-out pairs.

The samples of DRRho-CLIP's adversary are the negatives of an anchor. So the moments are taken
of an anchor's gaps over its negatives, and averaged over anchors. Source: docs/mathematics.md,
"Steerability of contrastive references".
"""

import math

import torch
from jaxtyping import Bool, Float64
from torch import Tensor

from drrho.risk import effective_sample_size
from drrho.runtime.checks import require_positive
from drrho.studies.probe.steerability import Moments, moments_of

Gaps = Float64[Tensor, "pairs pairs"]


def gap_moments(
    pilots: tuple[Gaps, Gaps],
    references: list[Gaps],
    *,
    weights: Float64[Tensor, "resamples pairs"],
) -> Moments:
    """Computes moments over each anchor's negatives, averaged over image and text anchors.

    The gap of image i to text j is `S_ij - S_ii`. `S_ii` is the same for all negatives of an
    anchor and has no part in a variance over them, so cosines are all that is needed.

    Args:
        pilots: cosines of images (rows) and texts of the same held-out pairs, of each pilot.
        references: the same of the candidates.
        weights: of `bootstrap_weights`; a resampled pair counts as an anchor and as a negative.

    Raises:
        ValueError: fewer than three pairs, or cosines that are not finite.
    """
    if len(pilots[0]) < 3:
        raise ValueError(f"negatives vary only among three pairs or more, got {len(pilots[0])}")
    for cosines in (*pilots, *references):
        if not cosines.isfinite().all():
            raise ValueError("cosines must be finite; leave pairs without embeddings out")

    def covariance(x: Gaps, y: Gaps) -> Float64[Tensor, " resamples"]:
        return (_over_negatives(x, y, weights) + _over_negatives(x.T, y.T, weights)) / 2

    return moments_of(covariance, pilots, references)


def anchor_losses(cosines: Gaps, temperature: float) -> Float64[Tensor, " pairs"]:
    """A pair's loss `tau log mean_j exp((S_ij - S_ii) / tau)`, the mean of its two anchors.

    In units of cosine similarity; the mean is over all other pairs, the same for every model.
    """
    require_positive(temperature=temperature)
    gaps = [x - x.diagonal()[:, None] for x in (cosines, cosines.T)]
    sums = [
        (gap / temperature).masked_fill(_positives(gap), -math.inf).logsumexp(1) for gap in gaps
    ]
    return temperature * (torch.stack(sums).mean(dim=0) - math.log(len(cosines) - 1))


class NegativeWeights:
    """The adversary's weights over the negatives of each anchor, at a pilot.

    Attributes:
        effective_share: mean effective sample size as a share of the negatives.
        divergence: mean KL divergence from uniform in nats: the `rho` at which a learned
            temperature would stay constant.
    """

    def __init__(self, excess: Gaps, temperature: float) -> None:
        shares, divergences = [], []
        negatives = len(excess) - 1
        for x in (excess, excess.T):
            logits = (x / temperature).masked_fill(_positives(x), -math.inf)
            logs = logits.log_softmax(dim=1)
            weights = logs.exp()
            shares.append(effective_sample_size(weights) / negatives)
            entropies = -(weights * logs.masked_fill(_positives(x), 0.0)).sum(dim=1)
            divergences.append(math.log(negatives) - entropies)
        self.effective_share = float(torch.stack(shares).mean())
        self.divergence = float(torch.stack(divergences).mean())


def _over_negatives(x: Gaps, y: Gaps, weights: Tensor) -> Float64[Tensor, " resamples"]:
    """The weighted mean over anchors of the weighted covariance over their negatives."""
    positives = _positives(x)
    x, y = (m - m.masked_fill(positives, 0.0).sum(1, keepdim=True) / (len(m) - 1) for m in (x, y))
    x, y = x.masked_fill(positives, 0.0), y.masked_fill(positives, 0.0)
    # A pair that was drawn twice is no negative of itself: its own weight is left out.
    total = 1 - weights
    covariances = (weights @ (x * y).T) / total - (weights @ x.T) * (weights @ y.T) / total**2
    return (weights * covariances).sum(dim=1)


def _positives(matrix: Tensor) -> Bool[Tensor, "pairs pairs"]:
    return torch.eye(len(matrix), dtype=torch.bool)
