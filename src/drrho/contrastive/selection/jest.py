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
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn.functional import softplus

from drrho.contrastive.pairs import pair_partition
from drrho.contrastive.selection.super_batch import (
    Draw,
    Loss,
    ModelPairs,
    PairSelection,
    SelectionConfig,
    draw_pairs,
    models_that_count,
    number,
)
from drrho.contrastive.tiles.strip import tile_size
from drrho.runtime.checks import require_choice
from drrho.runtime.distributed import Partition, ProcessGroup

Rule = Literal["sample", "top_k"]
Score = Literal["contrastive", "published"]


@dataclass(frozen=True, kw_only=True)
class JestConfig(SelectionConfig):
    """Configuration of joint selection.

    Attributes:
        num_chunks: draws that the batch is made of, of equal size up to one pair. More follow the
            joint score more closely; each takes a pass over the candidates.
        selection: "sample" draws a chunk without replacement by `softmax(score)`, as published;
            "top_k" takes the largest scores.
        score: "contrastive" is the loss of the candidate in a batch with the pairs drawn;
            "published" is what the code of the JEST and DRRho-CLIP papers computes for the softmax
            loss, which leaves the candidate out of its own sum, with the draws of that code. For
            the sigmoid loss the two are one.
    """

    num_chunks: int = 16
    selection: Rule = "sample"
    score: Score = "contrastive"

    def __post_init__(self):
        super().__post_init__()
        require_choice("selection", self.selection, Rule)
        require_choice("score", self.score, Score)
        if self.score == "published" and self.loss == "sigmoid":
            raise ValueError(
                "score = 'published' has no effect on loss 'sigmoid', whose score is the published "
                "one; leave it out"
            )
        if not 1 <= self.num_chunks <= self.batch_size:
            raise ValueError(
                f"num_chunks must be between 1 and batch_size, {self.batch_size}, so that no chunk "
                f"is empty; got {self.num_chunks}"
            )
        if self.loss == "softmax" and self.num_chunks == 1 and self.score == "contrastive":
            raise ValueError(
                "num_chunks = 1 draws uniformly with loss 'softmax', which is zero for a pair "
                "alone: take more chunks, or drrho.steering.selection.sample_uniformly"
            )

    @property
    def chunk_sizes(self) -> list[int]:
        """Pairs of each chunk; they add up to the batch size."""
        ends = [step * self.batch_size // self.num_chunks for step in range(self.num_chunks + 1)]
        return [end - start for start, end in pairwise(ends)]


@torch.no_grad()
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

    The published softmax score is -z_cc + the mean over both directions of log sum_{j in D} z_cj,
    without c in its own sum, and -z_cc alone for the first chunk, which is drawn with weights
    score - (smallest score), for "top_k" too. Each process draws its share, in proportion to its
    candidates, from these; D are the pairs of all. Weights are kept as logarithms, so that no
    score overflows.

    Work is O(n batch_size d): each chunk is multiplied with the n candidates once, in tiles, and
    added to their running sums. Memory beyond the arguments is O(n) numbers, a tile and the
    embeddings of a chunk. All is in float32 or wider, without gradient. With K processes a chunk
    costs a gathering of n scores and a sum of its embeddings. Each chunk waits for the device.

    A candidate that is not finite under a model that counts (a corrupt image's) is never drawn.

    Args:
        learner: the model in training; None if and only if the kind is "irreducible".
        reference: the frozen model, with embeddings of any dimension; None if and only if the kind
            is "loss".
        config: what is drawn.
        generator: on the embeddings' device. Of several processes, the first one's decides.
        group: as for `ContrastiveObjective`; its pairs make up the super-batch.

    Raises:
        ValueError: a model or a bias is missing or has no effect, a temperature is not positive,
            numbers of rows differ, or fewer than batch_size candidates are finite.

    Source: docs/mathematics.md, "JEST"; Evans et al., "Data curation via joint example selection
        further accelerates multimodal learning", 2024, arXiv 2406.17711.
    """
    models = models_that_count(learner, reference, kind=config.kind, loss=config.loss)
    processes = pair_partition(models[0].pairs, group=group)
    published = config.score == "published"
    candidates = [_Candidates(model, config.loss, alone=published) for model in models]

    def losses(chunks: list[Int64[Tensor, " _"]]) -> list[Float[Tensor, " own"]]:
        for c in candidates if chunks else ():
            c.add(chunks[-1], processes)
        return [c.losses() for c in candidates]

    rule = Draw(generator if config.selection == "sample" else None, own=published)
    # Softmax losses of pairs alone tie, and the largest of ties are no random choice.
    first = Draw(generator, linear=published, own=published) if config.loss == "softmax" else rule
    return draw_pairs(
        losses,
        [(size, rule if place else first) for place, size in enumerate(config.chunk_sizes)],
        kind=config.kind,
        processes=processes,
        device=models[0].pairs.image.device,
    )


class _Candidates:
    """One model's view of this process's pairs, and running sums over the pairs drawn.

    Args:
        alone: whether a candidate's softmax sum is over the pairs drawn alone, as published.
    """

    def __init__(self, model: ModelPairs, loss: Loss, *, alone: bool):
        self.pairs, self.loss, self.alone = model.pairs, loss, alone
        self.dtype = torch.promote_types(model.pairs.image.dtype, torch.float32)
        self.temperature = number(model.temperature)
        self.bias = 0.0 if model.bias is None else number(model.bias)
        self.size = tile_size(model.pairs.image.device, self.dtype)
        cosines = [
            (image.to(self.dtype) * text.to(self.dtype)).sum(dim=1)
            for image, text in zip(*(e.split(self.size) for e in model.pairs), strict=True)
        ]
        self.positives = torch.cat(cosines) / self.temperature + self.bias
        # First row: images against the texts drawn; second: texts against the images.
        empty = -math.inf if loss == "softmax" else 0.0
        self.sums = self.positives.new_full((2, len(self.positives)), empty)

    def losses(self) -> Float[Tensor, " own"]:
        """Compute each candidate's loss given the pairs drawn; NaN where it is not finite."""
        if self.alone:
            drawn = self.sums.mean(dim=0)
            losses = drawn.where(drawn > -math.inf, 0.0) - self.positives
        elif self.loss == "softmax":
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
        """Gather the rows at these places from the processes that have them."""
        places = index - processes.start
        here = (places >= 0) & (places < len(own))
        rows = own.new_zeros(len(index), own.shape[1], dtype=self.dtype)
        rows[here] = own[places[here]].to(self.dtype)
        return processes.all_reduce(rows)
