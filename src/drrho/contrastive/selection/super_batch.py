"""Super-batches: models' embeddings of them, and the draw of a batch in chunks."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float, Int64
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
    chunks: Sequence[tuple[int, torch.Generator | None]],
    *,
    kind: Kind,
    processes: Partition,
    device: torch.device,
) -> PairSelection:
    """Draw a batch in chunks by the scores of the candidates; a collective.

    Args:
        losses: called before each chunk, without gradient and autocast.
        chunks: number of pairs of each; and a generator that draws them by `softmax(score)`
            without replacement, or None for those with the largest scores.
        kind: what a score is made of.
        processes: partition of the super-batch. The first process's draws are those of all.
        device: where the embeddings are.

    Raises:
        ValueError: fewer pairs have finite scores than are to be drawn.
    """
    taken = torch.zeros(processes.num_rows, dtype=torch.bool, device=device)
    indices, drawn_scores = [], []
    with torch.autocast(device.type, enabled=False):
        for size, generator in chunks:
            found = losses(indices)
            scores = processes.all_gather(selection_scores(kind, found[0], found[-1]))
            num_finite = int((scores.isfinite() | taken).sum())
            require_candidates(num_finite, sum(n for n, _ in chunks), processes)
            left = ~taken
            if generator is None:
                index = select_top_k(scores, size, mask=left).index
            else:
                index = sample_without_replacement(
                    scores,
                    size,
                    temperature=1.0,
                    generator=generator,
                    correction=False,
                    mask=~taken,
                ).index
            index = processes.all_reduce(index if processes.rank == 0 else torch.zeros_like(index))
            taken[index] = True
            indices.append(index)
            drawn_scores.append(scores[index])
    own = processes.own(taken).nonzero().flatten()
    return PairSelection(torch.cat(indices), torch.cat(drawn_scores), own)


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
