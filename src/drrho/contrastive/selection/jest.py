"""Joint example selection: the batch of a super-batch that is most learnable as a whole.

Embed a super-batch without gradient, select, and train on what was selected:

    config = JestConfig(batch_size=512, num_chunks=16)
    learner = ModelPairs(pairs, temperature=tau)
    reference = ModelPairs(reference_pairs, temperature=0.01)
    selected = select_jointly(learner, reference, config=config, generator=generator)
    loss_of(images[selected.own], texts[selected.own]).backward()

A contrastive loss of a pair depends on the other pairs of its batch, so pairs cannot be scored one
by one. The batch is drawn in chunks, each scored given those before it.
"""

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor
from torch.nn.functional import softplus

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
from drrho.contrastive.tiles.strip import tile_size
from drrho.runtime.distributed import Partition, ProcessGroup, partition
from drrho.steering.selection import sample_without_replacement, select_top_k, selection_scores


@dataclass(frozen=True, kw_only=True)
class JestConfig:
    """How a batch is drawn from a super-batch.

    Attributes:
        batch_size: pairs to select, of all processes together.
        num_chunks: draws that the batch is made of, of equal size up to one pair. More follow the
            joint score more closely; each takes a pass over the candidates.
        selection: "sample" draws a chunk without replacement by `softmax(score)`, as published;
            "top_k" takes the largest scores.
        kind: the score of a candidate: "excess" is the learner's loss minus the reference's
            (learnability), "loss" is the learner's ("hard") and "irreducible" minus the
            reference's ("easy").
        loss: the contrastive loss that is meant: "softmax" (CLIP) or "sigmoid" (SigLIP).
    """

    batch_size: int
    num_chunks: int = 16
    selection: Literal["sample", "top_k"] = "sample"
    kind: Kind = "excess"
    loss: Loss = "softmax"

    def __post_init__(self):
        require_choices(
            selection=(self.selection, ("sample", "top_k")),
            kind=(self.kind, KINDS),
            loss=(self.loss, LOSSES),
        )
        if self.batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {self.batch_size}")
        if not 1 <= self.num_chunks <= self.batch_size:
            raise ValueError(
                f"num_chunks must be between 1 and batch_size, {self.batch_size}, so that no chunk "
                f"is empty; got {self.num_chunks}"
            )
        if self.loss == "softmax" and self.num_chunks == 1:
            raise ValueError(
                "num_chunks = 1 draws uniformly with loss 'softmax', which is zero for a pair "
                "alone: take more chunks, or drrho.steering.selection.sample_uniformly"
            )

    @property
    def chunk_sizes(self) -> list[int]:
        """Pairs of each chunk; they add up to the batch size."""
        ends = [step * self.batch_size // self.num_chunks for step in range(self.num_chunks + 1)]
        return [end - start for start, end in pairwise(ends)]


def select_jointly(
    learner: ModelPairs | None,
    reference: ModelPairs | None,
    *,
    config: JestConfig,
    generator: torch.Generator,
    group: ProcessGroup | None = None,
) -> PairSelection:
    """Draw a batch in chunks by conditional learnability: JEST.

    With `z = S / tau (+ b)` of a model and D the pairs drawn so far, the loss of candidate c is

        softmax:  mean over both directions of -z_cc + log sum_{j in {c} + D} exp z_cj
        sigmoid:  softplus(-z_cc) + sum_{j in D} softplus(z_cj) + softplus(z_jc)

    and its score is the learner's minus the reference's. The next chunk is drawn by the scores,
    and joins D. With the softmax loss a pair alone has no loss: the first chunk is uniform, for
    "top_k" too.

    Work is O(n batch_size d): each chunk is multiplied with the n candidates once, in tiles, and
    added to their running sums. Memory beyond the arguments is O(n) numbers, a tile and the
    embeddings of a chunk. All is in float32 or wider, without gradient. With K processes a chunk
    costs a gathering of n scores and a sum of its embeddings. Each chunk waits for the device.

    A candidate that is not finite under a model that counts, such as the embedding of a corrupt
    image, is never drawn.

    Args:
        learner: the model in training; None if and only if the kind is "irreducible".
        reference: the frozen model, with embeddings of any dimension; None if and only if the kind
            is "loss".
        config: what is drawn.
        generator: on the embeddings' device. Of several processes, the first one's decides.
        group: whose pairs make up the super-batch; None is the default group, or this process
            alone without one.

    Raises:
        ValueError: a model or a bias is missing or has no effect, a temperature is not positive,
            numbers of rows differ, or fewer than batch_size candidates are finite.

    Source: docs/mathematics.md, "JEST"; Evans et al., "Data curation via joint example selection
        further accelerates multimodal learning", 2024, arXiv 2406.17711.
    """
    models = models_that_count(learner, reference, kind=config.kind, loss=config.loss)
    pairs = models[0].pairs
    device = pairs.image.device
    processes = partition(len(pairs.image), group=group, device=device)
    taken = torch.zeros(processes.num_rows, dtype=torch.bool, device=device)
    indices, scores_drawn = [], []
    with torch.no_grad(), torch.autocast(device.type, enabled=False):
        candidates = [_Candidates(model, config.loss) for model in models]
        for size in config.chunk_sizes:
            losses = [c.losses() for c in candidates]
            of_learner = None if learner is None else losses[0]
            of_reference = None if reference is None else losses[-1]
            scores = processes.all_gather(selection_scores(config.kind, of_learner, of_reference))
            require_candidates(scores, config.batch_size, taken=taken)
            # Softmax losses of pairs alone tie, and the largest of ties are no random choice.
            at_random = config.selection == "sample" or (config.loss == "softmax" and not indices)
            index = _draw(scores, size, mask=~taken, at_random=at_random, generator=generator)
            index = processes.all_reduce(index if processes.rank == 0 else torch.zeros_like(index))
            taken[index] = True
            indices.append(index)
            scores_drawn.append(scores[index])
            if len(indices) < config.num_chunks:
                for c in candidates:
                    c.add(index, processes)
    own = processes.own(taken).nonzero().flatten()
    return PairSelection(torch.cat(indices), torch.cat(scores_drawn), own)


class _Candidates:
    """One model's view of this process's pairs, and running sums over the pairs drawn."""

    def __init__(self, model: ModelPairs, loss: Loss):
        self.pairs, self.loss = model.pairs, loss
        self.dtype = torch.promote_types(model.pairs.image.dtype, torch.float32)
        self.temperature = number(model.temperature)
        self.bias = 0.0 if model.bias is None else number(model.bias)
        self.size = tile_size(model.pairs.image.device, self.dtype)
        cosines = [
            (image.to(self.dtype) * text.to(self.dtype)).sum(dim=1)
            for image, text in zip(*(e.split(self.size) for e in model.pairs), strict=True)
        ]
        self.positives = torch.cat(cosines) / self.temperature + self.bias
        # Of images against the texts drawn, and of texts against the images.
        empty = -math.inf if loss == "softmax" else 0.0
        self.sums = self.positives.new_full((2, len(self.positives)), empty)

    def losses(self) -> Float[Tensor, " own"]:
        """Of each candidate, given what was drawn; NaN where the pair is not finite."""
        if self.loss == "softmax":
            # log(e^z_cc + sum over D) - z_cc, without a difference of large numbers.
            losses = softplus(self.sums - self.positives).mean(dim=0)
        else:
            losses = softplus(-self.positives) + self.sums.sum(dim=0)
        return losses.masked_fill(~self.positives.isfinite(), math.nan)

    def add(self, index: Int64[Tensor, " chunk"], processes: Partition) -> None:
        """Count the pairs at these places among all as drawn; a collective."""
        image, text = (self._rows_of_all(e, index, processes) for e in self.pairs)
        self._add(self.sums[0], self.pairs.image, text / self.temperature)
        self._add(self.sums[1], self.pairs.text, image / self.temperature)

    def _add(
        self,
        sums: Float[Tensor, " own"],
        anchors: Float[Tensor, "own dim"],
        others: Float[Tensor, "chunk dim"],
    ) -> None:
        for total, rows in zip(sums.split(self.size), anchors.split(self.size), strict=True):
            for columns in others.split(self.size):
                z = rows.to(self.dtype) @ columns.T
                if self.loss == "softmax":
                    torch.logaddexp(total, z.logsumexp(dim=1), out=total)
                else:
                    total.add_(softplus(z.add_(self.bias)).sum(dim=1))

    def _rows_of_all(
        self, own: Float[Tensor, "own dim"], index: Int64[Tensor, " chunk"], processes: Partition
    ) -> Float[Tensor, "chunk dim"]:
        """The rows at these places, brought together from the processes that have them."""
        places = index - processes.start
        here = (places >= 0) & (places < len(own))
        rows = own.new_zeros(len(index), own.shape[1], dtype=self.dtype)
        rows[here] = own[places[here]].to(self.dtype)
        return processes.all_reduce(rows)


def _draw(
    scores: Float[Tensor, " n"],
    size: int,
    *,
    mask: Bool[Tensor, " n"],
    at_random: bool,
    generator: torch.Generator,
) -> Int64[Tensor, " size"]:
    if not at_random:
        return select_top_k(scores, size, mask=mask).index
    return sample_without_replacement(
        scores, size, temperature=1.0, generator=generator, correction=False, mask=mask
    ).index
