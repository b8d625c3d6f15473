"""E3: linear regression, where exact DRRho can be laid beside the theory's formulas.

    python experiments/theory/linear_regression.py --output docs/results/theory

y = <w*, x> + noise in d = 20 dimensions, all Gaussian, the loss (y - <w, x>)^2 / 2. Excess risks
are |w - w*|^2 / 2, known exactly. Risks are minimised to a duality gap that the table shows.

* Strength. n = 800, a reference at a random place of excess risk kappa d / (2 n), and the
  chi-square ball of radius g d / (2 n), beside the soft threshold and the law.
* Growing n. A reference that is ERM on m = 200 other samples; the chi-square ball and the KL
  penalty at the strength that the law calls best, beside the parallel sum and ERM on all
  n + m samples. At few samples for each dimension the law fails, and the table shows it.

Two minutes.
"""

import argparse
import sys
from collections.abc import Sequence
from typing import Any

import torch
from newton import Minimum, Problem, minimise, minimise_from_reference
from study import Estimate, Table, generator_of, mean_of, parser_of, publish, ratio_of
from torch import Tensor

from drrho.plotting.chart import Chart, Series
from drrho.risk import KL, ChiSquareBall, Mean
from drrho.risk.theory.laws import best_rho, chi_square_law, parallel_sum, soft_threshold
from drrho.runtime.progress import Progress

DIMENSIONS, REFERENCE_SAMPLES = 20, 200
KAPPAS, STRENGTHS = (0.0, 0.25, 1.0, 4.0, 25.0), (0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 4.0)
STRENGTH_SAMPLES = 800
SIZES = (30, 40, 60, 80, 160, 320, 640, 1280)


def draw(true: Tensor, n: int, generator: torch.Generator) -> Problem:
    x = torch.randn(len(true), n, DIMENSIONS, generator=generator, dtype=true.dtype)
    noise = torch.randn(len(true), n, generator=generator, dtype=true.dtype)
    return Problem(x=x, y=(x @ true[..., None]).squeeze(-1) + noise, loss="squared")


def draw_truth(replicates: int, generator: torch.Generator) -> Tensor:
    true = torch.randn(replicates, DIMENSIONS, generator=generator, dtype=torch.float64)
    return true / DIMENSIONS**0.5


def excess_risk(w: Tensor, true: Tensor) -> Tensor:
    return (w - true).square().sum(dim=1) / 2


def expected_erm_risk(n: int) -> float:
    """Of least squares on n Gaussian samples with noise of variance one, n > d + 1."""
    return DIMENSIONS / (2 * (n - DIMENSIONS - 1))


def pooled(a: Problem, b: Problem) -> Problem:
    return Problem(x=torch.cat([a.x, b.x], 1), y=torch.cat([a.y, b.y], 1), loss=a.loss)


def compare_strengths(
    options: argparse.Namespace,
    *,
    kappas: Sequence[float] = KAPPAS,
    strengths: Sequence[float] = STRENGTHS,
) -> list[dict[str, Any]]:
    """Excess risks as multiples of ERM's, over (kappa, g)."""
    generator, n = generator_of(options.seed), STRENGTH_SAMPLES
    true = draw_truth(options.replicates, generator)
    problem = draw(true, n, generator)
    erm = minimise(Mean(), problem).w
    plain = excess_risk(erm, true)
    hessian = problem.x.mT @ problem.x / n
    aside = torch.randn(true.shape, generator=generator, dtype=true.dtype)
    aside /= aside.norm(dim=1, keepdim=True)
    rows = []
    total = len(kappas) * len(strengths)
    with Progress("E3, strength", total=total, unit="problems") as progress:
        for g in strengths:
            ball = ChiSquareBall(radius=g * DIMENSIONS / (2 * n))
            alone = minimise(ball, problem, start=erm)
            for kappa in kappas:
                reference = true + aside * (kappa * DIMENSIONS / n) ** 0.5
                exact = minimise_from_reference(ball, problem, reference, start=erm)
                formula = soft_threshold(erm, reference, radius=ball.radius, hessian=hessian)
                rows.append(
                    {
                        "kappa": kappa,
                        "g": g,
                        "DRRho": ratio_of(excess_risk(exact.w, true), plain),
                        "soft threshold": ratio_of(excess_risk(formula, true), plain),
                        "law": chi_square_law(kappa, strength=g),
                        "no reference": ratio_of(excess_risk(alone.w, true), plain),
                        "gap": max(exact.gap.max().item(), alone.gap.max().item()),
                    }
                )
                progress.advance(1, gap=rows[-1]["gap"])
    return rows


def compare_sizes(
    options: argparse.Namespace, *, sizes: Sequence[int] = SIZES
) -> list[dict[str, Any]]:
    """Excess risks as the target's samples become more."""
    generator = generator_of(options.seed + 1)
    rows = []
    with Progress("E3, growing n", total=len(sizes), unit="sizes") as progress:
        for n in sizes:
            rows.append(compare_at(n, options.replicates, generator))
            progress.advance(1, samples=n)
    return rows


def compare_at(n: int, replicates: int, generator: torch.Generator) -> dict[str, Any]:
    true = draw_truth(replicates, generator)
    problem, other = draw(true, n, generator), draw(true, REFERENCE_SAMPLES, generator)
    erm, reference = minimise(Mean(), problem).w, minimise(Mean(), other).w
    erm_risk, reference_risk = expected_erm_risk(n), expected_erm_risk(REFERENCE_SAMPLES)
    kappa = reference_risk / erm_risk
    ball = ChiSquareBall(radius=best_rho(kappa, num_parameters=DIMENSIONS) / n)
    penalty = KL(temperature=kappa)
    steered: dict[str, Minimum] = {
        "DRRho, chi-square": minimise_from_reference(ball, problem, reference, start=erm),
        "DRRho, KL": minimise(penalty, problem.against(reference), start=reference),
    }
    risks = {
        "ERM": erm,
        "reference": reference,
        **{name: minimum.w for name, minimum in steered.items()},
        "ERM on all": minimise(Mean(), pooled(problem, other)).w,
    }
    measured = {name: excess_risk(w, true) for name, w in risks.items()}
    law = parallel_sum(erm_risk, reference_risk)
    return {
        "n": n,
        **{name: mean_of(risk) for name, risk in measured.items()},
        "law": law,
        "over the law": {name: mean_of(measured[name] / law) for name in steered},
        "over the reference": {
            name: ratio_of(measured[name], measured["reference"]) for name in steered
        },
        "gap": max(minimum.gap.max().item() for minimum in steered.values()),
    }


def main(arguments: Sequence[str] | None = None) -> tuple[list[dict], list[dict]]:
    options = parser_of(__doc__.splitlines()[0], replicates=400).parse_args(arguments)
    strengths, sizes = compare_strengths(options), compare_sizes(options)
    publish(
        "linear_regression",
        options=options,
        results={"strength": strengths, "growing n": sizes},
        tables=_tables(strengths, sizes, options.replicates),
        charts=_charts(strengths, sizes),
    )
    return strengths, sizes


def _tables(strengths: list[dict], sizes: list[dict], replicates: int) -> list[Table]:
    header = ["kappa", "g", "DRRho", "soft threshold", "law", "no reference"]
    rows = [
        [f"{row['kappa']:g}", f"{row['g']:g}", str(row["DRRho"]), str(row["soft threshold"]),
         f"{row['law']:.3f}", str(row["no reference"])]
        for row in sorted(strengths, key=lambda row: (row["kappa"], row["g"]))
    ]  # fmt: skip
    gap = max(row["gap"] for row in strengths)
    first = Table(
        f"Excess risk over ERM's, chi-square ball, n = {STRENGTH_SAMPLES}, d = {DIMENSIONS}, "
        f"{replicates} data sets; largest duality gap {gap:.0e}.",
        header,
        rows,
    )
    names = ("ERM", "reference", "DRRho, chi-square", "DRRho, KL")
    header = ["n", *names, "law", "ERM on all", "chi-square / law", "chi-square / reference"]
    rows = [
        [
            str(row["n"]),
            *(str(row[name]) for name in names),
            f"{row['law']:.4f}",
            str(row["ERM on all"]),
            str(row["over the law"]["DRRho, chi-square"]),
            str(row["over the reference"]["DRRho, chi-square"]),
        ]
        for row in sizes
    ]
    gap = max(row["gap"] for row in sizes)
    second = Table(
        f"Excess risk as n grows, reference from m = {REFERENCE_SAMPLES} samples, d = "
        f"{DIMENSIONS}, {replicates} data sets; largest duality gap {gap:.0e}.",
        header,
        rows,
    )
    return [first, second]


def _series(name: str, x: Sequence[float], estimates: Sequence[Estimate], colour: int) -> Series:
    return Series(
        name=name,
        x=x,
        y=[e.value for e in estimates],
        half_width=[e.half_width for e in estimates],
        style="o",
        colour=colour,
    )


def _charts(strengths: list[dict], sizes: list[dict]) -> list[Chart]:
    fine = [0.04 * 1.1**i for i in range(50)]
    by_strength: list[Series] = []
    for colour, kappa in enumerate(KAPPAS[1:]):  # a perfect reference leaves nothing to draw
        law = [chi_square_law(kappa, strength=g) for g in fine]
        by_strength.append(Series(name="", x=fine, y=law, style="-", colour=colour))
        rows = [row for row in strengths if row["kappa"] == kappa]
        measured = [row["DRRho"] for row in rows]
        x = [row["g"] for row in rows]
        by_strength.append(_series(f"kappa = {kappa:g}", x, measured, colour))
    n = [row["n"] for row in sizes]
    curves = [
        _series(name, n, [row[name] for row in sizes], colour)
        for colour, name in enumerate(
            ("ERM", "DRRho, chi-square", "DRRho, KL", "reference", "ERM on all")
        )
    ]
    curves.append(Series(name="law", x=n, y=[row["law"] for row in sizes], style="-", colour=6))
    misfits = [
        _series(f"{name}, over {what}", [size / DIMENSIONS for size in n],
                [row[f"over {what}"][name] for row in sizes], colour)
        for colour, (name, what) in enumerate(
            [("DRRho, chi-square", "the law"), ("DRRho, KL", "the law"),
             ("DRRho, chi-square", "the reference"), ("DRRho, KL", "the reference")]
        )
    ]  # fmt: skip
    return [
        Chart(title="Strength, n/d = 40: law (lines), exact minimisation (points)",
              x_label="g = 2 rho / d", y_label="excess risk / ERM's", series=by_strength,
              x_scale="log", y_scale="log", level=1.0),
        Chart(title="Growing n; the reference has seen 200 samples", x_label="n, samples",
              y_label="excess risk", series=curves, x_scale="log", y_scale="log"),
        Chart(title="Where the law ends: measured over predicted", x_label="n / d",
              y_label="ratio of excess risks", series=misfits, x_scale="log", y_scale="log",
              level=1.0),
    ]  # fmt: skip


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(sys.argv[1:])
