"""The risks in 64 bits of mantissa, slowly: what solutions are judged by.

NumPy's `longdouble` has those bits on x86 Linux. Where it is float64, errors below 1e-15 mean
nothing.
"""

import numpy as np

from drrho.risk import KL, ChiSquareBall, CVaR, KLBall, RiskMeasure

# A dual objective is flat at its minimum: its error is the square of the dual variable's, which
# is 2^-45 of the first bracket.
HALVINGS = 45


def exact_value(risk: RiskMeasure, losses: np.ndarray) -> np.longdouble:
    """The risk of losses (n,), all alike."""
    f = losses.astype(np.longdouble)
    match risk:
        case ChiSquareBall(radius=radius):
            return _chi_square_ball(f, np.longdouble(radius))
        case CVaR(fraction=fraction):
            kept = np.longdouble(fraction) * len(f)
            whole = int(kept + np.longdouble(1e-9))  # 0.29 * 100 is below 29 in binary
            largest = np.sort(f)[::-1][: whole + 1]
            return (largest[:whole].sum() + (kept - whole) * largest[-1]) / kept
        case KL(temperature=temperature):
            return f.max() + temperature * np.log(np.exp((f - f.max()) / temperature).mean())
        case KLBall(radius=radius):
            return _kl_ball(f, np.longdouble(radius))
        case _:
            raise ValueError(f"no exact value for {risk!r}")


def _chi_square_ball(f: np.ndarray, radius: np.longdouble) -> np.longdouble:
    """The smallest `eta + sqrt((1 + 2 radius) mean(relu(f - eta)^2))`, by its slope."""
    low, high = f.mean() - f.std() / np.sqrt(2 * radius), f.max()
    for _ in range(HALVINGS):
        eta = (low + high) / 2
        excess = np.maximum(f - eta, 0)
        mean_square = np.square(excess).mean()
        falls = mean_square < (1 + 2 * radius) * excess.mean() ** 2
        low, high = (eta, high) if falls else (low, eta)
    return eta + np.sqrt((1 + 2 * radius) * mean_square)


def _kl_ball(f: np.ndarray, radius: np.longdouble) -> np.longdouble:
    """The smallest `temperature (radius + log(mean(exp(f / temperature))))`, by its slope."""
    below = f - f.max()
    high = -below.min() / np.sqrt(8 * radius)  # no variance exceeds range^2 / 4
    low = 1e-9 * high
    for _ in range(HALVINGS):
        temperature = np.sqrt(low * high)
        tilted = np.exp(below / temperature)
        log_mean = np.log(tilted.mean())
        divergence = (tilted * below).sum() / (temperature * tilted.sum()) - log_mean
        low, high = (temperature, high) if divergence > radius else (low, temperature)
    return f.max() + temperature * (radius + log_mean)


def beyond_limit(risk: RiskMeasure, weights: np.ndarray) -> np.longdouble:
    """By how much weights break what they must satisfy: sum to one, or stay within the ball.

    Relative to the ball's radius, or to CVaR's largest density; negative weights are not looked
    for, as every solver here clips at zero.
    """
    p = weights.astype(np.longdouble)
    off_one = abs(p.sum() - 1)
    density = p * len(p)
    match risk:
        case ChiSquareBall(radius=radius):
            return max(off_one, np.square(density - 1).mean() / 2 / radius - 1)
        case CVaR(fraction=fraction):
            return max(off_one, density.max() * np.longdouble(fraction) - 1)
        case KLBall(radius=radius):
            divergence = (p * np.log(np.where(p > 0, density, 1))).sum()
            return max(off_one, divergence / radius - 1)
        case KL():
            return off_one
        case _:
            raise ValueError(f"no limit known for {risk!r}")
