"""The global contrastive risk against a reference, as plain differentiable code.

This file is the truth that every other implementation is tested against. It forms B x B
matrices and lets autograd do the rest.
"""

import math
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor


class PairEmbeddings(NamedTuple):
    """Unit embeddings of the same B pairs by one model; row i of both is pair i."""

    image: Float[Tensor, "batch dim"]
    text: Float[Tensor, "batch dim"]


def pair_logits(
    target: PairEmbeddings,
    reference: PairEmbeddings | None = None,
    *,
    temperature: Float[Tensor, ""],
) -> Float[Tensor, "batch batch"]:
    """`z_ij = (S_ij - R_ij) / temperature`, image i against text j, in float32 or wider.

    S are the target's cosine similarities and R the reference's; without a reference R = 0.
    One matrix serves both directions: image anchors read its rows, text anchors its columns.

    Raises:
        ValueError: fewer than two pairs, or numbers of rows that differ.
    """
    num_pairs = len(target.image)
    if num_pairs < 2:
        raise ValueError(
            f"a contrastive loss needs at least two pairs to have negatives, got {num_pairs}"
        )
    rows = [len(e) for e in (*target, *(reference or ()))]
    if len(set(rows)) > 1:
        raise ValueError(
            f"image, text and reference embeddings must have one row for each pair, got {rows} rows"
        )
    similarity = _cosines(target)
    if reference is not None:
        similarity = similarity - _cosines(reference).to(similarity.dtype)
    return similarity / temperature


def log_gap_means(logits: Float[Tensor, "anchors candidates"]) -> Float[Tensor, " anchors"]:
    """`log g_i`, `g_i = 1/(B-1) sum_{j != i} exp(z_ij - z_ii)`: how close negatives come.

    Rows are anchors; pass the transposed logits for the other direction. The positive, on
    the diagonal, is left out of the sum.
    """
    num_pairs = len(logits)
    gaps = logits - logits.diagonal()[:, None]
    positives = torch.eye(num_pairs, dtype=torch.bool, device=logits.device)
    return gaps.masked_fill(positives, -math.inf).logsumexp(dim=1) - math.log(num_pairs - 1)


def log_anchor_losses(
    logits: Float[Tensor, "batch batch"], epsilon: float
) -> Float[Tensor, "2 batch"]:
    """`log(epsilon + g_i)` of the image anchors, then of the text anchors.

    epsilon (>= 0) bounds the loss from below: an anchor whose negatives all lie further
    away than `temperature * log(epsilon)` has next to nothing left to gain.
    """
    if not epsilon >= 0:
        raise ValueError(f"epsilon must be at least 0, got {epsilon}")
    log_means = torch.stack([log_gap_means(logits), log_gap_means(logits.T)])
    if epsilon == 0:
        return log_means
    return torch.logaddexp(log_means, torch.full_like(log_means, math.log(epsilon)))


def global_contrastive_risk(
    target: PairEmbeddings,
    reference: PairEmbeddings | None = None,
    *,
    temperature: Float[Tensor, ""],
    epsilon: float,
    rho: float = 0.0,
) -> Float[Tensor, ""]:
    """The DRRho-CLIP objective of one batch; FastCLIP's when there is no reference.

        F = tau (rho + 1/(2B) sum_i [log(epsilon + g1_i) + log(epsilon + g2_i)])

    For each anchor it is the worst mean, over reweightings of its negatives within a KL
    divergence of rho, of the excess loss `(S_ij - S_ii) - (R_ij - R_ii)`, with the
    multiplier tau given rather than optimised.

    Args:
        target: unit embeddings (B, d) of the model in training.
        reference: unit embeddings (B, d_ref) of the frozen reference, of any dimension.
        temperature: tau in units of cosine similarity, positive; gets an exact gradient.
        epsilon: floor of the sums, see `log_anchor_losses`.
        rho: radius in nats. Matters only where tau is learned; no tau is stationary when
            rho exceeds log(B - 1).

    Returns:
        F, in units of cosine similarity.

    Source: docs/mathematics.md, "DRRho-CLIP"; arXiv 2505.06699, section 5.
    """
    logits = pair_logits(target, reference, temperature=temperature)
    return temperature * (rho + log_anchor_losses(logits, epsilon).mean())


def clip_loss(target: PairEmbeddings, *, temperature: Float[Tensor, ""]) -> Float[Tensor, ""]:
    """CLIP's symmetric cross-entropy over the batch (InfoNCE), in nats.

    It is `F / tau + log(B - 1)` at epsilon = 1/(B - 1) and rho = 0: that epsilon is the
    positive's own term, which CLIP keeps in its softmax.

    Source: docs/mathematics.md, "CLIP and FastCLIP as special cases".
    """
    num_negatives = len(target.image) - 1
    risk = global_contrastive_risk(
        target, temperature=temperature, epsilon=1 / max(num_negatives, 1)
    )
    return risk / temperature + math.log(num_negatives)


def _cosines(pairs: PairEmbeddings) -> Float[Tensor, "batch batch"]:
    # A half-precision product would round cosines to 3 digits, which a temperature of 0.01
    # turns into errors of order one.
    if pairs.image.shape != pairs.text.shape:
        raise ValueError(
            f"image and text embeddings must have the same shape, got {tuple(pairs.image.shape)} "
            f"and {tuple(pairs.text.shape)}"
        )
    wide = torch.promote_types(pairs.image.dtype, torch.float32)
    with torch.autocast(pairs.image.device.type, enabled=False):
        return pairs.image.to(wide) @ pairs.text.to(wide).T
