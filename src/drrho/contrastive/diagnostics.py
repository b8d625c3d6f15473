"""What steering does to a batch, in numbers: losses, excess losses, weights of negatives."""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from drrho.contrastive.risk import PairEmbeddings, pair_similarities


@torch.no_grad()
def contrastive_diagnostics(
    target: PairEmbeddings,
    reference: PairEmbeddings | None = None,
    *,
    temperature: Float[Tensor, ""],
    epsilon: float,
) -> dict[str, Tensor]:
    """Scalars that tell how a run is doing, from one batch.

    The loss of anchor i at negative j is the gap `S_ij - S_ii`, in units of cosine
    similarity; the excess loss is that minus the reference's gap. An anchor's weights are
    the adversary's, softmax over its negatives of the (excess) loss over temperature.

    Returns:
        * loss_mean, loss_variance: over all anchors and negatives, both directions.
        * excess_loss_mean, excess_loss_variance: the same, only with a reference. The
          theory's bound is small when this variance is.
        * effective_sample_size: mean over anchors of `1 / sum_j p_ij^2`, as a share of the
          B - 1 negatives: 1 for uniform weights, 1/(B-1) for a single hard negative.
        * weights_kl: mean KL divergence of the weights to uniform, in nats, <= log(B-1).
        * saturated_anchors: share of anchors with `g_i < epsilon`, which have given up more
          than half of their gradient.
    """
    losses = _gaps(pair_similarities(target))
    metrics = {"loss_mean": losses.mean(), "loss_variance": losses.var(correction=0)}
    if reference is not None:
        losses = _gaps(pair_similarities(target, reference))
        metrics |= {
            "excess_loss_mean": losses.mean(),
            "excess_loss_variance": losses.var(correction=0),
        }
    num_negatives = losses.shape[-1]
    scaled = losses / temperature
    log_sums = scaled.logsumexp(dim=-1, keepdim=True)
    log_weights = scaled - log_sums
    weights = log_weights.exp()
    log_means = log_sums.squeeze(-1) - math.log(num_negatives)
    return metrics | {
        "effective_sample_size": (1 / weights.square().sum(-1)).mean() / num_negatives,
        "weights_kl": (weights * log_weights).sum(-1).mean() + math.log(num_negatives),
        "saturated_anchors": (log_means < math.log(epsilon)).float().mean(),
    }


def _gaps(similarity: Float[Tensor, "batch batch"]) -> Float[Tensor, "2 batch negatives"]:
    """`s_ij - s_ii` for j != i, image anchors, then text anchors."""
    num_pairs = len(similarity)
    negatives = ~torch.eye(num_pairs, dtype=torch.bool, device=similarity.device)
    gaps = [s - s.diagonal()[:, None] for s in (similarity, similarity.T)]
    return torch.stack([gap[negatives].view(num_pairs, num_pairs - 1) for gap in gaps])
