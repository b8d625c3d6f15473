"""A super-batch, of which a batch is selected: how models see it, and what a selection is."""

import math
from typing import Literal, NamedTuple

from jaxtyping import Bool, Float, Int64
from torch import Tensor

from drrho.contrastive.pairs import PairEmbeddings, check_pairs

Kind = Literal["excess", "loss", "irreducible"]
Loss = Literal["softmax", "sigmoid"]
KINDS: tuple[Kind, ...] = ("excess", "loss", "irreducible")
LOSSES: tuple[Loss, ...] = ("softmax", "sigmoid")


class ModelPairs(NamedTuple):
    """The super-batch as one model sees it.

    Attributes:
        pairs: its unit embeddings of this process's pairs, in any precision.
        temperature: its own, in units of cosine similarity, positive (a CLIP's is 1 /
            logit_scale).
        bias: its own, in nats; of the sigmoid loss only.
    """

    pairs: PairEmbeddings
    temperature: float | Float[Tensor, ""]
    bias: float | Float[Tensor, ""] | None = None


class PairSelection(NamedTuple):
    """The selected pairs.

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
    """Learner and reference, or the one that the kind of score needs; checked.

    Raises:
        ValueError: a model or a bias is missing or has no effect, a temperature is not positive,
            or numbers of rows differ.
    """
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


def require_candidates(
    scores: Float[Tensor, " n"], batch_size: int, *, taken: Bool[Tensor, " n"] | None = None
) -> None:
    """Raise ValueError unless enough pairs have finite scores, or are taken, for a whole batch."""
    counted = scores.isfinite() if taken is None else scores.isfinite() | taken
    if (num_finite := int(counted.sum())) < batch_size:
        raise ValueError(
            f"batch_size is {batch_size}, but only {num_finite} of the {len(scores)} candidates "
            "have finite embeddings under every model that counts; give a larger super-batch"
        )


def require_choices(**values: tuple[object, tuple[str, ...]]) -> None:
    """Raise ValueError for a value that is not one of its choices."""
    for name, (value, choices) in values.items():
        if value not in choices:
            raise ValueError(f"{name} must be one of {', '.join(choices)}, got {value!r}")


def number(value: float | Float[Tensor, ""]) -> float:
    """A temperature or bias as a number; of a tensor, waits for its device."""
    return value.item() if isinstance(value, Tensor) else value


def _check_numbers(model: ModelPairs, name: str, loss: Loss) -> None:
    temperature = number(model.temperature)
    bias = None if model.bias is None else number(model.bias)
    if not 0 < temperature < math.inf:
        raise ValueError(
            f"temperature of the {name} must be positive and finite, got {temperature}"
        )
    if loss == "softmax" and bias is not None:
        raise ValueError(
            f"bias of the {name} is {bias}, which has no effect on loss 'softmax'; leave it out"
        )
    if loss == "sigmoid" and (bias is None or not math.isfinite(bias)):
        raise ValueError(
            f"bias of the {name} must be a finite number for loss 'sigmoid', got {bias}"
        )
