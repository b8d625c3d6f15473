"""Every risk, beside its definition, with the parameters under which it is tested.

A new risk is a new entry of FAMILIES: all tests of risk and steering take theirs from here.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from drrho.risk import (
    KL,
    ChiSquare,
    ChiSquareBall,
    CVaR,
    KLBall,
    KLCVaR,
    Mean,
    RiskMeasure,
)


def kl(p, q):
    return torch.xlogy(p, p / q).sum(-1)


def chi_square(p, q):
    return (q * (p / q - 1).square()).sum(-1) / 2


def free(p, q):
    return torch.zeros(p.shape[:-1], dtype=p.dtype)


class Definition(NamedTuple):
    """What the adversary may do: reach `max sum(p * losses) - price * cost(p, q)`.

    Attributes:
        cost: of the distribution p beside the base measure q; a divergence.
        price: units of loss per unit of cost.
        budget: the largest cost.
        cap: the largest p / q.
    """

    cost: Callable[[Tensor, Tensor], Tensor] = free
    price: float = 0.0
    budget: float = math.inf
    cap: float = math.inf

    def allows(self, p, q, *, tolerance=0.0):
        within = self.cost(p, q) <= self.budget * (1 + tolerance) + tolerance / 1000
        return within & ((p / q).amax(-1) <= self.cap * (1 + tolerance))


class Family(NamedTuple):
    """A risk for all values of its parameters.

    Attributes:
        define: a risk to its definition.
        typical: for tests to which one will do.
        examples: weak and strong ones.
        beyond: ones whose adversary reaches the largest loss of a few samples.
        ladder: from the mean to the maximum, each more pessimistic than the one before.
        programs: those that are solved again as convex programs.
        extremes: those whose solvers are compared, where they have several ways.
    """

    define: Callable[[RiskMeasure], Definition]
    typical: RiskMeasure
    examples: tuple[RiskMeasure, ...] = ()
    beyond: tuple[RiskMeasure, ...] = ()
    ladder: tuple[RiskMeasure, ...] = ()
    programs: tuple[RiskMeasure, ...] = ()
    extremes: tuple[RiskMeasure, ...] = ()


def each(risk, name, *values):
    return tuple(risk(**{name: value}) for value in values)


FAMILIES = {
    "mean": Family(lambda risk: Definition(chi_square, budget=0.0), Mean()),
    "cvar": Family(
        lambda risk: Definition(cap=1 / risk.fraction),
        CVaR(fraction=0.3),
        each(CVaR, "fraction", 0.3, 0.9),
        each(CVaR, "fraction", 0.01),
        each(CVaR, "fraction", 1.0, 0.8, 0.5, 0.21, 0.2, 1e-3),
        each(CVaR, "fraction", 1.0, 0.95, 0.5, 0.3, 0.1, 0.01),
        each(CVaR, "fraction", 1e-6, 0.01, 0.3, 0.999, 1.0),
    ),
    "kl": Family(
        lambda risk: Definition(kl, price=risk.temperature),
        KL(temperature=0.7),
        each(KL, "temperature", 0.2, 20.0),
        (),
        each(KL, "temperature", 1e9, 10.0, 1.0, 0.1, 1e-9),
        each(KL, "temperature", 100.0, 1.0, 0.1, 0.01),
        each(KL, "temperature", 1e-3, 0.3, 1e4),
    ),
    "kl in cvar": Family(
        lambda risk: Definition(kl, price=risk.temperature, cap=1 / risk.fraction),
        KLCVaR(temperature=0.7, fraction=0.3),
        (KLCVaR(temperature=0.5, fraction=0.4), KLCVaR(temperature=3.0, fraction=0.7)),
        (),
        tuple(
            KLCVaR(temperature=t, fraction=a)
            for t, a in ((1.0, 1.0), (1.0, 0.6), (0.5, 0.6), (0.1, 0.2), (1e-9, 1e-3))
        ),
        tuple(
            KLCVaR(temperature=t, fraction=a)
            for t in (100.0, 1.0, 0.1, 0.01)
            for a in (0.95, 0.3, 0.01)
        ),
    ),
    "kl ball": Family(
        lambda risk: Definition(kl, budget=risk.radius),
        KLBall(radius=0.2),
        each(KLBall, "radius", 0.05, 1.0),
        each(KLBall, "radius", 9.0),
        each(KLBall, "radius", 0.0, 1e-6, 0.01, 0.3, 1.5, 50.0),
        each(KLBall, "radius", 1e-4, 0.01, 0.3, 1.0, 10.0),
        each(KLBall, "radius", 1e-12, 1e-4, 0.3, 2.0, 10.0),
    ),
    "chi2 ball": Family(
        lambda risk: Definition(chi_square, budget=risk.radius),
        ChiSquareBall(radius=0.2),
        # Not 1, where one sample in three is exactly at reach and its threshold is not unique.
        each(ChiSquareBall, "radius", 0.02, 1.1),
        each(ChiSquareBall, "radius", 99.0),
        each(ChiSquareBall, "radius", 0.0, 1e-6, 0.01, 0.3, 1.5, 50.0),
        each(ChiSquareBall, "radius", 1e-4, 0.01, 0.3, 1.0, 10.0),
        each(ChiSquareBall, "radius", 0.0, 1e-12, 1e-3, 0.3, 2.0, 1e4),
    ),
    "chi2 penalty": Family(
        lambda risk: Definition(chi_square, price=risk.strength),
        ChiSquare(strength=0.8),
        each(ChiSquare, "strength", 0.5, 30.0),
        (),
        each(ChiSquare, "strength", 1e9, 10.0, 1.0, 0.1, 1e-9),
        each(ChiSquare, "strength", 100.0, 1.0, 0.1, 0.01),
        each(ChiSquare, "strength", 1e-30, 1e-3, 0.3, 5.0, 1e30),
    ),
}

TYPICAL = {name: family.typical for name, family in FAMILIES.items()}


def risks(*fields):
    """The risks in these fields of all families, each once."""
    found = {}
    for family in FAMILIES.values():
        for field in fields:
            entry = getattr(family, field)
            found |= dict.fromkeys(entry if isinstance(entry, tuple) else [entry])
    return list(found)
