"""E1: the chi-square risk is the mean plus a deviation, up to a slack that is known.

    python experiments/theory/chi_square_identity.py --output docs/results/theory

For any numbers f that span M and any radius r, `ChiSquareBall` should lie between
mean + sqrt(2 r Var) - r M / 2 and mean + sqrt(2 r Var), at the upper end if and only if
sqrt(2 r) (mean - min f) <= sqrt(Var). Drawn are vectors of 2 to 60 numbers of six kinds, and a
family for which the slack is as large as it can be. About ten seconds.
"""

import sys
from collections.abc import Sequence
from typing import NamedTuple

import torch
from study import Table, generator_of, parser_of, publish
from torch import Tensor

from drrho.plotting.chart import Chart, Series
from drrho.risk import ChiSquareBall
from drrho.risk.theory.bounds import chi_square_slack
from drrho.runtime.progress import Progress

KINDS = ("normal", "uniform", "exponential", "minus exponential", "Cauchy", "two values")
ROUNDING = 1e-12  # of numbers of order one, summed sixty times
DRAWN_IN_FIGURE = 1500


class Case(NamedTuple):
    """Of one vector and radius, all divided by the vector's range.

    Attributes:
        slack: mean + sqrt(2 r Var) less the risk.
        bound: r / 2.
        reach: sqrt(2 r) (mean - min) / sqrt(Var); at most one, all weights are positive.
    """

    slack: float
    bound: float
    reach: float


def draw(kind: str, n: int, generator: torch.Generator) -> Tensor:
    """As many numbers, between 0 and 1, both of which occur."""
    uniform = torch.rand(n, generator=generator, dtype=torch.float64).clamp(1e-12, 1 - 1e-12)
    match kind:
        case "normal":
            f = torch.special.ndtri(uniform)
        case "uniform":
            f = uniform
        case "exponential":
            f = -uniform.log()
        case "minus exponential":
            f = uniform.log()
        case "Cauchy":
            f = (torch.pi * (uniform - 0.5)).tan()
        case _:
            f = (uniform < torch.rand((), generator=generator)).double()
            f[0], f[1] = 0.0, 1.0
    return (f - f.min()) / (f.max() - f.min())


def measure(f: Tensor, radius: float) -> Case:
    mean, deviation = f.mean(), f.std(correction=0)
    upper = mean + (2 * radius) ** 0.5 * deviation
    risk = ChiSquareBall(radius=radius)(f).value
    reach = (2 * radius) ** 0.5 * (mean - f.min()) / deviation
    bound = chi_square_slack(radius=radius, loss_range=(f.max() - f.min()).item())
    return Case((upper - risk).item(), bound, reach.item())


def measure_many(replicates: int, generator: torch.Generator) -> dict[str, list[Case]]:
    cases: dict[str, list[Case]] = {kind: [] for kind in KINDS}
    with Progress("E1", total=replicates, unit="vectors") as progress:
        for i in range(replicates):
            kind = KINDS[i % len(KINDS)]
            n = int(torch.randint(2, 61, (), generator=generator))
            # From all weights positive to nearly all on the largest; the ball ends at (n - 1) / 2.
            exponent = torch.rand((), generator=generator, dtype=torch.float64)
            radius = 10 ** (-4 + 4 * exponent.item()) * (n - 1) / 2
            cases[kind].append(measure(draw(kind, n, generator), radius))
            progress.advance(1)
    return cases


def worst_family(sizes: Sequence[int]) -> list[tuple[int, float, float]]:
    """One 0 among n - 1 ones, at the radius 2 Var: (n, slack / (r M / 2), what is predicted)."""
    found = []
    for n in sizes:
        f = torch.ones(n, dtype=torch.float64)
        f[0] = 0
        case = measure(f, 2 * f.var(correction=0).item())
        found.append((n, case.slack / case.bound, (n - 2) / (n - 1)))
    return found


def main(arguments: Sequence[str] | None = None) -> dict[str, dict[str, float]]:
    options = parser_of(__doc__.splitlines()[0], replicates=20_000).parse_args(arguments)
    cases = measure_many(options.replicates, generator_of(options.seed))
    worst = worst_family((3, 5, 10, 30, 100, 1000, 10_000))
    found = {
        kind: {
            "vectors": len(some),
            "above the upper bound": sum(case.slack < -ROUNDING for case in some),
            "below the lower bound": sum(case.slack > case.bound + ROUNDING for case in some),
            "all weights positive": sum(case.reach <= 1 for case in some),
            "identity broken": sum(
                (case.slack <= ROUNDING) != (case.reach <= 1)
                for case in some
                if abs(case.reach - 1) > 1e-3  # nearer than this the slack is below rounding
            ),
            "largest slack": max(case.slack / case.bound for case in some),
        }
        for kind, some in cases.items()
    }
    publish(
        "chi_square_identity",
        options=options,
        results={"found": found, "worst family": worst},
        tables=[_table(found), _table_of_worst(worst)],
        charts=_charts(cases, worst),
    )
    return found


def _table(found: dict[str, dict[str, float]]) -> Table:
    rows = [
        [kind, *(f"{v:,}" if isinstance(v, int) else f"{v:.3f}" for v in numbers.values())]
        for kind, numbers in found.items()
    ]
    title = "Random vectors of 2 to 60 numbers; the largest slack is a multiple of r M / 2."
    return Table(title, ["numbers", *next(iter(found.values()))], rows)


def _table_of_worst(worst: list[tuple[int, float, float]]) -> Table:
    rows = [[f"{n:,}", f"{slack:.6f}", f"{predicted:.6f}"] for n, slack, predicted in worst]
    title = "One low number among n - 1 equal ones, radius 2 Var: slack as a multiple of r M / 2."
    return Table(title, ["n", "slack", "(n - 2) / (n - 1)"], rows)


def _charts(cases: dict[str, list[Case]], worst: list[tuple[int, float, float]]) -> list[Chart]:
    shown = DRAWN_IN_FIGURE // len(cases)
    points = [
        Series(
            name=kind,
            x=[case.reach for case in some[:shown]],
            y=[case.slack / case.bound for case in some[:shown]],
            style=".",
            colour=colour,
        )
        for colour, (kind, some) in enumerate(cases.items())
    ]
    sizes, slacks, predicted = zip(*worst, strict=True)
    family = [
        Series(name="measured", x=sizes, y=slacks, style="o", colour=0),
        Series(name="(n - 2) / (n - 1)", x=sizes, y=predicted, style="-", colour=1),
    ]
    return [
        Chart(
            title="No slack while all weights are positive; never more than 1",
            x_label="sqrt(2r) (mean - min) / deviation",
            y_label="slack / (r M / 2)",
            series=points,
            x_scale="log",
            level=1.0,
        ),
        Chart(
            title="One low number among equal ones: the constant is the best",
            x_label="n",
            y_label="slack / (r M / 2)",
            series=family,
            x_scale="log",
            level=1.0,
        ),
    ]


if __name__ == "__main__":
    torch.set_num_threads(1)  # tensors this small are not worth dividing
    main(sys.argv[1:])
