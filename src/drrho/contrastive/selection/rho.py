"""RHO selection of pairs: of a super-batch those with the largest excess loss.

Joint selection (`drrho.contrastive.selection.jest`) scores a pair against those selected so far;
here all pairs of the super-batch are its negatives.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from drrho.contrastive.exact import clip_anchor_losses
from drrho.contrastive.objectives.siglip import tiled_siglip_anchor_losses
from drrho.contrastive.pairs import PairEmbeddings, pair_partition
from drrho.contrastive.selection.super_batch import (
    Draw,
    Loss,
    ModelPairs,
    PairSelection,
    SelectionConfig,
    draw_pairs,
    models_that_count,
    number,
    require_candidates,
)
from drrho.contrastive.tiles.log_sums import tiled_log_gap_means
from drrho.runtime.distributed import Partition, ProcessGroup, partition


@dataclass(frozen=True, kw_only=True)
class RhoConfig(SelectionConfig):
    """Configuration of RHO selection."""


def select_by_excess(
    learner: ModelPairs | None,
    reference: ModelPairs | None,
    *,
    config: RhoConfig,
    group: ProcessGroup | None = None,
) -> PairSelection:
    """Select the batch_size pairs with the largest excess loss: RHO-LOSS's top-k for pairs.

    With `z = S / tau (+ b)` of a model over the n pairs of the super-batch, a pair's loss is its
    part of the batch loss, so that the mean of all is the batch loss:

        softmax:  mean over both directions of -z_ii + log sum_j exp z_ij
        sigmoid:  softplus(-z_ii) + 1/2 sum_{j != i} softplus(z_ij) + softplus(z_ji)

    and its score is the learner's minus the reference's. The plain mean over the selected pairs of
    these losses has the gradient of `CVaR(fraction=batch_size / n)` of the super-batch.

    Work is O(n^2 d) in tiles of `drrho.contrastive.tiles.strip`; memory beyond the arguments is
    O(n) numbers, a tile and, over K processes, the texts of all. A pair that is not finite under a
    model that counts is never selected and no pair's negative. For the rest, arguments and errors
    included, see `select_jointly`.

    Source: docs/mathematics.md, "RHO top-k of pairs"; Mindermann et al., "Prioritized training on
        points that are learnable, worth learning, and not yet learnt", 2022, arXiv 2206.07137.
    """
    models = models_that_count(learner, reference, kind=config.kind, loss=config.loss)
    device = models[0].pairs.image.device
    processes = pair_partition(models[0].pairs, group=group)

    def losses(_: list[Int64[Tensor, " _"]]) -> list[Float[Tensor, " own"]]:
        finite = torch.stack([_finite_rows(model.pairs) for model in models]).all(dim=0)
        counted = partition(int(finite.sum()), group=group, device=device)
        require_candidates(counted.num_rows, config.batch_size, processes)
        return [_pair_losses(model, finite, config.loss, counted) for model in models]

    chunks = [(config.batch_size, Draw(None))]
    return draw_pairs(losses, chunks, kind=config.kind, processes=processes, device=device)


def _finite_rows(pairs: PairEmbeddings) -> Bool[Tensor, " own"]:
    return pairs.image.isfinite().all(dim=1) & pairs.text.isfinite().all(dim=1)


def _pair_losses(
    model: ModelPairs, finite: Bool[Tensor, " own"], loss: Loss, counted: Partition
) -> Float[Tensor, " own"]:
    """Compute the losses of this process's pairs among the finite pairs; NaN for the others."""
    pairs = model.pairs.take(finite)
    wide = torch.promote_types(pairs.image.dtype, torch.float32)
    losses = torch.full(finite.shape, torch.nan, dtype=wide, device=finite.device)
    temperature = losses.new_tensor(number(model.temperature))
    if loss == "softmax":
        log_means = tiled_log_gap_means(pairs, temperature=temperature, pairs=counted)
        losses[finite] = clip_anchor_losses(log_means, num_pairs=counted.num_rows).mean(dim=0)
        return losses
    assert model.bias is not None
    bias = losses.new_tensor(number(model.bias))
    by_image, by_text = (
        tiled_siglip_anchor_losses(side, temperature=temperature, bias=bias, pairs=counted)
        for side in (pairs, PairEmbeddings(pairs.text, pairs.image))
    )
    losses[finite] = (by_image + by_text) / 2
    return losses
