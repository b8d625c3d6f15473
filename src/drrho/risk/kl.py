"""Risk under a KL penalty: the adversary pays for the divergence it spends (data weighting)."""

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from drrho.risk.base import BaseMeasure, LossRows, Risk
from drrho.risk.duality import Dual, DualForm
from drrho.risk.limits import check_price
from drrho.risk.samples import Samples, as_risk, may_read_values, weigh


@dataclass(frozen=True, kw_only=True)
class KL:
    """Risk `temperature * log(sum(q exp(losses / temperature)))`, q the base measure.

    This is the maximum, over distributions p, of `sum(p * losses) - temperature * KL(p || q)`,
    attained by `p proportional to q exp(losses / temperature)`. Large temperatures give the
    mean (`mean + Var / (2 temperature) + ...`), small ones the maximum; float32 is accurate to
    rounding in between and at both ends. The dual variable is the temperature.

    Attributes:
        temperature: the adversary's price per nat, in units of loss; in [1e-30, 1e30].

    Source: Donsker-Varadhan duality; docs/mathematics.md, "KL penalty".
    """

    temperature: float

    def __post_init__(self) -> None:
        check_price(self.temperature, name="temperature")

    def __call__(self, losses: LossRows, *, base_measure: BaseMeasure = None) -> Risk:
        samples = weigh(losses, base_measure)
        z = samples.below.div_(self.temperature).to(samples.losses.dtype)  # nothing else needs them
        tilted = tilt(z, samples)
        value = samples.top + self.temperature * tilted.log_mean
        dual = torch.full_like(value, self.temperature)
        return as_risk(samples, value=value, weights=tilted.weights, dual=dual)

    @property
    def dual_form(self) -> DualForm:
        return DualForm(
            density=kl_density,
            generator=kl_generator,
            optimum=lambda at: Dual(at.value, torch.full_like(at.value, self.temperature)),
            variable=lambda dual: dual.scale,
            scale="price",
        )


class Tilted(NamedTuple):
    """The distribution proportional to `q exp(z)`, and `log(sum(q exp(z)))`."""

    weights: Float[Tensor, "*batch n"]
    log_mean: Float[Tensor, "*batch"]


def tilt(z: Float[Tensor, "*batch n"], samples: Samples) -> Tilted:
    """Tilt the base measure q by exp(z); z is at most zero, and zero somewhere.

    While the mean of exp(z) is near one, its logarithm is small and log1p(mean(expm1)) keeps
    its digits: at high temperature those are what the temperature then multiplies. Far below
    one, that form loses the digits of 1/n, and the logarithm of the mean is exact.
    """
    weights, log_mean = rough_tilt(z, samples)
    if not may_read_values(z) or bool((log_mean > math.log(0.5)).any()):
        terms = z.expm1()
        if samples.alike:
            mean_minus_one = terms.mean(dim=-1)
        else:
            mean_minus_one = (samples.measure.to(z.dtype) * terms).sum(dim=-1)
        log_mean = torch.where(mean_minus_one > -0.5, mean_minus_one.log1p(), log_mean)
    return Tilted(weights, log_mean)


def rough_tilt(z: Float[Tensor, "*batch n"], samples: Samples) -> Tilted:
    """Tilt as `tilt` does; the error of `log_mean` is a rounding of one, not of itself."""
    if samples.alike:
        weights = z.exp()
        total = weights.sum(dim=-1, keepdim=True)
        return Tilted(weights.div_(total), (total.squeeze(-1) / z.shape[-1]).log())
    # Relative to the largest, so that equal samples add an exact zero to z.
    log_measure = samples.measure.log()
    largest = log_measure.amax(dim=-1, keepdim=True)
    logits = z + (log_measure - largest).to(z.dtype)
    log_mean = logits.logsumexp(dim=-1) + largest.squeeze(-1).to(z.dtype)
    return Tilted(logits.softmax(dim=-1), log_mean)


def kl_density(above: Tensor, scale: Tensor) -> Tensor:
    """`exp((f - nu) / s)`."""
    return (above / scale).exp()


def kl_generator(density: Tensor) -> Tensor:
    """`w log w - w + 1`."""
    return torch.special.xlogy(density, density) - density + 1
