"""E2: a finite class of models with shared noise, where only a reference tells them apart.

    python experiments/theory/finite_class.py --output docs/results/theory

All models suffer the same noise A = +-5. The best has the loss A; the others A + gap + xi, xi = +-1
each their own, 20 for every gap of 2^-1, 2^-1.5, ..., 2^-8.5: 321 models. The reference's loss is
A + sqrt(v) nu, nu = +-1, so that the variance of l* - l_ref is v. Each method returns the model of
least risk on n samples; rho = log(2 x 321).

A sample has one of eight values, so a data set is eight counts, and goes into the package's risks
as a base measure. A minute.
"""

import argparse
import math
import sys
from collections.abc import Sequence
from typing import NamedTuple

import torch
from study import Estimate, Table, generator_of, mean_of, parser_of, publish
from torch import Tensor

from drrho.plotting.chart import Chart, Series
from drrho.risk import ChiSquareBall, Mean
from drrho.risk.theory.bounds import FiniteClassBound
from drrho.runtime.progress import Progress

NOISE = 5.0
MODELS_PER_GAP = 20
GAPS = torch.cat(
    [torch.zeros(1), (2.0 ** -torch.arange(1, 9, 0.5)).repeat_interleave(MODELS_PER_GAP)]
).double()
SIZES = (64, 128, 256, 512, 1024, 2048, 4096)
VARIANCES = (1.0, 0.1, 0.01, 0.0)
RHO = math.log(2 * len(GAPS))
DELTA = 0.05


class Method(NamedTuple):
    """What is minimised: the mean or the chi-square ball, of losses or of excess losses.

    Attributes:
        name: as in the tables.
        radius: rho / n of the ball is used; False is the mean.
        variance: of the reference's own noise; None: no reference.
    """

    name: str
    ball: bool
    variance: float | None


METHODS = (
    Method("ERM", ball=False, variance=None),
    Method("DRO, no reference", ball=True, variance=None),
    *(Method(f"DRRho, v = {v:g}", ball=True, variance=v) for v in VARIANCES),
)


def draw_counts(replicates: int, n: int, generator: torch.Generator) -> Tensor:
    """How often each of the eight values (A, nu, xi) occurs, shape (replicates, models, 8).

    A and nu are of the sample, so their four counts are the same for all models.
    """

    def half(count: Tensor) -> Tensor:
        probability = torch.full_like(count, 0.5)
        return torch.binomial(count, probability, generator=generator)

    total = torch.full((replicates, 1), float(n), dtype=torch.float64)
    counts = total
    for _ in range(2):  # A, then nu
        up = half(counts)
        counts = torch.cat([up, counts - up], dim=1)
    shared = counts[:, None, :].expand(-1, len(GAPS), -1)
    up = half(shared.contiguous())
    return torch.cat([up, shared - up], dim=-1)


def losses_of(variance: float | None) -> Tensor:
    """Of every model at each of the eight values, shape (models, 8); excess with a reference."""
    # The order of `draw_counts`: the last halving varies slowest, A fastest.
    signs = torch.tensor([1.0, -1.0], dtype=torch.float64)
    xi, nu, noise = (s.flatten() for s in torch.meshgrid(signs, signs, signs, indexing="ij"))
    own = torch.where(GAPS[:, None] > 0, GAPS[:, None] + xi, 0.0)
    return own + NOISE * noise if variance is None else own - math.sqrt(variance) * nu


def returned(method: Method, counts: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """The index of the model of least risk in each replicate, and all risks."""
    losses = losses_of(method.variance).expand_as(counts)
    if method.ball:
        risks = ChiSquareBall(radius=RHO / n)(losses, base_measure=counts).value
    else:
        risks = Mean()(losses, base_measure=counts).value
    return risks.argmin(dim=1), risks


def bound_of(variance: float, n: int) -> FiniteClassBound:
    """Excess losses gap + xi - sqrt(v) nu, and the best model's, span at most this."""
    span = GAPS.max().item() + 2 + 2 * math.sqrt(variance)
    return FiniteClassBound(num_models=len(GAPS), num_samples=n, loss_range=span, delta=DELTA)


def violations(variance: float, counts: Tensor, n: int) -> Tensor:
    """Whether some model's risk exceeds its certificate, in each replicate.

    The reference's risk is zero, as the best model's is, so gaps are R(w) - R(ref).
    """
    bound = bound_of(variance, n)
    losses = losses_of(variance).expand_as(counts)
    risk = ChiSquareBall(radius=bound.adversary.radius)(losses, base_measure=counts).value
    return (risk + bound.certificate(0.0) < GAPS).any(dim=1)


def measure(options: argparse.Namespace) -> tuple[dict[str, list[Estimate]], dict[str, list[int]]]:
    generator = generator_of(options.seed)
    excess: dict[str, list[Estimate]] = {method.name: [] for method in METHODS}
    failures: dict[str, list[int]] = {f"v = {v:g}": [] for v in VARIANCES}
    total = len(SIZES) * (len(METHODS) + len(VARIANCES))
    with Progress("E2", total=total, unit="methods") as progress:
        for n in SIZES:
            counts = draw_counts(options.replicates, n, generator)
            for method in METHODS:
                index, _ = returned(method, counts, n)
                excess[method.name].append(mean_of(GAPS[index]))
                progress.advance(1, samples=n)
            for v in VARIANCES:
                failures[f"v = {v:g}"].append(int(violations(v, counts, n).sum()))
                progress.advance(1, samples=n)
    return excess, failures


def main(arguments: Sequence[str] | None = None) -> dict[str, list[Estimate]]:
    options = parser_of(__doc__.splitlines()[0], replicates=800).parse_args(arguments)
    excess, failures = measure(options)
    bounds = {f"v = {v:g}": [bound_of(v, n).oracle(0.0, v) for n in SIZES] for v in VARIANCES}
    publish(
        "finite_class",
        options=options,
        results={"n": SIZES, "excess risk": excess, "failures": failures, "bound": bounds},
        tables=_tables(excess, failures, bounds, options.replicates),
        charts=_charts(excess),
    )
    return excess


def _tables(
    excess: dict[str, list[Estimate]],
    failures: dict[str, list[int]],
    bounds: dict[str, list[float]],
    replicates: int,
) -> list[Table]:
    header = ["excess risk", *(f"n = {n}" for n in SIZES)]
    rows = [[name, *map(str, estimates)] for name, estimates in excess.items()]
    measured = Table(f"Means of {replicates} data sets with their 95 % intervals.", header, rows)
    rows = [
        [name, *(f"{b:.2f}" for b in bounds[name]), str(sum(failed))]
        for name, failed in failures.items()
    ]
    title = (
        f"The bound on DRRho's excess risk at delta = {DELTA:g}, all constants included, and on "
        f"how many of {len(SIZES) * replicates:,} data sets some model's risk exceeded its "
        "certificate."
    )
    header = ["bound", *(f"n = {n}" for n in SIZES), "certificate broken"]
    return [measured, Table(title, header, rows)]


def _charts(excess: dict[str, list[Estimate]]) -> list[Chart]:
    series = [
        Series(
            name=name,
            x=SIZES,
            y=[e.value for e in estimates],
            half_width=[e.half_width for e in estimates],
            style="o-",
            colour=colour,
        )
        for colour, (name, estimates) in enumerate(excess.items())
    ]
    erm = [e.value for e in excess["ERM"]]
    gains = [
        Series(
            name=s.name,
            x=SIZES,
            y=[m / y if y else math.nan for m, y in zip(erm, s.y, strict=True)],
            colour=s.colour,
        )
        for s in series[1:]
    ]
    labels = {"x_label": "n, samples", "x_scale": "log", "y_scale": "log"}
    return [
        Chart(
            title="Excess risk of the model returned",
            y_label="excess risk",
            series=series,
            **labels,
        ),
        Chart(
            title="Gain over ERM",
            y_label="ERM's excess risk / the method's",
            series=gains,
            level=1.0,
            **labels,
        ),
    ]


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(sys.argv[1:])
