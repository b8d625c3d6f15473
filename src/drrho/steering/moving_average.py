"""The KL penalty's normaliser, averaged over batches: exponential, or with SCENT's rate."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float64
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from drrho.risk import KL, RiskMeasure
from drrho.steering.base import Estimate, ExcessLosses


@dataclass(frozen=True, kw_only=True)
class AdaptiveRate:
    """`rate = sigmoid(log_step + v)`, v the average's logarithm: SCENT's mirror descent.

    It is the step alpha of stochastic proximal mirror descent on `v + exp(loss - v)` with the
    Bregman divergence of exp(-v): `v <- v + softplus(log alpha + new) - softplus(log alpha + v)`.
    The rate falls when the losses do, so an average that is too large is left slowly. Unlike a
    fixed rate, it depends on where the losses' zero is.

    Attributes:
        log_step: log alpha. At v = 0, -2.2 is a rate of 0.1 and -4.6 one of 0.01.
    """

    log_step: float


class MovingAverage(nn.Module):
    """KL weights against an average over batches of mean exp(excess / temperature).

        v <- log((1 - rate) exp(v) + rate mean exp(f / temperature))
        weight_i = q_i exp(f_i / temperature - v)         objective = temperature v

    in log space, q the batch's base measure. The first batch starts the average.

    For losses that do not change, with W = n / ESS = E[(p/q)^2] and B the batch size, the
    gradient sum(weight_i g_i) of an expected value G under p is biased by

        -(rate / B) (E_p[(p/q) g] - G)  +  rate / (2 - rate) (W - 1) / B  G

    to first order: at rate 1 the batch estimator's bias. Lower rates trade it for variance, in
    the limit a mean of exponentials. Losses that fall by c temperatures per step leave the average
    behind, and the weights sum to about `1 - c / rate`; watch `SteeredLoss.weight_sum` (under Adam
    only relative changes of it matter). The average falls by at most `-log(1 - rate)` per step:
    after one batch with a loss k temperatures above the others, weights are almost zero for about
    k / rate steps. A weight is at most 1 / rate.

    Args:
        rate: gamma in (0, 1], a constant or `AdaptiveRate`. Assign `estimator.rate` for a
            schedule: at least 0.1 while the losses fall fast, less later.
        normalise: divide the weights by the moving average, at the same rate, of their sum, so that
            a drift of the losses does not become one of the learning rate.

    Source: Wang and Yang, "Finite-sum coupled compositional stochastic optimization", 2022, for
        the moving average; SCENT ("A geometry-aware efficient algorithm for compositional
        entropic risk minimization", 2026) for the adaptive rate; docs/mathematics.md,
        "Estimators".
    """

    log_mean: Float64[Tensor, ""]
    weight_sum: Float64[Tensor, ""]
    started: Tensor

    def __init__(self, *, rate: float | AdaptiveRate = 0.1, normalise: bool = False) -> None:
        super().__init__()
        self.rate = rate
        self.normalise = normalise
        self.register_buffer("log_mean", torch.zeros((), dtype=torch.float64))
        self.register_buffer("weight_sum", torch.ones((), dtype=torch.float64))
        self.register_buffer("started", torch.zeros((), dtype=torch.bool))

    @property
    def rate(self) -> float | AdaptiveRate:
        """The weight of the newest batch in the average."""
        return self._rate

    @rate.setter
    def rate(self, rate: float | AdaptiveRate) -> None:
        if not isinstance(rate, AdaptiveRate) and not 0 < rate <= 1:
            raise ValueError(f"rate must be in (0, 1] or an AdaptiveRate, got {rate}")
        self._rate = rate

    def check(self, risk: RiskMeasure) -> None:
        """Raise ValueError unless the risk is KL, whose normaliser is a mean of known numbers."""
        if not isinstance(risk, KL):
            raise ValueError(
                f"a moving average needs the risk KL, got {risk}; LearnedDual and "
                "LossTable estimate the other risks over batches"
            )

    def forward(self, risk: KL, batch: ExcessLosses) -> Estimate:
        temperature = risk.temperature
        mass = batch.base_measure.double()
        used, total = mass > 0, mass.sum()
        z = torch.where(used, batch.excess.double() / temperature, -math.inf)
        log_measure = mass.log() - total.log()
        log_batch_mean = torch.where(used, z + log_measure, -math.inf).logsumexp(dim=-1)

        log_rate = self._log_rate()
        log_mean = torch.logaddexp(log1mexp(log_rate) + self.log_mean, log_rate + log_batch_mean)
        log_mean = torch.where(self.started, log_mean, log_batch_mean)
        # A batch without samples leaves the average as it is.
        log_mean = torch.where(total > 0, log_mean, self.log_mean)
        weights = torch.where(used, (z + log_measure - log_mean).exp(), 0.0)
        if self.normalise:
            rate = torch.where(self.started, log_rate.exp(), 1.0)
            average = (1 - rate) * self.weight_sum + rate * weights.sum()
            self.weight_sum.copy_(torch.where(total > 0, average, self.weight_sum))
            weights = weights / self.weight_sum
        self.log_mean.copy_(log_mean)
        self.started.logical_or_(total > 0)
        value = temperature * log_mean
        return Estimate(value, weights, torch.full_like(value, temperature))

    def _log_rate(self) -> Float64[Tensor, ""]:
        match self.rate:
            case AdaptiveRate(log_step=log_step):
                return logsigmoid(log_step + self.log_mean)
            case rate:
                return torch.full_like(self.log_mean, math.log(rate))


def log1mexp(log_x: Float64[Tensor, ""]) -> Float64[Tensor, ""]:
    """`log(1 - exp(log_x))` for log_x <= 0."""
    return (-log_x.expm1()).log()
