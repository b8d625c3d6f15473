"""The global contrastive risk against a reference, as plain differentiable code.

Every other implementation is tested against this file. It forms B x B matrices, and the gradient
is autograd's.
"""

import math
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from drrho.contrastive.memory.temperature import Tau, as_tau
from drrho.contrastive.pairs import PairEmbeddings, check_negatives, check_pairs
from drrho.runtime.checks import require_at_least


def pair_similarities(
    target: PairEmbeddings, reference: PairEmbeddings | None = None
) -> Float[Tensor, "batch batch"]:
    """Compute `x_ij = S_ij - R_ij`, image i against text j, in float32 or wider.

    S are the target's cosine similarities and R the reference's; without a reference R = 0.
    One matrix serves both directions: image anchors read its rows, text anchors its columns.

    Raises:
        ValueError: fewer than two pairs, or numbers of rows that differ.
    """
    check_pairs(target, reference)
    check_negatives(len(target.image))
    similarity = _cosines(target)
    if reference is not None:
        similarity = similarity - _cosines(reference).to(similarity.dtype)
    return similarity


def log_gap_means(
    target: PairEmbeddings,
    reference: PairEmbeddings | None = None,
    *,
    temperature: Tau,
) -> Float[Tensor, "2 batch"]:
    """Compute `log g`, `g_i = 1/(B-1) sum_{j != i} exp((x_ij - x_ii) / tau)`, of each anchor.

    First row: image anchors, whose negatives are along the rows of x. Second row: text anchors,
    along its columns. The positive, on the diagonal, is left out of the sum.

    Args:
        target: unit embeddings (B, d) of the model in training.
        reference: unit embeddings (B, d_ref) of the frozen reference, of any dimension.
        temperature: tau in units of cosine similarity, positive; a number, or of a shape that
            expands to (2, B): one for each anchor.

    Raises:
        ValueError: as `pair_similarities`.
    """
    similarities = pair_similarities(target, reference)
    num_pairs = len(similarities)
    positives = torch.eye(num_pairs, dtype=torch.bool, device=similarities.device)
    temperature = as_tau(temperature, similarities)
    of_anchors = temperature.to(similarities.dtype).expand(2, num_pairs)
    log_sums = [
        ((x - x.diagonal()[:, None]) / tau[:, None])
        .masked_fill(positives, -math.inf)
        .logsumexp(dim=1)
        for x, tau in zip((similarities, similarities.T), of_anchors, strict=True)
    ]
    return torch.stack(log_sums) - math.log(num_pairs - 1)


def log_anchor_losses(
    log_means: Float[Tensor, "2 batch"], epsilon: float
) -> Float[Tensor, "2 batch"]:
    """Compute `log(epsilon + g)` from `log g`.

    epsilon (>= 0) bounds the loss from below: an anchor whose negatives are all further
    away than `temperature * log(epsilon)` has next to nothing left to gain.
    """
    require_at_least(0, epsilon=epsilon)
    if epsilon == 0:
        return log_means
    return torch.logaddexp(log_means, torch.full_like(log_means, math.log(epsilon)))


def global_contrastive_risk(
    target: PairEmbeddings,
    reference: PairEmbeddings | None = None,
    *,
    temperature: Tau,
    epsilon: float,
    rho: float = 0.0,
) -> Float[Tensor, ""]:
    """Compute the DRRho-CLIP objective of one batch; FastCLIP's without a reference.

        F = tau (rho + 1/(2B) sum_i [log(epsilon + g1_i) + log(epsilon + g2_i)])

    For each anchor it is the worst mean, over reweightings of its negatives within a KL
    divergence of rho, of the excess loss `(S_ij - S_ii) - (R_ij - R_ii)`, with the
    multiplier tau given rather than optimised.

    Args:
        target, reference, temperature: as for `log_gap_means`; F is in units of cosine similarity.
        epsilon: floor of the sums, see `log_anchor_losses`.
        rho: radius in nats. Matters only where tau is learned; no tau is stationary when
            rho exceeds log(B - 1).

    Source: docs/mathematics.md, "DRRho-CLIP"; arXiv 2505.06699, section 5.
    """
    log_means = log_gap_means(target, reference, temperature=temperature)
    return temperature * (rho + log_anchor_losses(log_means, epsilon).mean())


def clip_loss(target: PairEmbeddings, *, temperature: Tau) -> Float[Tensor, ""]:
    """Compute CLIP's symmetric cross-entropy over the batch (InfoNCE), in nats."""
    log_means = log_gap_means(target, temperature=temperature)
    return clip_anchor_losses(log_means, num_pairs=len(target.image)).mean()


def clip_anchor_losses(
    log_means: Float[Tensor, "2 own"], *, num_pairs: int
) -> Float[Tensor, "2 own"]:
    """Compute CLIP's cross-entropy of each anchor from its `log g` without a reference.

    Its mean is `F / tau + log(B - 1)` at epsilon = 1/(B - 1) and rho = 0: that epsilon is the
    positive's own term, which CLIP keeps in its softmax. B is `num_pairs`, of the whole batch.

    Source: docs/mathematics.md, "CLIP and FastCLIP as special cases".
    """
    num_negatives = num_pairs - 1
    return log_anchor_losses(log_means, 1 / num_negatives) + math.log(num_negatives)


def _cosines(pairs: PairEmbeddings) -> Float[Tensor, "batch batch"]:
    wide = torch.promote_types(pairs.image.dtype, torch.float32)
    return products(pairs.image.to(wide), pairs.text.to(wide))


def products(
    left: Float[Tensor, "rows dim"], right: Float[Tensor, "columns dim"]
) -> Float[Tensor, "rows columns"]:
    """Compute `left @ right.T`, which autocast rounds neither forward nor backward."""
    found = _Product.apply(left, right)
    assert isinstance(found, Tensor)
    return found


class _Product(torch.autograd.Function):
    """`left @ right.T`, which autocast rounds neither forward nor backward.

    In half precision cosines have 3 digits, which a temperature of 0.01 turns into errors of order
    one.
    """

    @staticmethod
    def forward(ctx: Any, left: Tensor, right: Tensor) -> Tensor:
        ctx.save_for_backward(left, right)
        with torch.autocast(left.device.type, enabled=False):
            return left @ right.T

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor, Tensor]:
        left, right = ctx.saved_tensors
        with torch.autocast(left.device.type, enabled=False):
            return grad_output @ right, grad_output.T @ left
