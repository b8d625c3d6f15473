"""Scaling laws of error against compute: fits, their bootstrap, the compute at equal error."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from drrho.evaluation.metrics.bootstrap import draw_rows, percentile_interval

PointRule = Literal["all", "pareto"]
Interval = tuple[float, float]
# A setting takes part where every method scores so many times what guessing does.
TIMES_CHANCE = 10
# Resamples that cannot be fitted (too few different computes) are drawn again, so many times.
ATTEMPTS_PER_RESAMPLE = 50


@dataclass(frozen=True, kw_only=True)
class PowerLaw:
    """`E(C) = floor + scale * C^-exponent`.

    Attributes:
        scale: a, the error above the floor at one unit of compute.
        exponent: b, positive where more compute helps.
        floor: E0, the error that no compute removes; 0 in the plain law.
    """

    scale: float
    exponent: float
    floor: float = 0.0

    def error(self, compute: float) -> float:
        """E at a compute, in the unit that the law was fitted with."""
        return self.floor + self.scale * compute**-self.exponent

    def log_compute(self, error: float) -> float:
        """Log C at which the law reaches an error: infinite where it never does."""
        if error <= self.floor or self.exponent <= 0:
            return math.inf
        return (math.log(self.scale) - math.log(error - self.floor)) / self.exponent


@dataclass(frozen=True, kw_only=True)
class RunPoints:
    """Runs of one method, row by row.

    Attributes:
        compute: C, positive: forward GFLOP per sample times samples seen.
        error: E on the test set, a fraction in (0, 1].
        setting: name of the trained model and samples. Rows of one setting are its seeds; methods
            are paired in common settings.
    """

    compute: Float[Tensor, " runs"]
    error: Float[Tensor, " runs"]
    setting: tuple[str, ...]

    def __post_init__(self):
        lengths = len(self.compute), len(self.error), len(self.setting)
        if len(set(lengths)) > 1:
            raise ValueError(f"compute, error and setting must be of equal length, got {lengths}")
        _check(self.compute, self.error)

    def rows_of(self, settings: list[str]) -> "RunPoints":
        """Selects all rows of these settings; a setting named twice counts twice."""
        rows = [i for name in settings for i, own in enumerate(self.setting) if own == name]
        return RunPoints(
            compute=self.compute[rows],
            error=self.error[rows],
            setting=tuple(self.setting[i] for i in rows),
        )


def pareto_front(
    compute: Float[Tensor, " runs"], error: Float[Tensor, " runs"]
) -> Bool[Tensor, " runs"]:
    """Marks runs that are not dominated: none with at most their compute has a smaller error.

    Of equal runs all stay.
    """
    cheaper = compute[None, :] <= compute[:, None]
    better = error[None, :] < error[:, None]
    return ~(cheaper & better).any(dim=1)


def near_chance(methods: Mapping[str, RunPoints], *, chance: float) -> frozenset[str]:
    """Names the settings in which some method is near chance, which the fits leave out.

    A setting is left out of every method, so that methods keep the settings that they share, where
    the mean score (1 - error) of any of them is below ten times the score of guessing.

    Source: docs/mathematics.md, "Scaling law".
    """
    return frozenset(
        setting
        for points in methods.values()
        for setting in dict.fromkeys(points.setting)
        if float(1 - points.rows_of([setting]).error.double().mean()) < TIMES_CHANCE * chance
    )


def fit_power_law(
    compute: Float[Tensor, " runs"], error: Float[Tensor, " runs"], *, with_floor: bool = False
) -> PowerLaw:
    """Least squares of log E: of `log a - b log C`, or of `log(E0 + a C^-b)`.

    The plain law is a line in logarithms and has one solution. The law with a floor is fitted by
    scipy's bounded trust region, 0 <= E0 <= min E, from the lines above three floors; the best
    of the three fits is taken. Where the runs do not bend, the floor is 0 and the law plain.

    Raises:
        ValueError: a value out of range, or fewer different computes than parameters.
        ModuleNotFoundError: a floor is asked for and scipy is not installed.

    Source: docs/mathematics.md, "Scaling law".
    """
    _check(compute, error)
    needed = 3 if with_floor else 2
    if len(compute.unique()) < needed:
        raise ValueError(
            f"a law with {needed} parameters needs runs at {needed} different computes or more, "
            f"got {len(compute.unique())}"
        )
    log_compute, log_error = compute.double().log(), error.double().log()
    if with_floor:
        return _fit_with_floor(log_compute, log_error)
    centred = log_compute - log_compute.mean()
    slope = float((centred * log_error).sum() / centred.square().sum())
    intercept = float(log_error.mean() - slope * log_compute.mean())
    return PowerLaw(scale=math.exp(intercept), exponent=-slope)


def _fit_with_floor(
    log_compute: Float[Tensor, " runs"], log_error: Float[Tensor, " runs"]
) -> PowerLaw:
    # Seldom needed and slow to import; scipy comes with drrho[report].
    from scipy.optimize import least_squares  # noqa: PLC0415

    # The scale is that at the middle of the runs: at C = 1, far outside of them, it would vary
    # with the exponent and the solver would creep along a valley.
    middle = float(log_compute.mean())
    x, y = (log_compute - middle).numpy(), log_error.numpy()
    smallest = float(log_error.min().exp())

    def residuals(parameters: np.ndarray) -> np.ndarray:
        log_scale, exponent, floor = parameters
        return np.log(floor + np.exp(log_scale - exponent * x)) - y

    def jacobian(parameters: np.ndarray) -> np.ndarray:
        log_scale, exponent, floor = parameters
        above = np.exp(log_scale - exponent * x)
        total = floor + above
        return np.stack([above / total, -x * above / total, 1 / total], axis=1)

    fits = []
    for share in (0.0, 0.5, 0.9):  # the line through what is above this floor
        above = np.log(np.exp(y) - share * smallest)
        start = [float(above.mean()), -float(np.polyfit(x, above, 1)[0])]
        fits.append(
            least_squares(
                residuals,
                x0=[*start, max(share, 1e-9) * smallest],
                jac=jacobian,  # pyright: ignore[reportArgumentType]  scipy's stub knows names alone
                bounds=([-np.inf, -np.inf, 0.0], [np.inf, np.inf, smallest]),
                x_scale=[1.0, 0.1, smallest],
                xtol=1e-12,
                ftol=1e-12,
                gtol=1e-12,
            )
        )
    log_scale, exponent, floor = min(fits, key=lambda fit: fit.cost).x
    return PowerLaw(
        scale=math.exp(log_scale + exponent * middle), exponent=float(exponent), floor=float(floor)
    )


@dataclass(frozen=True, kw_only=True)
class Curvature:
    """Test of a law's line: the quadratic term of `log E` in `log C`, its t statistic and p.

    Runs count as independent, so that p is somewhat too small where seeds share a setting.
    """

    quadratic: float
    t: float
    p: float


def curvature_test(
    compute: Float[Tensor, " runs"], error: Float[Tensor, " runs"]
) -> Curvature | None:
    """Tests whether runs bend away from a line in logarithms, by least squares with a square.

    Returns:
        None with fewer than three different computes or four runs, or where they fit exactly.

    Source: docs/mathematics.md, "Scaling law".
    """
    from scipy.stats import t as student  # noqa: PLC0415  slow to import; with drrho[report]

    _check(compute, error)
    degrees = len(compute) - 3
    if len(compute.unique()) < 3 or degrees < 1:
        return None
    x, y = compute.double().log(), error.double().log()
    x = x - x.mean()
    design = torch.stack([torch.ones_like(x), x, x.square()], dim=1)
    inverse = torch.linalg.inv(design.T @ design)
    fitted = inverse @ design.T @ y
    variance = float((y - design @ fitted).square().sum() / degrees * inverse[2, 2])
    if variance <= 0:
        return None
    quadratic = float(fitted[2])
    statistic = quadratic / math.sqrt(variance)
    p = float(2 * student.sf(abs(statistic), degrees))
    return Curvature(quadratic=quadratic, t=statistic, p=p)


def fit_runs(points: RunPoints, *, rule: PointRule, with_floor: bool = False) -> PowerLaw:
    """The law of the runs that the rule lets in: all, or the Pareto front."""
    if rule == "pareto":
        front = pareto_front(points.compute, points.error)
        return fit_power_law(points.compute[front], points.error[front], with_floor=with_floor)
    return fit_power_law(points.compute, points.error, with_floor=with_floor)


def bootstrap_laws(
    methods: Mapping[str, RunPoints],
    *,
    generator: torch.Generator,
    rule: PointRule = "all",
    with_floor: bool = False,
    resamples: int = 1000,
) -> dict[str, list[PowerLaw]]:
    """Fits laws to resampled runs: method -> one law for each resample.

    Settings are drawn with replacement, with all their seeds, from the settings of any method; each
    method has the settings among them that it was trained in. Resample k of every method is of the
    same draw, so differences of laws are paired where methods share settings. The rule is applied
    to every resample anew, since which runs are on the front is chance too. A draw in which a
    method cannot be fitted is drawn again.

    Raises:
        ValueError: an option out of range, or hardly any draw can be fitted.
    """
    if not methods or resamples < 1:
        raise ValueError(
            f"bootstrap_laws needs a method and a resample, got {len(methods)} and {resamples}"
        )
    settings = list(dict.fromkeys(name for points in methods.values() for name in points.setting))
    laws: dict[str, list[PowerLaw]] = {method: [] for method in methods}
    attempts = 0
    while len(next(iter(laws.values()))) < resamples:
        attempts += 1
        if attempts > ATTEMPTS_PER_RESAMPLE * resamples:
            raise ValueError(
                f"runs in {len(settings)} settings are too few for a bootstrap with points = "
                f"{rule!r}: their resamples cannot be fitted; add runs, or fit all points without "
                "a floor"
            )
        drawn = draw_rows(len(settings), generator=generator)
        names = [settings[i] for i in drawn.tolist()]
        found = {}
        for method, points in methods.items():
            try:
                found[method] = fit_runs(points.rows_of(names), rule=rule, with_floor=with_floor)
            except ValueError:
                break
        else:
            for method, law in found.items():
                laws[method].append(law)
    return laws


def log_compute_ratio(law: PowerLaw, other: PowerLaw, *, error: float) -> float:
    """Log of the ratio of the compute with which `law` and `other` reach `error`.

    Infinite where one of them never does; not a number where neither does.
    """
    return law.log_compute(error) - other.log_compute(error)


def interval_of(values: list[float], *, level: float = 0.95) -> Interval:
    """The middle `level` of bootstrap values, which may be infinite.

    Its ends are values that occurred, since infinity cannot be interpolated. With any value that is
    not a number the interval has no ends.
    """
    if any(math.isnan(value) for value in values):
        return -math.inf, math.inf
    resampled = torch.tensor(values, dtype=torch.float64)
    return percentile_interval(resampled, level=level, ends="outward")


def _check(compute: Float[Tensor, " runs"], error: Float[Tensor, " runs"]) -> None:
    """Raises ValueError unless all is positive and finite, and errors are fractions."""
    if len(compute) and not (bool((compute > 0).all()) and bool(compute.isfinite().all())):
        raise ValueError(f"compute must be positive and finite, got {compute.tolist()}")
    if len(error) and not bool(((error > 0) & (error <= 1)).all()):
        raise ValueError(
            f"error must be a fraction in (0, 1], as 1 - accuracy is, got {error.tolist()}"
        )
