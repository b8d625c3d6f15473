"""GIST: a guide takes the negatives out that it finds more alike than the pair itself."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

from drrho.contrastive.exact import products
from drrho.contrastive.memory.temperature import (
    DEFAULT_TEMPERATURE,
    Learned,
    OneTemperatureOrFloat,
    Tau,
    as_tau,
    as_temperature,
)
from drrho.contrastive.objectives.distillation import DistillationTerm, count_teachers
from drrho.contrastive.objectives.global_risk import Directions
from drrho.contrastive.pairs import PairEmbeddings, check_negatives, check_pairs, pair_partition
from drrho.contrastive.tiles.strip import tile_size, wide_dtype
from drrho.runtime.checks import require_at_least, require_choice, require_finite
from drrho.runtime.distributed import Partition

MarginStrategy = Literal["absolute", "relative"]


@dataclass(frozen=True, kw_only=True)
class GIST:
    """GISTEmbed's objective: cross-entropy without the negatives that a guide takes for positives.

    The guide is the recipe's reference.

    Attributes:
        temperature: `Constant` (a float will do) or `Learned`.
        margin: by how much a negative's similarity must be below the pair's own, for the guide.
        margin_strategy: the margin is "absolute", in cosine similarity, or "relative" to the pair's
            own.
        within: whether an anchor is also compared with the other anchors, and its positive with the
            other positives, as in the published loss.
        directions: "first" has images (of text pairs: anchors) alone as anchors, as published;
            "both" has the texts too.
        distillation: teachers' probabilities, imitated as well; None leaves them out.

    Source: docs/mathematics.md, "GIST"; Solatorio, arXiv 2402.16829.
    """

    method: ClassVar = "gist"
    needs_reference: ClassVar = True
    has_averages: ClassVar = False
    temperature: OneTemperatureOrFloat = DEFAULT_TEMPERATURE
    margin: float = 0.0
    margin_strategy: MarginStrategy = "absolute"
    within: bool = True
    directions: Directions = "first"
    distillation: DistillationTerm | None = None
    num_teachers = property(count_teachers)

    def __post_init__(self):
        as_temperature(self)
        require_at_least(0, **{"objective.margin": self.margin})
        require_choice("objective.margin_strategy", self.margin_strategy, MarginStrategy)
        require_choice("objective.directions", self.directions, Directions)
        require_finite(**{"objective.margin": self.margin})
        per_direction = isinstance(self.temperature, Learned) and self.temperature.per_direction
        if per_direction and self.directions == "first":
            raise ValueError(
                "objective.temperature.per_direction has no effect with objective.directions = "
                "'first': there is one direction; leave it out, or take directions = 'both'"
            )


def gist_anchor_losses(
    target: PairEmbeddings,
    guide: PairEmbeddings,
    config: GIST,
    *,
    temperature: Tau,
    pairs: Partition | None = None,
    in_blocks: bool = True,
) -> Float[Tensor, "anchors own"]:
    """Cross-entropy of each anchor's positive among the candidates that the guide lets pass.

        -log(exp(S_ii / tau) / (exp(S_ii / tau) + sum_c exp(S_ic / tau))),
        over candidates c other than the positive with G_ic <= G_ii - margin

    Candidates of image i are all texts, and with `within` all images against image i and all texts
    against text i. In nats; its mean is the loss.

    Args:
        target: unit embeddings (B, d) of the model in training; of this process's pairs.
        guide: unit embeddings (B, d_guide) of the same pairs, which get no gradient. A row of zeros
            is a pair without them, whose anchor keeps its negatives.
        temperature: tau in units of cosine similarity: a number, or of a shape that expands to
            (2, B).
        pairs: how many pairs each process has; None asks them. The gradient means the same as in
            `tiled_log_gap_means`.
        in_blocks: computes blocks of rows, once more for the gradient, so that only a block is in
            memory at a time; otherwise matrices are whole.

    Raises:
        ValueError: fewer than two pairs, or numbers of rows that differ.

    Source: docs/mathematics.md, "GIST"; Solatorio, arXiv 2402.16829.
    """
    check_pairs(target, guide)
    pairs = pair_partition(target) if pairs is None else pairs
    check_negatives(pairs.num_rows)
    dtype = wide_dtype(target.image)
    tau = as_tau(temperature, target.image).to(dtype).expand(2, len(target.image))
    ours = [_Gathered.of(e.to(dtype), pairs) for e in target]
    with torch.no_grad():
        theirs = [_Gathered.of(e.to(dtype), pairs) for e in guide]
    size = tile_size(target.image.device, dtype) if in_blocks else max(1, len(target.image))
    again = in_blocks and torch.is_grad_enabled()
    losses = []
    for anchor in (0, 1) if config.directions == "both" else (0,):
        sides = anchor, 1 - anchor
        blocks = [
            _Block(config, slice(top, top + size), pairs.start, sides)
            for top in range(0, max(1, len(target.image)), size)
        ]
        arguments = ours, theirs, tau[anchor]
        losses.append(torch.cat([_computed(it.losses, *arguments, again=again) for it in blocks]))
    return torch.stack(losses)


class _Gathered(NamedTuple):
    """One side's embeddings: of this process, and of all."""

    own: Float[Tensor, "own dim"]
    everyone: Float[Tensor, "all dim"]

    @classmethod
    def of(cls, own: Tensor, pairs: Partition) -> "_Gathered":
        everyone = _AllGather.apply(own, pairs)
        assert isinstance(everyone, Tensor)
        return cls(own, everyone)


class _Block(NamedTuple):
    """Some of this process's anchors, against all candidates.

    Attributes:
        rows: of this process's pairs.
        start: the column of the first row's positive.
        sides: of the anchor and of its positive.
    """

    config: GIST
    rows: slice
    start: int
    sides: tuple[int, int]

    def losses(
        self, ours: Sequence[_Gathered], theirs: Sequence[_Gathered], tau: Float[Tensor, " own"]
    ) -> Float[Tensor, " rows"]:
        config, (anchor, positive) = self.config, self.sides
        of_guide = self._similarities(theirs, anchor, positive)
        own = torch.arange(len(of_guide), device=of_guide.device)
        at = own, own + self.start + self.rows.start
        threshold = of_guide[at]
        margin = config.margin
        if config.margin_strategy == "relative":
            threshold = threshold - margin * threshold.abs()
        else:
            threshold = threshold - margin
        logits = self._similarities(ours, anchor, positive) / tau[self.rows, None]
        of_positive = logits[at]
        masked = of_guide > threshold[:, None]
        masked[at] = False
        candidates = [logits.masked_fill(masked, -math.inf)]
        for side in self.sides if config.within else ():
            masked = self._similarities(theirs, side, side) > threshold[:, None]
            masked[at] = True  # what is compared with itself
            logits = self._similarities(ours, side, side) / tau[self.rows, None]
            candidates.append(logits.masked_fill(masked, -math.inf))
        return torch.cat(candidates, dim=1).logsumexp(dim=1) - of_positive

    def _similarities(
        self, of: Sequence[_Gathered], left: int, right: int
    ) -> Float[Tensor, "rows all"]:
        return products(of[left].own[self.rows], of[right].everyone)


def _computed(losses: Callable[..., Tensor], *arguments: Any, again: bool) -> Tensor:
    """Compute a block, whose matrices are not kept for the gradient where it is computed again."""
    if not again:
        return losses(*arguments)
    found = checkpoint(losses, *arguments, use_reentrant=False, preserve_rng_state=False)
    assert isinstance(found, Tensor)
    return found


class _AllGather(torch.autograd.Function):
    """Everyone's rows; the gradients of a row are added up on the process that holds it."""

    @staticmethod
    def forward(ctx: Any, own: Tensor, pairs: Partition) -> Tensor:
        ctx.pairs = pairs
        return pairs.all_gather(own)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor, None]:
        return ctx.pairs.reduce_scatter(grad_output.contiguous()), None
