"""Other ways to the same solutions: bisection, plain closed forms, the package `dro`.

Bisection on the dual variable is how Levy, Carmon, Duchi and Sidford ("Large-scale methods for
distributionally robust optimization", 2020) solve; written here from the mathematics, in PyTorch
operations over all samples.
"""

import importlib.metadata
import math
import sys
from collections.abc import Callable

import torch
from torch import Tensor

from drrho.risk import KL, ChiSquareBall, CVaR, KLBall, RiskMeasure

try:
    from dro.neural_model.fdro_utils import BISECTION_TOL, RobustLoss
except (ImportError, RuntimeError) as error:  # RuntimeError: torchvision of another torch
    print(f"without dro: {error}", file=sys.stderr)
    DRO_VERSION = None
else:
    DRO_VERSION = importlib.metadata.version("dro")

# Bisection ends when its bracket is this part of the first one, or two neighbouring numbers. The
# weights are then about as exact as those of a direct solution.
BRACKET = 2.0**-52
# dro ends when the divergence is this close to the radius. Much less is below float64's rounding.
DRO_TOLERANCE = 1e-12

Solution = tuple[Tensor, Tensor]  # value () and weights (n,)
Solver = Callable[[Tensor], Solution]


def rivals(risk: RiskMeasure) -> dict[str, Solver]:
    """Other solvers of this risk, by name."""
    match risk:
        case ChiSquareBall(radius=radius):
            solvers = {"bisection": lambda losses: chi_square_bisection(losses, radius)}
            if DRO_VERSION is not None:
                for tolerance in (DRO_TOLERANCE, BISECTION_TOL):
                    solvers[f"dro to {tolerance:g}"] = dro("chi-square", radius, tolerance)
            return solvers
        case CVaR(fraction=fraction):
            solvers = {"bisection": lambda losses: cvar_bisection(losses, fraction)}
            if DRO_VERSION is not None:
                solvers["dro"] = dro("cvar", fraction, BISECTION_TOL)  # sorts; no tolerance
            return solvers
        case KL(temperature=temperature):
            return {"logsumexp, softmax": lambda losses: kl_closed_form(losses, temperature)}
        case KLBall(radius=radius):
            return {"bisection": lambda losses: kl_ball_bisection(losses, radius)}
        case _:
            return {}


def bisect(low: float, high: float, is_below: Callable[[float], bool]) -> tuple[float, float]:
    """A bracket of the point where `is_below` turns from true to false."""
    width = BRACKET * (high - low)
    while high - low > width:
        middle = (low + high) / 2
        if middle in (low, high):
            break
        low, high = (middle, high) if is_below(middle) else (low, middle)
    return low, high


def chi_square_bisection(losses: Tensor, radius: float) -> Solution:
    """The ratio of mean square to squared mean of relu(f - eta) grows with eta to 1 + 2 radius."""
    n, top = losses.numel(), losses.amax()
    below = losses - top
    excess = below - below.mean()
    # If all samples had weight, eta would be here; otherwise it is above.
    start = below.mean() - (excess.dot(excess) / (2 * radius * n)).sqrt()

    def is_below(eta: float) -> bool:
        torch.sub(below, eta, out=excess).relu_()
        return bool(n * excess.dot(excess) < (1 + 2 * radius) * excess.sum().square())

    eta, _ = bisect(start.item(), 0.0, is_below)
    weights = torch.sub(below, eta, out=excess).relu_()
    weights /= weights.sum()
    return top + weights.dot(below), weights


def cvar_bisection(losses: Tensor, fraction: float) -> Solution:
    """The number of losses above nu falls to fraction n; what is left goes to those at nu."""
    kept = fraction * losses.numel()
    above = torch.empty_like(losses)

    def is_below(nu: float) -> bool:
        # Ones and zeros as float64: to sum those is faster than to count a mask.
        return bool(torch.gt(losses, nu, out=above).sum() > kept)

    low, high = bisect(losses.amin().item() - 1.0, losses.amax().item(), is_below)
    at = (losses > low) & (losses <= high)
    torch.gt(losses, high, out=above)
    weights = (above + (kept - above.sum()) / at.sum() * at) / kept
    return weights.dot(losses), weights


def kl_ball_bisection(losses: Tensor, radius: float) -> Solution:
    """The divergence of softmax(f / temperature) falls with the temperature to the radius."""
    n, top = losses.numel(), losses.amax()
    below = losses - top
    z, tilted = torch.empty_like(below), torch.empty_like(below)
    high = math.log(-below.amin().item()) - math.log(8 * radius) / 2  # as variance <= range^2 / 4

    def is_below(log_temperature: float) -> bool:
        torch.mul(below, math.exp(-log_temperature), out=z)
        total = torch.exp(z, out=tilted).sum()
        return bool(tilted.dot(z) / total - (total / n).log() > radius)

    _, log_temperature = bisect(high - 20, high, is_below)
    is_below(log_temperature)
    weights = tilted / tilted.sum()
    return top + weights.dot(below), weights


def kl_closed_form(losses: Tensor, temperature: float) -> Solution:
    """What one writes without a library."""
    z = losses / temperature
    return temperature * (z.logsumexp(0) - math.log(losses.numel())), z.softmax(0)


def dro(geometry: str, size: float, tolerance: float) -> Solver:
    """What dro's `RobustLoss.forward` does once it has the losses."""
    loss = RobustLoss(size=size, reg=0, geometry=geometry, tol=tolerance)

    def solve(losses: Tensor) -> Solution:
        weights = loss._compute_optimal_weights(losses)
        return weights.dot(losses), weights

    return solve
