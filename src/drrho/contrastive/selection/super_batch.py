"""Super-batches: models' embeddings of them, and the draw of a batch in chunks."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from drrho.contrastive.pairs import PairEmbeddings, check_pairs
from drrho.runtime.checks import require_at_least, require_choice, require_positive
from drrho.runtime.distributed import Partition
from drrho.steering.selection import (
    Kind,
    sample_without_replacement,
    select_top_k,
    selection_scores,
)

Loss = Literal["softmax", "sigmoid"]
# Losses of this process's candidates under each model that counts, given the chunks drawn so far.
Losses = Callable[[list[Int64[Tensor, " _"]]], list[Float[Tensor, " own"]]]


@dataclass(frozen=True, kw_only=True)
class SelectionConfig:
    """Fields of selections from a super-batch.

    Attributes:
        batch_size: pairs to select, of all processes together.
        kind: the score of a candidate: "excess" is the learner's loss minus the reference's
            (learnability), "loss" is the learner's ("hard") and "irreducible" minus the
            reference's ("easy").
        loss: the contrastive loss that is meant: "softmax" (CLIP) or "sigmoid" (SigLIP).
    """

    batch_size: int
    kind: Kind = "excess"
    loss: Loss = "softmax"

    def __post_init__(self):
        require_choice("kind", self.kind, Kind)
        require_choice("loss", self.loss, Loss)
        require_at_least(1, batch_size=self.batch_size)


class ModelPairs(NamedTuple):
    """Embeddings of a super-batch by one model, with the model's temperature and bias.

    Attributes:
        pairs: unit embeddings of this process's pairs, in any precision.
        temperature: in units of cosine similarity, positive (a CLIP's is 1 / logit_scale).
        bias: in nats; of the sigmoid loss only.
    """

    pairs: PairEmbeddings
    temperature: float | Float[Tensor, ""]
    bias: float | Float[Tensor, ""] | None = None


class PairSelection(NamedTuple):
    """Places and scores of the selected pairs.

    Attributes:
        index: shape (batch_size,): places among the pairs of all processes, one process after the
            other, in the order selected. The same on every process.
        scores: shape (batch_size,), in nats: of each when it was selected.
        own: places among this process's own pairs, ascending. Processes may have different
            numbers of them, or none.
    """

    index: Int64[Tensor, " batch_size"]
    scores: Float[Tensor, " batch_size"]
    own: Int64[Tensor, " own"]


class Draw(NamedTuple):
    """The way in which a chunk is drawn.

    Attributes:
        generator: draws without replacement with weights `exp(score)`; None takes the largest
            scores.
        linear: whether the weights are `score - (smallest score)` in place of the exponentials.
        own: whether each process draws its share from its own candidates, by their scores alone.
    """

    generator: torch.Generator | None
    linear: bool = False
    own: bool = False


def models_that_count(
    learner: ModelPairs | None, reference: ModelPairs | None, *, kind: Kind, loss: Loss
) -> list[ModelPairs]:
    """Check and return learner and reference, or the one that the kind of score needs."""
    models = []
    for name, model, needless_kind in (
        ("learner", learner, "irreducible"),
        ("reference", reference, "loss"),
    ):
        if (model is None) != (kind == needless_kind):
            raise ValueError(
                f"{name} is None, but the scores of kind {kind!r} are made of its losses"
                if model is None
                else f"{name} has no effect on scores of kind {kind!r}; give None"
            )
        if model is not None:
            _check_numbers(model, name, loss)
            models.append(model)
    check_pairs(models[0].pairs, models[-1].pairs)
    return models


@torch.no_grad()
def draw_pairs(
    losses: Losses,
    chunks: Sequence[tuple[int, Draw]],
    *,
    kind: Kind,
    processes: Partition,
    device: torch.device,
) -> PairSelection:
    """Draw a batch in chunks by the scores of the candidates; a collective.

    Args:
        losses: called before each chunk, without gradient and autocast.
        chunks: number of pairs of each, and how they are drawn.
        kind: what a score is made of.
        processes: partition of the super-batch. All processes use the first process's draws.
        device: where the embeddings are.

    Raises:
        ValueError: fewer pairs have finite scores than are to be drawn.
    """
    taken = torch.zeros(processes.num_rows, dtype=torch.bool, device=device)
    indices, drawn_scores = [], []
    with torch.autocast(device.type, enabled=False):
        for size, draw in chunks:
            found = losses(indices)
            scores = processes.all_gather(selection_scores(kind, found[0], found[-1]))
            num_finite = int((scores.isfinite() | taken).sum())
            require_candidates(num_finite, sum(n for n, _ in chunks), processes)
            left = ~taken & scores.isfinite()
            shares = _shares(size, left, processes) if draw.own else [(size, left)]
            index = torch.cat([_drawn(scores, share, draw, mask) for share, mask in shares])
            index = processes.all_reduce(index if processes.rank == 0 else torch.zeros_like(index))
            taken[index] = True
            indices.append(index)
            drawn_scores.append(scores[index])
    own = processes.own(taken).nonzero().flatten()
    return PairSelection(torch.cat(indices), torch.cat(drawn_scores), own)


def _drawn(
    scores: Float[Tensor, " all"], size: int, draw: Draw, mask: Bool[Tensor, " all"]
) -> Int64[Tensor, " size"]:
    """Draw some of the candidates that a mask leaves."""
    if draw.generator is None:
        return select_top_k(scores, size, mask=mask).index
    if draw.linear:
        smallest = scores.masked_fill(~mask, math.inf).amin()
        # The smallest has no weight: it is drawn when nothing else is left.
        scores = (scores - smallest).clamp_min(torch.finfo(scores.dtype).tiny).log()
    return sample_without_replacement(
        scores, size, temperature=1.0, generator=draw.generator, correction=False, mask=mask
    ).index


def _shares(
    size: int, left: Bool[Tensor, " all"], processes: Partition
) -> Iterator[tuple[int, Bool[Tensor, " all"]]]:
    """Yield each process's part of the candidates left, and its share of the pairs to draw.

    Shares are proportional to the candidates, so equal where processes have equally many.
    """
    total, before, start = int(left.sum()), 0, 0
    for rows in processes.sizes:
        mask = torch.zeros_like(left)
        mask[start : start + rows] = left[start : start + rows]
        after = before + int(mask.sum())
        if share := size * after // total - size * before // total:
            yield share, mask
        before, start = after, start + rows


def require_candidates(num_finite: int, batch_size: int, processes: Partition) -> None:
    """Raise ValueError unless enough of a super-batch is finite for a whole batch."""
    if num_finite < batch_size:
        raise ValueError(
            f"batch_size is {batch_size}, but only {num_finite} of the {processes.num_rows} "
            "candidates have finite embeddings under every model that counts; give a larger "
            "super-batch"
        )


def number(value: float | Float[Tensor, ""]) -> float:
    """Convert a temperature or bias to a number; a tensor's device is waited for."""
    return value.item() if isinstance(value, Tensor) else value


def _check_numbers(model: ModelPairs, name: str, loss: Loss) -> None:
    bias = None if model.bias is None else number(model.bias)
    require_positive(**{f"temperature of the {name}": number(model.temperature)})
    if loss == "softmax" and bias is not None:
        raise ValueError(
            f"bias of the {name} is {bias}, which has no effect on loss 'softmax'; leave it out"
        )
    if loss == "sigmoid" and (bias is None or not math.isfinite(bias)):
        raise ValueError(
            f"bias of the {name} must be a finite number for loss 'sigmoid', got {bias}"
        )
