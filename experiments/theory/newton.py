"""Exact minimisers of the package's risks in generalised linear models, for many data sets at once.

The risk, its weights and its dual variable come from `drrho.risk`; Newton's method adds the second
derivative. With weights p, losses l(x w, y), their derivatives l' and l'' in the prediction, and D
the second derivative of the risk in the losses,

    gradient = X^T (p l'),    Hessian = X^T diag(p l'') X + (l' X)^T D (l' X)

A minimum is not believed but certified. The adversary's weights at w bound the least risk from
below, by the least weighted loss; the difference is the duality gap, zero at the minimum only:

    F(w) - min F  <=  sum p l(w) - min over v of sum p l(v)
"""

import math
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import softplus

from drrho.risk import (
    KL,
    ChiSquareBall,
    CVaR,
    KLCVaR,
    Mean,
    RiskMeasure,
    excess_loss,
)

MOST_STEPS, MOST_HALVINGS = 60, 40
# Half the squared Newton decrement, which is about what the risk lies above its minimum.
CLOSE_ENOUGH = 1e-14
SUFFICIENT = 1e-4  # the share of the linear decrease that a step has to reach
# Prices of the entropy that smooths CVaR, each started from the minimum of the one before.
SMOOTHING = (0.3, 0.1, 0.03, 0.01, 3e-3, 1e-3, 3e-4, 1e-4)


@dataclass(frozen=True, kw_only=True)
class Problem:
    """Samples of many independent data sets, and the loss of a linear prediction.

    Attributes:
        x: inputs, shape (sets, n, d), float64.
        y: targets, shape (sets, n); of the logistic loss 0 or 1.
        loss: "squared" is (y - x w)^2 / 2, "logistic" the negative log-likelihood.
        reference_losses: shape (sets, n), to subtract; None for the losses themselves.
    """

    x: Tensor
    y: Tensor
    loss: Literal["squared", "logistic"]
    reference_losses: Tensor | None = None

    def predictions(self, w: Tensor) -> Tensor:
        return (self.x @ w[..., None]).squeeze(-1)

    def losses(self, w: Tensor) -> Tensor:
        """Of every sample, at parameters w of shape (sets, d)."""
        z = self.predictions(w)
        match self.loss:
            case "squared":
                return (self.y - z).square() / 2
            case "logistic":
                return softplus(z) - self.y * z

    def excess(self, w: Tensor) -> Tensor:
        """What the risk is taken of."""
        losses = self.losses(w)
        return (
            losses if self.reference_losses is None else excess_loss(losses, self.reference_losses)
        )

    def derivatives(self, w: Tensor) -> tuple[Tensor, Tensor]:
        """First and second, in the prediction."""
        z = self.predictions(w)
        match self.loss:
            case "squared":
                return z - self.y, torch.ones_like(z)
            case "logistic":
                probability = z.sigmoid()
                return probability - self.y, probability * (1 - probability)

    def against(self, reference: Tensor) -> "Problem":
        """Steered by a linear reference, of parameters (sets, d)."""
        return replace(self, reference_losses=self.losses(reference))

    def of(self, sets: Tensor) -> "Problem":
        """Some of the data sets."""
        reference = self.reference_losses
        reference = None if reference is None else reference[sets]
        return replace(self, x=self.x[sets], y=self.y[sets], reference_losses=reference)

    def first(self, samples: int) -> "Problem":
        """The first samples of each data set."""
        return self._samples(slice(samples))

    def last(self, samples: int) -> "Problem":
        """The last samples of each data set."""
        return self._samples(slice(-samples, None))

    def _samples(self, some: slice) -> "Problem":
        reference = self.reference_losses
        reference = None if reference is None else reference[:, some]
        return replace(self, x=self.x[:, some], y=self.y[:, some], reference_losses=reference)

    @property
    def zeros(self) -> Tensor:
        return torch.zeros_like(self.x[:, 0])


class Minimum(NamedTuple):
    """Where a risk is least.

    Attributes:
        w: parameters, shape (sets, d).
        value: the risk there, shape (sets,).
        gap: at most how much less it could be, shape (sets,).
    """

    w: Tensor
    value: Tensor
    gap: Tensor


def minimise(risk: RiskMeasure, problem: Problem, *, start: Tensor | None = None) -> Minimum:
    """The least risk over all linear models, with its duality gap.

    Args:
        risk: `Mean`, `KL`, `KLCVaR`, `ChiSquareBall` or `CVaR`. The last has no
            second derivative and is approached by `KLCVaR` at falling temperatures.
        problem: the data sets.
        start: parameters (sets, d); zero if not given.

    Raises:
        ValueError: the risk has no second derivative that is known here.
    """
    w = problem.zeros if start is None else start
    if isinstance(risk, CVaR):
        for temperature in SMOOTHING:
            smooth = KLCVaR(temperature=temperature, fraction=risk.fraction)
            w = _newton(smooth, problem, w)
        weights = smooth(problem.excess(w)).weights  # allowed to CVaR's adversary too
    else:
        w = _newton(risk, problem, w)
        weights = risk(problem.excess(w)).weights
    value = risk(problem.excess(w)).value
    return Minimum(w, value, _gap(problem, w, value=value, weights=weights, risk=risk))


def minimise_from_reference(
    risk: ChiSquareBall | CVaR, problem: Problem, reference: Tensor, *, start: Tensor
) -> Minimum:
    """`minimise`, where a linear reference may itself be the minimum.

    There all excess losses are zero, the risk has a kink, and any weights of the ball are the
    adversary's. The reference is the minimum if and only if some of them balance its gradients,
    `sum p grad l = 0`: where `balance` finds such weights it is returned, with a gap of zero.
    Elsewhere the search begins where the risk is below the reference's, so that it cannot
    end in the kink.

    Args:
        risk: a ball.
        problem: to be steered by the reference.
        reference: parameters (sets, d).
        start: where else to begin, if the risk is lower there.
    """
    steered = problem.against(reference)
    found = balance(problem, reference)
    match risk:
        case ChiSquareBall(radius=radius):
            stays = found.divergence <= radius
        case CVaR(fraction=fraction):
            stays = found.divergence.isfinite() & (found.densities.amax(dim=1) <= 1 / fraction)
    w, value = reference.clone(), torch.zeros_like(reference[:, 0])
    gap = torch.zeros_like(value)
    moves = (~stays).nonzero().squeeze(-1)
    if len(moves):
        some = steered.of(moves)
        lowest, begin = risk(some.excess(start[moves])).value, start[moves]
        for halvings in range(20):
            tried = reference[moves] + found.direction[moves] / 2**halvings
            value_there = risk(some.excess(tried)).value
            begin = torch.where((value_there < lowest)[:, None], tried, begin)
            lowest = torch.minimum(value_there, lowest)
        w[moves], value[moves], gap[moves] = minimise(risk, some, start=begin)
    return Minimum(w, value, gap)


class Balance(NamedTuple):
    """The densities w >= 0 of mean one and of least divergence with `mean(w_i grad l_i) = 0`.

    Attributes:
        densities: shape (sets, n).
        divergence: `mean((w - 1)^2) / 2`, shape (sets,); infinite where no densities balance. While
            all are positive, n times this is half of Rao's score statistic.
        direction: shape (sets, d), along which the losses of the balanced samples fall.
    """

    densities: Tensor
    divergence: Tensor
    direction: Tensor


def balance(problem: Problem, w: Tensor) -> Balance:
    """Which weights would make w a minimum: `w_i = [c - a grad l_i]_+`, by Newton on the dual.

    The dual is `max over c and a of c - mean([c - a grad l_i]_+^2) / 2`.
    """
    first, _ = problem.derivatives(w)
    z = torch.cat([torch.ones_like(first)[..., None], -first[..., None] * problem.x], dim=-1)
    n, ones = z.shape[1], torch.eye(z.shape[-1], dtype=z.dtype)
    u = ones[0].expand(len(z), -1).clone()

    def objective(u: Tensor) -> Tensor:
        return (z @ u[..., None]).squeeze(-1).clamp_min(0).square().mean(dim=1) / 2 - u[:, 0]

    for _ in range(MOST_STEPS):
        level = (z @ u[..., None]).squeeze(-1)
        gradient = (z.mT @ level.clamp_min(0)[..., None]).squeeze(-1) / n - ones[0]
        if (gradient.norm(dim=1) < 1e-12).all():
            break
        hessian = z.mT @ ((level > 0)[..., None] * z) / n + 1e-12 * ones
        step = -torch.linalg.solve(hessian, gradient[..., None]).squeeze(-1)
        length, value = torch.ones_like(u[:, 0]), objective(u)
        decrease = -(gradient * step).sum(dim=1)
        for _ in range(MOST_HALVINGS):
            fails = objective(u + length[:, None] * step) > value - SUFFICIENT * length * decrease
            fails &= decrease > CLOSE_ENOUGH
            if not fails.any():
                break
            length = torch.where(fails, length / 2, length)
        u = u + length[:, None] * step
    densities = (z @ u[..., None]).squeeze(-1).clamp_min(0)
    balanced = gradient.norm(dim=1) < 1e-8
    divergence = torch.where(balanced, (densities - 1).square().mean(dim=1) / 2, math.inf)
    return Balance(densities, divergence, -u[:, 1:])


class _Curvature(NamedTuple):
    """`D = diag(diagonal) - sum of outer products of the vectors`, shape (sets, n) each."""

    diagonal: Tensor
    vectors: tuple[Tensor, ...]


def risk_curvature(risk: RiskMeasure, losses: Tensor) -> _Curvature:
    """The second derivative of a risk in the losses, where no weight is about to become zero.

    Raises:
        ValueError: it is not known here.
    """
    p = risk(losses).weights
    match risk:
        case Mean():
            return _Curvature(torch.zeros_like(p), ())
        case KL(temperature=temperature):
            return _Curvature(p / temperature, (p / math.sqrt(temperature),))
        case KLCVaR(temperature=temperature, fraction=fraction):
            limit = 1 / (fraction * p.shape[-1])
            free = torch.where(p < limit * (1 - 1e-9), p, 0.0)
            share = free.sum(dim=-1, keepdim=True)
            scale = (temperature * torch.where(share > 0, share, 1.0)).sqrt()
            return _Curvature(free / temperature, (free / scale,))
        case ChiSquareBall(radius=radius):
            # F = mu + sqrt(c V) of the samples above eta, with c = (1 + 2 r) P - 1.
            active = (p > 0).to(p.dtype)
            share = active.mean(dim=-1, keepdim=True)
            q = active / active.sum(dim=-1, keepdim=True)
            centred = losses - (q * losses).sum(dim=-1, keepdim=True)
            deviation = (q * centred.square()).sum(dim=-1, keepdim=True).sqrt()
            slope = ((1 + 2 * radius) * share - 1).clamp_min(0).sqrt() / deviation
            root = slope.sqrt()
            return _Curvature(slope * q, (root * q, root * q * centred / deviation))
        case _:
            raise ValueError(f"the second derivative of {risk} is not known here")


def _newton(
    risk: RiskMeasure, problem: Problem, w: Tensor, *, weights: Tensor | None = None
) -> Tensor:
    """Newton's method with halved steps; with `weights`, of the weighted loss and not the risk."""

    def value_of(w: Tensor) -> Tensor:
        f = problem.excess(w)
        return risk(f).value if weights is None else (weights * f).sum(dim=-1)

    value = value_of(w)
    for _ in range(MOST_STEPS):
        gradient, hessian = _expansion(risk, problem, w, weights=weights)
        step = -torch.linalg.solve(hessian, gradient[..., None]).squeeze(-1)
        decrease = -(gradient * step).sum(dim=-1)
        moving = decrease / 2 > CLOSE_ENOUGH * (1 + value.abs())
        if not moving.any():
            break
        length = moving.to(w.dtype)
        for _ in range(MOST_HALVINGS):
            tried = value_of(w + length[:, None] * step)
            fails = tried > value - SUFFICIENT * length * decrease
            if not fails.any():
                break
            length = torch.where(fails, length / 2, length)
        # What still fails is at the rounding of the values, and stays.
        length = torch.where(fails, 0.0, length)
        if not (length > 0).any():
            break
        w = w + length[:, None] * step
        value = value_of(w)
    return w


def _expansion(
    risk: RiskMeasure, problem: Problem, w: Tensor, *, weights: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Gradient (sets, d) and Hessian (sets, d, d)."""
    f = problem.excess(w)
    first, second = problem.derivatives(w)
    p = risk(f).weights if weights is None else weights
    diagonal, vectors = p * second, []
    if weights is None:
        curvature = risk_curvature(risk, f)
        diagonal = diagonal + curvature.diagonal * first.square()
        vectors = [(problem.x.mT @ (first * u)[..., None]) for u in curvature.vectors]
    hessian = (diagonal[..., None] * problem.x).mT @ problem.x
    for u in vectors:
        hessian = hessian - u @ u.mT
    # Rounding may leave a direction without curvature; this is far below what decides a step.
    size = hessian.diagonal(dim1=-2, dim2=-1).mean(dim=-1)[..., None, None]
    hessian = hessian + 1e-12 * size * torch.eye(w.shape[-1], dtype=w.dtype)
    return (problem.x.mT @ (p * first)[..., None]).squeeze(-1), hessian


def _gap(
    problem: Problem, w: Tensor, *, value: Tensor, weights: Tensor, risk: RiskMeasure
) -> Tensor:
    """The risk at w, less what its adversary's weights guarantee for every other model."""
    f = problem.excess(w)
    mean = (weights * f).sum(dim=-1)
    # A penalty is paid by the weights wherever the model is; a ball charges nothing.
    paid = torch.zeros_like(mean) if isinstance(risk, CVaR | ChiSquareBall) else mean - value
    best = _newton(risk, problem, w, weights=weights)
    return value - ((weights * problem.excess(best)).sum(dim=-1) - paid)
