"""Metrics of a contrastive batch: losses, excess losses and the weights of negatives."""

import math

import torch
from torch import Tensor

from drrho.contrastive.memory.temperature import Tau, as_tau
from drrho.contrastive.pairs import PairEmbeddings, check_negatives, check_pairs, pair_partition
from drrho.contrastive.tiles.log_sums import log_sums
from drrho.contrastive.tiles.strip import Anchors, Strip, anchor_temperatures, make_strip
from drrho.runtime.distributed import Partition


@torch.no_grad()
def contrastive_diagnostics(
    target: PairEmbeddings,
    reference: PairEmbeddings | None = None,
    *,
    temperature: Tau,
    epsilon: float,
    pairs: Partition | None = None,
) -> dict[str, Tensor]:
    """Compute metrics of one batch, the same on every process.

    The loss of anchor i at negative j is the gap `S_ij - S_ii`, in units of cosine
    similarity; the excess loss is that minus the reference's gap. An anchor's weights are
    the adversary's, softmax over its negatives of the (excess) loss over temperature. No B x B
    matrix is formed.

    Arguments are as in `tiled_log_gap_means`; epsilon is the floor of the sums.

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
    check_pairs(target, reference)
    pairs = pair_partition(target) if pairs is None else pairs
    check_negatives(pairs.num_rows)
    with torch.autocast(target.image.device.type, enabled=False):
        strip = make_strip(target, reference, pairs)
        plain = strip._replace(reference_image=None, reference_text=None)
        metrics = _moments("loss", plain, pairs)
        if reference is not None:
            metrics |= _moments("excess_loss", strip, pairs)
        tau = as_tau(temperature, target.image)
        tau = anchor_temperatures(tau, pairs, dtype=strip.dtype)
        return metrics | _weights(strip, tau, pairs, epsilon=epsilon)


def _moments(name: str, strip: Strip, pairs: Partition) -> dict[str, Tensor]:
    """Compute mean and variance of the gaps of all anchors to all negatives."""
    own = strip.positives()
    everyone = pairs.all_gather(own)
    sums = torch.zeros(2, dtype=torch.float64, device=own.device)
    for rows, columns in strip.tiles():
        x = strip.similarities(rows, columns)
        for positives in (own[rows, None], everyone[columns]):
            gaps = x - positives
            strip.diagonal(gaps, rows, columns).zero_()
            sums += torch.stack([g.sum(dtype=torch.float64) for g in (gaps, gaps.square())])
    num_gaps = 2 * pairs.num_rows * (pairs.num_rows - 1)
    mean, square = pairs.all_reduce(sums) / num_gaps
    variance = (square - mean.square()).clamp_min(0)
    return {f"{name}_mean": mean.to(own.dtype), f"{name}_variance": variance.to(own.dtype)}


def _weights(strip: Strip, tau: Anchors, pairs: Partition, *, epsilon: float) -> dict[str, Tensor]:
    """Summarise the adversary's weights p, by `sum p^2` and `sum p x` of each anchor."""
    found = log_sums(strip, tau)
    normalisers = Anchors(found.rows, pairs.log_sum_exp(found.columns))
    of_squares, means = strip.new_anchors(), strip.new_anchors()
    for rows, columns in strip.tiles():
        x = strip.similarities(rows, columns)
        for side, part, dim in ((0, rows, 1), (1, columns, 0)):
            temperature, normaliser = (a[side][part].unsqueeze(dim) for a in (tau, normalisers))
            p = (x / temperature - normaliser).exp_()
            strip.diagonal(p, rows, columns).zero_()
            of_squares[side][part] += p.square().sum(dim=dim)
            means[side][part] += (p * x).sum(dim=dim)
    of_squares, means = (
        torch.stack([a.rows, pairs.reduce_scatter(a.columns)]) for a in (of_squares, means)
    )
    temperature, log_total = (
        torch.stack([a.rows, pairs.own(a.columns)]) for a in (tau, normalisers)
    )
    num_negatives = pairs.num_rows - 1
    log_means = log_total - strip.positives() / temperature - math.log(num_negatives)
    divergences = means / temperature - log_total + math.log(num_negatives)
    return {
        "effective_sample_size": pairs.mean(1 / of_squares) / num_negatives,
        "weights_kl": pairs.mean(divergences),
        "saturated_anchors": pairs.mean((log_means < math.log(epsilon)).to(strip.dtype)),
    }
