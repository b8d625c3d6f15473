"""RHO selection of pairs: of a super-batch those with the largest excess loss.

Embed a super-batch without gradient, select, and train on what was selected:

    learner = ModelPairs(pairs, temperature=tau)
    reference = ModelPairs(reference_pairs, temperature=0.01)
    selected = select_by_excess(learner, reference, config=RhoConfig(batch_size=512))
    loss_of(images[selected.own], texts[selected.own]).backward()

Every pair has its loss in the super-batch, all of whose pairs are its negatives. Joint selection
(`drrho.contrastive.selection.jest`) scores it against the pairs selected so far.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from drrho.contrastive.exact import clip_anchor_losses
from drrho.contrastive.objectives.siglip import tiled_siglip_anchor_losses
from drrho.contrastive.pairs import PairEmbeddings, pair_partition
from drrho.contrastive.selection.super_batch import (
    KINDS,
    LOSSES,
    Kind,
    Loss,
    ModelPairs,
    PairSelection,
    models_that_count,
    number,
    require_candidates,
    require_choices,
)
from drrho.contrastive.tiles.log_sums import tiled_log_gap_means
from drrho.runtime.distributed import Partition, ProcessGroup, partition
from drrho.steering.selection import select_top_k, selection_scores


@dataclass(frozen=True, kw_only=True)
class RhoConfig:
    """How a batch is selected from a super-batch.

    Attributes:
        batch_size: pairs to select, of all processes together.
        kind: the score of a pair: "excess" is the learner's loss minus the reference's, "loss" is
            the learner's ("hard") and "irreducible" minus the reference's ("easy").
        loss: the contrastive loss that is meant: "softmax" (CLIP) or "sigmoid" (SigLIP).
    """

    batch_size: int
    kind: Kind = "excess"
    loss: Loss = "softmax"

    def __post_init__(self):
        require_choices(kind=(self.kind, KINDS), loss=(self.loss, LOSSES))
        if self.batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {self.batch_size}")


def select_by_excess(
    learner: ModelPairs | None,
    reference: ModelPairs | None,
    *,
    config: RhoConfig,
    group: ProcessGroup | None = None,
) -> PairSelection:
    """The batch_size pairs with the largest excess loss: RHO-LOSS's top-k for pairs.

    With `z = S / tau (+ b)` of a model over the n pairs of the super-batch, a pair's loss is its
    part of the batch loss, so that the mean of all is the batch loss:

        softmax:  mean over both directions of -z_ii + log sum_j exp z_ij
        sigmoid:  softplus(-z_ii) + 1/2 sum_{j != i} softplus(z_ij) + softplus(z_ji)

    and its score is the learner's minus the reference's. The plain mean over the selected pairs of
    these losses has the gradient of `CVaR(fraction=batch_size / n)` of the super-batch.

    Work is O(n^2 d) in tiles of `drrho.contrastive.tiles.strip`; memory beyond the arguments is
    O(n) numbers, a tile and, over K processes, the texts of all. Computed in float32 or wider,
    without gradient.

    A pair that is not finite under a model that counts, such as the embedding of a corrupt image,
    is never selected and no pair's negative.

    Args:
        learner: the model in training; None if and only if the kind is "irreducible".
        reference: the frozen model, with embeddings of any dimension; None if and only if the kind
            is "loss".
        config: what is selected.
        group: whose pairs make up the super-batch; None is the default group, or this process
            alone without one.

    Raises:
        ValueError: a model or a bias is missing or has no effect, a temperature is not positive,
            numbers of rows differ, or fewer than batch_size pairs are finite.

    Source: docs/mathematics.md, "RHO top-k of pairs"; Mindermann et al., "Prioritized training on
        points that are learnable, worth learning, and not yet learnt", 2022, arXiv 2206.07137.
    """
    models = models_that_count(learner, reference, kind=config.kind, loss=config.loss)
    device = models[0].pairs.image.device
    processes = pair_partition(models[0].pairs, group=group)
    finite = torch.stack([_finite_rows(model.pairs) for model in models]).all(dim=0)
    with torch.no_grad(), torch.autocast(device.type, enabled=False):
        require_candidates(
            processes.all_gather(
                torch.zeros_like(finite, dtype=torch.float32).where(finite, math.nan)
            ),
            config.batch_size,
        )
        counted = partition(int(finite.sum()), group=group, device=device)
        losses = [_pair_losses(model, finite, config.loss, counted) for model in models]
        of_learner = None if learner is None else losses[0]
        of_reference = None if reference is None else losses[-1]
        of_finite = selection_scores(config.kind, of_learner, of_reference)
        own = of_finite.new_full((len(finite),), math.nan)
        own[finite] = of_finite
        scores = processes.all_gather(own)
        require_candidates(scores, config.batch_size)  # a loss may overflow where pairs do not
        index = select_top_k(scores, config.batch_size).index
        # The choice among ties is that of the first process.
        index = processes.all_reduce(index if processes.rank == 0 else torch.zeros_like(index))
        taken = torch.zeros_like(scores, dtype=torch.bool)
        taken[index] = True
    return PairSelection(index, scores[index], processes.own(taken).nonzero().flatten())


def _finite_rows(pairs: PairEmbeddings) -> Tensor:
    return pairs.image.isfinite().all(dim=1) & pairs.text.isfinite().all(dim=1)


def _pair_losses(
    model: ModelPairs, finite: Tensor, loss: Loss, counted: Partition
) -> Float[Tensor, " own"]:
    """Of this process's finite pairs, among those of all processes."""
    pairs = PairEmbeddings(*(embeddings[finite] for embeddings in model.pairs))
    temperature = _as_tensor(model.temperature, pairs)
    if loss == "softmax":
        log_means = tiled_log_gap_means(pairs, temperature=temperature, pairs=counted)
        return clip_anchor_losses(log_means, num_pairs=counted.num_rows).mean(dim=0)
    assert model.bias is not None
    bias = _as_tensor(model.bias, pairs)
    by_image, by_text = (
        tiled_siglip_anchor_losses(side, temperature=temperature, bias=bias, pairs=counted)
        for side in (pairs, PairEmbeddings(pairs.text, pairs.image))
    )
    return (by_image + by_text) / 2


def _as_tensor(value: float | Tensor, pairs: PairEmbeddings) -> Tensor:
    wide = torch.promote_types(pairs.image.dtype, torch.float32)
    return torch.tensor(number(value), dtype=wide, device=pairs.image.device)
