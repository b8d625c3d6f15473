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
        value: shape (*batch), units of loss. Differentiable: its gradient with respect to the
            losses is `weights`, exactly (Danskin's theorem: the weights attain a maximum, so
            their own variation does not count). Second derivatives are zero, not those of
            the risk.
        weights: shape (*batch, n), detached: the adversary's probabilities. Non-negative, they
            sum to one over the last dimension; zero where the base measure is zero.
        dual: shape (*batch), detached, units of loss: the one scalar from which the weights
            follow, sample by sample. CVaR: the threshold nu. KL: the temperature tau.
            Chi-square: the threshold eta. None for the mean, which has none.

    A row without samples has value zero (attached to the graph, so that distributed training
    finds its gradients), weights zero and dual NaN.
    """

    value: Float[Tensor, "*batch"]
    weights: Float[Tensor, "*batch n"]
    dual: Float[Tensor, "*batch"] | None


@runtime_checkable
class RiskMeasure(Protocol):
    """A configured risk: `Mean()`, `CVaR(fraction=0.1)`, `KLBall(radius=0.5)`, ..."""

    def __call__(self, losses: LossRows, *, base_measure: BaseMeasure = None) -> Risk:
        """Solve for the adversary's weights on these losses.

        Args:
            losses: shape (..., n); the last dimension is the samples. For the DRRho risk pass
                excess losses: the target model's minus the reference model's.
            base_measure: mask or sample weights in place of 1/n; see `drrho.risk.samples.weigh`.

        Raises:
            ValueError, TypeError: as `drrho.risk.samples.weigh`.
        """
        ...


def effective_sample_size(weights: Float[Tensor, "*batch n"]) -> Float[Tensor, "*batch"]:
    """`sum(p)^2 / sum(p^2)`: how many samples, equally weighted, are as concentrated as p.

    Args:
        weights: shape (..., n), non-negative; their scale does not matter.

    Returns:
        Shape (...), in samples: n for uniform weights, 1 when one sample has everything,
        0 when all weights are zero.

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

    It is computed as `sum(q ((1 + d) log(1 + d) - d))` with d = p / q - 1, whose terms are all
    non-negative: nothing cancels between samples when p is close to q.

    Args:
        weights: p, shape (..., n), summing to one (or all zero: a row without samples).
        base_measure: q, shape (..., n), summing to one; positive wherever p is.

    Returns:
        Shape (...), float64; zero for a row without samples.
    """
    q = base_measure.double()
    p = weights.double()
    d = (p - q) / torch.where(q > 0, q, 1.0)
    divergence = (q * (torch.special.xlog1py(1 + d, d) - d)).sum(dim=-1)
    return torch.where(p.sum(dim=-1) == 0, 0.0, divergence)
