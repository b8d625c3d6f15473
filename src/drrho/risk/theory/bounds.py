"""Generalisation bounds of DRRho over a finite class, with all their constants.

A class of N models, a sample of n, a reference that is independent of the sample, losses whose
excess over the reference spans at most M, and a probability delta to be wrong. The
adversary is the chi-square ball of radius rho / n with

    t = log(4 N / delta),    rho = t n / (n - 1)

An infinite class needs a cover, and its size in the place of N.

Source: docs/mathematics.md, "The bound with its constants".
"""

import math
from dataclasses import dataclass

from drrho.risk import ChiSquareBall
from drrho.risk.limits import check_not_negative


@dataclass(frozen=True, kw_only=True)
class FiniteClassBound:
    """The bounds that hold together, for all models at once, with probability `1 - delta`.

    Attributes:
        num_models: N, or the size of a cover.
        num_samples: n, at least 2.
        loss_range: M, known and not measured; 2 B where both models' losses are in [0, B].
        delta: probability that the bounds fail on the sample, in (0, 1).
    """

    num_models: int
    num_samples: int
    loss_range: float
    delta: float = 0.05

    def __post_init__(self) -> None:
        if self.num_models < 1:
            raise ValueError(f"num_models must be at least 1, got {self.num_models}")
        if self.num_samples < 2:
            raise ValueError(f"num_samples must be at least 2, got {self.num_samples}")
        check_not_negative(loss_range=self.loss_range)
        if not 0 < self.delta < 1:
            raise ValueError(f"delta must be in (0, 1), got {self.delta}")

    @property
    def confidence(self) -> float:
        """The confidence t, in nats."""
        return math.log(4 * self.num_models / self.delta)

    @property
    def adversary(self) -> ChiSquareBall:
        """The risk to minimise: the ball of radius rho / n = t / (n - 1)."""
        return ChiSquareBall(radius=self.confidence / (self.num_samples - 1))

    def certificate(self, risk: float) -> float:
        """Bound a model's population risk minus the reference's, from F(w) = `risk`.

            R(w) - R(ref) <= F(w) + 17 M t / (6 (n - 1))

        F(w) is the `adversary`'s value on the excess losses of the sample. It is at most zero for
        its minimiser over a class that has the reference in it.
        """
        return risk + 17 / 6 * self._unit

    def oracle(self, excess_risk: float, variance: float) -> float:
        """Bound the excess risk of F's minimiser by the excess risk of any one model of the class.

            R(w_hat) - R* <= R(w) - R* + 2 sqrt(2 t Var(loss(w) - loss(ref)) / n)
                             + 31 M t / (6 (n - 1))

        `excess_risk` is R(w) - R*; `variance` is the variance of the model's excess loss over the
        reference. Both are over the population.
        """
        deviation = math.sqrt(2 * self.confidence * variance / self.num_samples)
        return excess_risk + 2 * deviation + 31 / 6 * self._unit

    @property
    def _unit(self) -> float:
        return self.loss_range * self.confidence / (self.num_samples - 1)


def chi_square_slack(*, radius: float, loss_range: float) -> float:
    """`radius M / 2`, a bound on mean plus deviation minus the chi-square risk.

        mean + sqrt(2 radius Var) - radius M / 2 <= F <= mean + sqrt(2 radius Var)

    for any sample whose losses span M. No smaller multiple of `radius M` would do: one low loss
    among n equal ones reaches (n - 2) / (n - 1) of it.

    Source: docs/mathematics.md, "Chi-square ball".
    """
    check_not_negative(radius=radius, loss_range=loss_range)
    return radius * loss_range / 2
