"""E5: what a mini-batch does to the risk: bias, variance and drift of the estimators.

    python experiments/theory/estimators.py --output docs/results/theory

Losses are standard normal, so that every truth is a number.

* Bias of a batch's risk against its size, beside the expansion to first order in 1/B.
* The KL gradient at temperature 1/2 in batches of 32: an adversary's mean of the losses, which
  should be 2. Moving averages, SCENT's rate and the learned dual trade its bias for variance.
* Losses that fall by c temperatures per step: what is left of the sum of the weights.

A minute.
"""

import argparse
import math
import sys
from collections.abc import Sequence
from typing import Any

import torch
from study import Estimate, Table, generator_of, mean_of, parser_of, publish
from torch import Tensor

from drrho.plotting.chart import Chart, Series
from drrho.risk import KL, ChiSquareBall, CVaR, RiskMeasure
from drrho.runtime.progress import Progress
from drrho.steering import (
    AdaptiveRate,
    BatchEstimator,
    Estimator,
    ExcessLosses,
    LearnedDual,
    MovingAverage,
)

SIZES = (16, 32, 64, 128, 256)
NUMBERS_AT_ONCE = 1 << 20
TEMPERATURE, BATCH, TRUTH = 0.5, 32, 2.0
BURN_IN, STRETCHES = 500, 50
FALLS, RATES, DRIFT_STEPS = (1e-3, 1e-2, 3e-2, 1e-1), (0.1, 0.02), 2000


def truth_of(risk: RiskMeasure) -> float:
    """The risk of a standard normal loss, in closed form."""
    match risk:
        case CVaR(fraction=fraction):
            return _density_at_quantile(fraction) / fraction
        case KL(temperature=temperature):
            return 1 / (2 * temperature)
        case _:
            return _chi_square_of_normal(risk)


def predicted_bias(risk: RiskMeasure, size: int) -> float:
    """To first order in 1/size; docs/mathematics.md, "Batch bias"."""
    match risk:
        case CVaR(fraction=fraction):
            return -(1 - fraction) / (2 * size * _density_at_quantile(fraction))
        case KL(temperature=temperature):
            return -temperature / (2 * size) * math.expm1(temperature**-2)
        case ChiSquareBall(radius=radius):
            return -math.sqrt(2 * radius) * 6 / (8 * size)
        case _:
            raise ValueError(f"no expansion for {risk}")


def _density_at_quantile(fraction: float) -> float:
    z = torch.special.ndtri(torch.tensor(1 - fraction, dtype=torch.float64)).item()
    return math.exp(-z * z / 2) / math.sqrt(2 * math.pi)


def _chi_square_of_normal(risk: RiskMeasure) -> float:
    """Of four million quantiles in the middle of their intervals."""
    n = 1 << 22
    middles = (torch.arange(n, dtype=torch.float64) + 0.5) / n
    return risk(torch.special.ndtri(middles)).value.item()


RISKS: dict[str, RiskMeasure] = {
    "CVaR 0.1": CVaR(fraction=0.1),
    "KL 1": KL(temperature=1.0),
    "KL 0.5": KL(temperature=0.5),
    "chi-square 0.1": ChiSquareBall(radius=0.1),
}

ESTIMATORS = {
    "batch": BatchEstimator,
    "moving average 0.5": lambda: MovingAverage(rate=0.5),
    "moving average 0.1": lambda: MovingAverage(rate=0.1),
    "moving average 0.02": lambda: MovingAverage(rate=0.02),
    "SCENT -2": lambda: MovingAverage(rate=AdaptiveRate(log_step=-2.0)),
    "SCENT -4": lambda: MovingAverage(rate=AdaptiveRate(log_step=-4.0)),
    "SCENT -6": lambda: MovingAverage(rate=AdaptiveRate(log_step=-6.0)),
    "learned dual 0.1": lambda: LearnedDual(rate=0.1),
    "learned dual 0.02": lambda: LearnedDual(rate=0.02),
}


def bias_of_batches(
    options: argparse.Namespace,
    *,
    risks: Sequence[str] = tuple(RISKS),
    sizes: Sequence[int] = SIZES,
) -> dict[str, list[Estimate]]:
    """The mean risk of a batch, less the truth."""
    generator = generator_of(options.seed)
    biases: dict[str, list[Estimate]] = {name: [] for name in risks}
    with Progress("E5, bias", total=len(sizes), unit="sizes") as progress:
        for size in sizes:
            values: dict[str, list[Tensor]] = {name: [] for name in risks}
            # The more samples in a batch, the smaller the bias, and the more batches it takes.
            left = options.replicates * max(1, size // 64)
            while left > 0:
                rows = min(left, NUMBERS_AT_ONCE // size)
                left -= rows
                f = torch.randn(rows, size, generator=generator, dtype=torch.float64)
                for name in risks:
                    # The mean has no bias and the same noise: less of it is left.
                    values[name].append(RISKS[name](f).value - f.mean(dim=1))
            for name in risks:
                biases[name].append(mean_of(torch.cat(values[name]) - truth_of(RISKS[name])))
            progress.advance(1, batch=size)
    return biases


def gradient_of(make: Any, steps: int, generator: torch.Generator) -> dict[str, Estimate | float]:
    """Of `sum(weight_i f_i)` on independent batches.

    The error of its mean is that of stretches of steps, for the estimators have memory.
    """
    estimator: Estimator = make()
    risk = KL(temperature=TEMPERATURE)
    measure = torch.ones(BATCH, dtype=torch.float64)
    found = []
    for _ in range(BURN_IN + steps):
        f = torch.randn(BATCH, generator=generator, dtype=torch.float64)
        weights = estimator(risk, ExcessLosses(f, measure)).weights
        found.append((weights * f).sum())
    kept = torch.stack(found[BURN_IN:])
    stretches = kept[: steps // STRETCHES * STRETCHES].view(STRETCHES, -1).mean(dim=1)
    mean = mean_of(stretches)
    return {"mean": mean, "bias": mean.value - TRUTH, "deviation": kept.std().item()}


def compare_estimators(
    options: argparse.Namespace,
    *,
    names: Sequence[str] = tuple(ESTIMATORS),
) -> dict[str, dict[str, Estimate | float]]:
    found = {}
    with Progress("E5, estimators", total=len(names), unit="estimators") as progress:
        for number, name in enumerate(names):
            generator = generator_of(options.seed + 1 + number)
            found[name] = gradient_of(ESTIMATORS[name], options.replicates, generator)
            progress.advance(1)
    return found


def drift(*, falls: Sequence[float] = FALLS, steps: int = DRIFT_STEPS) -> list[dict[str, float]]:
    """The sum of the weights, once it stands still, for losses that fall."""
    measure, rows = torch.ones(4, dtype=torch.float64), []
    for rate in RATES:
        for fall in falls:
            average = MovingAverage(rate=rate)
            normalised = MovingAverage(rate=rate, normalise=True)
            risk = KL(temperature=1.0)
            for step in range(steps):
                f = torch.full((4,), -fall * step, dtype=torch.float64)
                plain = average(risk, ExcessLosses(f, measure)).weights.sum().item()
                mended = normalised(risk, ExcessLosses(f, measure)).weights.sum().item()
            # From (1 - rate) e^fall = 1 on the average is left behind for good.
            predicted = max(0.0, (1 - (1 - rate) * math.exp(fall)) / rate)
            rows.append({"rate": rate, "fall": fall, "sum": plain, "predicted": predicted,
                         "normalised": mended})  # fmt: skip
    return rows


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    options = parser_of(__doc__.splitlines()[0], replicates=20_000).parse_args(arguments)
    results = {
        "bias": bias_of_batches(options),
        "gradient": compare_estimators(options),
        "drift": drift(),
    }
    predicted = {name: [predicted_bias(RISKS[name], b) for b in SIZES] for name in RISKS}
    publish(
        "estimators",
        options=options,
        results={"batch sizes": SIZES, "predicted": predicted, **results},
        tables=_tables(results, predicted, options.replicates),
        charts=_charts(results, predicted),
    )
    return results


def _tables(
    results: dict[str, Any], predicted: dict[str, list[float]], replicates: int
) -> list[Table]:
    biases = Table(
        "Bias of a batch's risk, standard normal losses, with 95 % intervals, and to first order.",
        ["risk", *(f"B = {b}" for b in SIZES)],
        [
            row
            for name, estimates in results["bias"].items()
            for row in (
                [name, *map(str, estimates)],
                ["first order", *(f"{p:.4f}" for p in predicted[name])],
            )
        ],
    )
    gradients = Table(
        f"The KL gradient, temperature {TEMPERATURE:g}, batches of {BATCH}, {replicates:,} steps; "
        f"the truth is {TRUTH:g}.",
        ["estimator", "mean", "standard deviation of a step"],
        [
            [name, str(row["mean"]), f"{row['deviation']:.2f}"]
            for name, row in results["gradient"].items()
        ],
    )
    drifts = Table(
        "Sum of the weights while losses fall by c temperatures per step.",
        ["rate", "c", "measured", "predicted", "normalise=True"],
        [
            [f"{row['rate']:g}", f"{row['fall']:g}",
             *(f"{row[key]:.3f}" for key in ("sum", "predicted", "normalised"))]
            for row in results["drift"]
        ],
    )  # fmt: skip
    return [biases, gradients, drifts]


def _charts(results: dict[str, Any], predicted: dict[str, list[float]]) -> list[Chart]:
    series = []
    for colour, (name, estimates) in enumerate(results["bias"].items()):
        lost = [-p for p in predicted[name]]
        series.append(Series(name="", x=SIZES, y=lost, style="-", colour=colour))
        series.append(
            Series(
                name=name,
                x=SIZES,
                y=[-e.value for e in estimates],
                half_width=[e.half_width for e in estimates],
                style="o",
                colour=colour,
            )
        )
    families: dict[str, list[tuple[float, float]]] = {}
    for name, row in results["gradient"].items():
        family = name.rsplit(" ", 1)[0]
        families.setdefault(family, []).append((abs(row["bias"]), row["deviation"]))
    trade = [
        Series(name=name, x=[p[0] for p in points], y=[p[1] for p in points], colour=colour)
        for colour, (name, points) in enumerate(families.items())
    ]
    return [
        Chart(title="Bias of a batch's risk (lines: first order)", x_label="B, samples",
              y_label="truth - mean risk of a batch", series=series, x_scale="log", y_scale="log"),
        Chart(title="The KL gradient: bias is traded for variance", x_label="|bias|, truth 2",
              y_label="standard deviation of a step", series=trade),
    ]  # fmt: skip


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(sys.argv[1:])
