"""Result of a risk, the protocol that risks follow, and statistics of their weights."""

from typing import NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Float64, Shaped
from torch import Tensor

LossRows = Float[Tensor, "*batch n"]
BaseMeasure = Shaped[Tensor, "... n"] | None


class Risk(NamedTuple):
    """The worst weighted mean loss that an adversary can reach, and how it is reached.

    Attributes:
        value: in units of loss. Its gradient with respect to the losses is `weights`, exactly
            (Danskin's theorem); second derivatives are zero, unlike the risk's.
        weights: the adversary's probabilities, detached. They sum to one over the last dimension,
            and are zero where the base measure is.
        dual: the one number from which the weights follow, detached, in units of loss. CVaR: the
            threshold nu. KL: the temperature tau. Chi-square: the threshold eta. The mean: None.

    A row without samples has value zero (attached to the graph, so that distributed training
    finds its gradients), weights zero and dual NaN.
    """

    value: Float[Tensor, "*batch"]
    weights: Float[Tensor, "*batch n"]
    dual: Float[Tensor, "*batch"] | None


@runtime_checkable
class RiskMeasure(Protocol):
    """A configured risk: `Mean()`, `CVaR(fraction=0.1)`, `KLBall(radius=0.5)`, ...

    A parameter out of its range is a ValueError.
    """

    def __call__(self, losses: LossRows, *, base_measure: BaseMeasure = None) -> Risk:
        """Solve for the adversary's weights on losses, prepared by `drrho.risk.samples.weigh`.

        For the DRRho risk pass excess losses: the target model's minus the reference model's.
        """
        ...


def effective_sample_size(weights: Float[Tensor, "*batch n"]) -> Float[Tensor, "*batch"]:
    """`sum(p)^2 / sum(p^2)`: how many samples, equally weighted, are as concentrated as p.

    Non-negative weights of any scale. n for uniform ones, 1 when one sample has everything, 0 when
    all are zero.

    Source: Kish, "Survey Sampling", 1965.
    """
    total = weights.sum(dim=-1)
    empty = total == 0
    sum_of_squares = weights.square().sum(dim=-1)
    return torch.where(empty, 0.0, total.square() / torch.where(empty, 1.0, sum_of_squares))


def kl_divergence(
    weights: Float[Tensor, "*batch n"], base_measure: Float[Tensor, "*batch n"]
) -> Float64[Tensor, "*batch"]:
    """`sum(p log(p / q))` in nats: what the adversary has spent to leave the base measure.

    Args:
        weights: p, summing to one (or all zero, a row without samples, which has spent nothing).
        base_measure: q, summing to one; positive wherever p is.
    """
    # As sum(q ((1 + d) log(1 + d) - d)), d = p / q - 1, whose terms are all non-negative: nothing
    # cancels between samples when p is close to q.
    q = base_measure.double()
    p = weights.double()
    d = (p - q) / torch.where(q > 0, q, 1.0)
    divergence = (q * (torch.special.xlog1py(1 + d, d) - d)).sum(dim=-1)
    return torch.where(p.sum(dim=-1) == 0, 0.0, divergence)
