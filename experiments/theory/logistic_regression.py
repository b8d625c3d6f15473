"""E4: logistic regression, steered by references that are weaker than the target.

    python experiments/theory/logistic_regression.py --output docs/results/theory

x is Gaussian in d = 20 dimensions, P(y = 1 | x) the sigmoid of <w*, x> with weights that fall from
1.5 by 0.82 from feature to feature; the target sees all features and n = 500 samples. Excess
risks over the population are integrals over two Gaussian numbers, computed on a grid. kappa is the
ratio of the mean excess risks of reference and ERM, which only an experiment knows.

* References: logistic regression on 250, 500 or 1,000 other samples, and on 2,000 of which it sees
  the first 10 or 5 features only (weak to strong).
* Temperatures around kappa, for labels as they are and with 20 % of them exchanged.
* Controls: a reference trained on the target's own samples, and adversaries that do not weaken
  as n grows.

A minute.
"""

import argparse
import sys
from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from newton import Problem, minimise, minimise_from_reference
from study import Estimate, Table, generator_of, mean_of, parser_of, publish, ratio_of
from torch import Tensor
from torch.nn.functional import softplus

from drrho.plotting.chart import Chart, Series
from drrho.risk import KL, ChiSquareBall, CVaR, Mean
from drrho.risk.theory.laws import best_rho, kl_law, parallel_sum
from drrho.runtime.progress import Progress

DIMENSIONS, SAMPLES = 20, 500
TRUE = 1.5 * 0.82 ** torch.arange(DIMENSIONS, dtype=torch.float64)
# Name -> samples of the reference and features that it sees.
REFERENCES = {
    "m = 250": (250, 20),
    "m = 500": (500, 20),
    "m = 1000": (1000, 20),
    "10 of 20 features": (2000, 10),
    "5 of 20 features": (2000, 5),
}
WEAK = "10 of 20 features"
FACTORS = (0.1, 0.25, 0.5, 1.0, 2.0, 4.0, 10.0)
FLIPS = 0.2
CONTROL_SIZES, CONTROL_REPLICATES = (500, 2000, 8000), 50
CVAR, BALL = CVaR(fraction=0.3), ChiSquareBall(radius=0.5)


def draw(replicates: int, n: int, generator: torch.Generator, *, flips: float = 0.0) -> Problem:
    x = torch.randn(replicates, n, DIMENSIONS, generator=generator, dtype=torch.float64)
    uniform = torch.rand(replicates, n, generator=generator, dtype=torch.float64)
    probability = flips + (1 - 2 * flips) * (x @ TRUE).sigmoid()
    return Problem(x=x, y=(uniform < probability).double(), loss="logistic")


def fit(problem: Problem, *, features: int = DIMENSIONS) -> Tensor:
    """Logistic regression on the first features; zero for the others."""
    seen = Problem(x=problem.x[..., :features], y=problem.y, loss="logistic")
    return torch.nn.functional.pad(minimise(Mean(), seen).w, (0, DIMENSIONS - features))


@cache
def _grid() -> tuple[Tensor, Tensor, Tensor]:
    """Two standard normal numbers and their probabilities. The trapezium rule's error falls as
    exp(-2 pi a / h), a > 1 the distance of the integrand's poles from the real line.
    """
    z = torch.arange(-8, 8.01, 0.2, dtype=torch.float64)
    mass = (-z.square() / 2).exp()
    first, second = torch.meshgrid(z, z, indexing="ij")
    weights = torch.outer(mass, mass).flatten()
    return first.flatten(), second.flatten(), weights / weights.sum()


def population_risk(w: Tensor, *, flips: float = 0.0) -> Tensor:
    """Mean loss over x and y of each row of w: only its projection on w* and the rest count."""
    first, second, weights = _grid()
    norm = TRUE.norm()
    along = w @ TRUE / norm
    across = (w.square().sum(dim=1) - along.square()).clamp_min(0).sqrt()
    probability = flips + (1 - 2 * flips) * (norm * first).sigmoid()
    risks = []
    for a, b in zip(along.split(50), across.split(50), strict=True):
        z = a[:, None] * first + b[:, None] * second
        risks.append((softplus(z) - probability * z) @ weights)
    return torch.cat(risks)


def excess_risk(w: Tensor, *, flips: float = 0.0) -> Tensor:
    """Above the best linear model, which with exchanged labels is a multiple of w*."""
    best = TRUE * _best_scale(flips)
    return population_risk(w, flips=flips) - population_risk(best[None], flips=flips)


def _best_scale(flips: float) -> float:
    first, _, weights = _grid()
    u = TRUE.norm() * first
    probability = flips + (1 - 2 * flips) * u.sigmoid()
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        slope = ((middle * u).sigmoid() - probability) * u @ weights
        low, high = (middle, high) if slope < 0 else (low, middle)
    return (low + high) / 2


def weak_to_strong(
    options: argparse.Namespace, *, references: Sequence[str] = tuple(REFERENCES)
) -> list[dict[str, Any]]:
    generator = generator_of(options.seed)
    problem = draw(options.replicates, SAMPLES, generator)
    erm = fit(problem)
    plain = excess_risk(erm)
    rows = []
    with Progress("E4, references", total=len(references), unit="references") as progress:
        for name in references:
            m, features = REFERENCES[name]
            reference = fit(draw(options.replicates, m, generator), features=features)
            weak = excess_risk(reference)
            kappa = (weak.mean() / plain.mean()).item()
            ball = ChiSquareBall(radius=best_rho(kappa, num_parameters=DIMENSIONS) / SAMPLES)
            found = {
                "DRRho, KL": minimise(KL(temperature=kappa), problem.against(reference), start=erm),
                "DRRho, chi-square": minimise_from_reference(ball, problem, reference, start=erm),
            }
            risks = {key: excess_risk(minimum.w) for key, minimum in found.items()}
            better = plain if plain.mean() < weak.mean() else weak
            steered = risks["DRRho, KL"]
            rows.append(
                {
                    "reference": name,
                    "kappa": kappa,
                    "ERM": mean_of(plain),
                    "R_ref": mean_of(weak),
                    **{key: mean_of(risk) for key, risk in risks.items()},
                    "law": parallel_sum(plain.mean().item(), weak.mean().item()),
                    "over the better": ratio_of(steered, better),
                    "gap recovered": _less_from_one(ratio_of(steered, weak)),
                    "duality gap": max(minimum.gap.max().item() for minimum in found.values()),
                }
            )
            progress.advance(1)
    return rows


def _less_from_one(ratio: Estimate) -> Estimate:
    return Estimate(1 - ratio.value, ratio.half_width)


def sweep_temperature(
    options: argparse.Namespace, *, flips: float, factors: Sequence[float] = FACTORS
) -> dict[str, Any]:
    """Risk over ERM's at temperatures of a multiple of kappa.

    The reference sees 10 features of 2,000 samples; with exchanged labels it is logistic
    regression on 500 samples whose labels are exchanged as well.
    """
    generator = generator_of(options.seed + 1)
    problem = draw(options.replicates, SAMPLES, generator, flips=flips)
    m, features = REFERENCES["m = 500" if flips else WEAK]
    reference = fit(draw(options.replicates, m, generator, flips=flips), features=features)
    erm = fit(problem)
    plain, weak = excess_risk(erm, flips=flips), excess_risk(reference, flips=flips)
    kappa = (weak.mean() / plain.mean()).item()
    steered = problem.against(reference)
    ratios = []
    with Progress("E4, temperature", total=len(factors), unit="temperatures") as progress:
        for factor in factors:
            risk = KL(temperature=factor * kappa)
            w = minimise(risk, steered, start=erm).w
            ratios.append(ratio_of(excess_risk(w, flips=flips), plain))
            progress.advance(1)
    return {
        "flips": flips,
        "kappa": kappa,
        "factors": list(factors),
        "ratios": ratios,
        "law": [kl_law(kappa, temperature=factor * kappa) for factor in factors],
    }


def memorised(options: argparse.Namespace) -> list[dict[str, Any]]:
    """A reference from the target's own 500 samples, beside one from 500 others.

    "interpolation" is a kernel model that has learned its labels by heart, with losses near
    zero on them.
    """
    generator = generator_of(options.seed + 2)
    problem = draw(options.replicates, SAMPLES, generator)
    other = draw(options.replicates, SAMPLES, generator)
    erm = fit(problem)
    plain = excess_risk(erm)
    kinds = {
        "logistic regression, other samples": problem.losses(fit(other)),
        "logistic regression, the same samples": problem.losses(erm),
        "interpolation, other samples": _interpolated_losses(other, problem),
        "interpolation, the same samples": _interpolated_losses(problem, problem),
        "none": torch.zeros_like(problem.y),
    }
    rows = []
    for name, losses in kinds.items():
        steered = Problem(x=problem.x, y=problem.y, loss="logistic", reference_losses=losses)
        w = minimise(KL(temperature=1.0), steered, start=erm).w
        rows.append(
            {
                "reference": name,
                "loss on the target's samples": mean_of(losses.mean(dim=1)),
                "over ERM": ratio_of(excess_risk(w), plain),
            }
        )
    return rows


def _interpolated_losses(train: Problem, test: Problem) -> Tensor:
    """Of a Gaussian-kernel interpolation of logits of +-8 at the training samples."""

    def kernel(a: Tensor, b: Tensor) -> Tensor:
        return (-torch.cdist(a, b).square() / (2 * DIMENSIONS)).exp()

    logits = []
    for x, y, other in zip(train.x.split(50), train.y.split(50), test.x.split(50), strict=True):
        targets = 8 * (2 * y - 1)[..., None]
        ridge = 1e-6 * torch.eye(x.shape[1], dtype=x.dtype)
        logits.append(kernel(other, x) @ torch.linalg.solve(kernel(x, x) + ridge, targets))
    z = torch.cat(logits).squeeze(-1)
    return softplus(z) - test.y * z


def fixed_adversaries(
    options: argparse.Namespace, *, sizes: Sequence[int] = CONTROL_SIZES
) -> list[dict[str, Any]]:
    """CVaR and chi-square with parameters that stay, and KL at kappa, as n grows."""
    generator = generator_of(options.seed + 3)
    replicates = min(options.replicates, CONTROL_REPLICATES)
    m, features = REFERENCES[WEAK]
    rows = []
    with Progress("E4, controls", total=len(sizes), unit="sizes") as progress:
        for n in sizes:
            problem = draw(replicates, n, generator)
            reference = fit(draw(replicates, m, generator), features=features)
            erm = fit(problem)
            weak, plain = excess_risk(reference), excess_risk(erm)
            kappa = (weak.mean() / plain.mean()).item()
            row: dict[str, Any] = {"n": n, "ERM": ratio_of(plain, weak)}
            for name, ball in (("CVaR 0.3", CVAR), ("chi-square r = 0.5", BALL)):
                found = minimise_from_reference(ball, problem, reference, start=erm)
                row[name] = ratio_of(excess_risk(found.w), weak)
                row[f"{name} returns it"] = (found.w == reference).all(dim=1).double().mean().item()
                row[f"{name} gap"] = found.gap.max().item()
            penalty = KL(temperature=kappa)
            found = minimise(penalty, problem.against(reference), start=erm)
            row["KL, kappa"] = ratio_of(excess_risk(found.w), weak)
            rows.append(row)
            progress.advance(1, samples=n)
    return rows


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    options = parser_of(__doc__.splitlines()[0], replicates=400).parse_args(arguments)
    results = {
        "references": weak_to_strong(options),
        "temperature": [sweep_temperature(options, flips=flips) for flips in (0.0, FLIPS)],
        "memorised": memorised(options),
        "fixed": fixed_adversaries(options),
    }
    publish(
        "logistic_regression",
        options=options,
        results=results,
        tables=_tables(results, options.replicates),
        charts=_charts(results),
    )
    return results


def _tables(results: dict[str, Any], replicates: int) -> list[Table]:
    gap = max(row["duality gap"] for row in results["references"])
    keys = ("ERM", "R_ref", "DRRho, KL", "DRRho, chi-square")
    references = Table(
        f"Excess risk at n = {SAMPLES}, {replicates} data sets, temperature kappa; largest duality "
        f"gap {gap:.0e}. The gap recovered is 1 - DRRho / reference.",
        ["reference", "kappa", *keys[:1], "reference's", *keys[2:], "law", "KL / better of the two",
         "gap recovered"],
        [
            [row["reference"], f"{row['kappa']:.2f}", *(str(row[key]) for key in keys),
             f"{row['law']:.4f}", str(row["over the better"]), str(row["gap recovered"])]
            for row in results["references"]
        ],
    )  # fmt: skip
    sweeps = Table(
        "Excess risk over ERM's, KL penalty, by temperature as a multiple of kappa.",
        ["", "kappa", *(f"{factor:g}" for factor in results["temperature"][0]["factors"])],
        [
            [label, f"{sweep['kappa']:.2f}", *cells]
            for sweep in results["temperature"]
            for label, cells in (
                (f"{sweep['flips']:.0%} exchanged", list(map(str, sweep["ratios"]))),
                ("law", [f"{value:.3f}" for value in sweep["law"]]),
            )
        ],
    )
    same = Table(
        "Control: a reference that has seen the target's samples. KL penalty, temperature 1.",
        ["reference", "its loss on the target's samples", "DRRho's excess risk / ERM's"],
        [
            [row["reference"], str(row["loss on the target's samples"]), str(row["over ERM"])]
            for row in results["memorised"]
        ],
    )
    names = ("CVaR 0.3", "chi-square r = 0.5")
    gap = max(row[f"{name} gap"] for row in results["fixed"] for name in names)
    fixed = Table(
        "Control: adversaries that stay as n grows. Excess risk over the reference's (10 of 20 "
        f"features), {min(replicates, CONTROL_REPLICATES)} data sets; in brackets the share on "
        f"which the reference itself is returned; largest duality gap {gap:.0e}.",
        ["n", "ERM", *names, "KL, temperature kappa"],
        [
            [f"{row['n']:,}", str(row["ERM"]),
             *(f"{row[name]} ({row[f'{name} returns it']:.0%})" for name in names),
             str(row["KL, kappa"])]
            for row in results["fixed"]
        ],
    )  # fmt: skip
    return [references, sweeps, same, fixed]


def _charts(results: dict[str, Any]) -> list[Chart]:
    rows = results["references"]
    x = [row["kappa"] for row in rows]
    erm = [row["ERM"].value for row in rows]
    fine = [0.3 * 1.05**i for i in range(58)]
    parts = [
        Series(
            name=key,
            x=x,
            y=[row[key].value / e for row, e in zip(rows, erm, strict=True)],
            half_width=[row[key].half_width / e for row, e in zip(rows, erm, strict=True)],
            style="o",
            colour=colour,
        )
        for colour, key in ((1, "DRRho, KL"), (2, "DRRho, chi-square"))
    ]
    parts += [
        Series(name="law", x=fine, y=[k / (1 + k) for k in fine], style="-", colour=6),
        Series(name="reference", x=fine, y=fine, style="--", colour=3),
    ]
    sweeps = []
    for colour, sweep in enumerate(results["temperature"]):
        factors = [0.08 * 1.1**i for i in range(55)]
        kappa = sweep["kappa"]
        law = [kl_law(kappa, temperature=factor * kappa) for factor in factors]
        sweeps.append(Series(name="", x=factors, y=law, style="-", colour=colour))
        sweeps.append(
            Series(
                name=f"{sweep['flips']:.0%} of the labels exchanged",
                x=sweep["factors"],
                y=[ratio.value for ratio in sweep["ratios"]],
                half_width=[ratio.half_width for ratio in sweep["ratios"]],
                style="o",
                colour=colour,
            )
        )
    fixed = [
        Series(
            name=name,
            x=[row["n"] for row in results["fixed"]],
            y=[row[name].value for row in results["fixed"]],
            half_width=[row[name].half_width for row in results["fixed"]],
            colour=colour,
        )
        for colour, name in enumerate(("ERM", "CVaR 0.3", "chi-square r = 0.5", "KL, kappa"))
    ]
    return [
        Chart(title="Five references: better than both, as the law says",
              x_label="kappa = reference's excess risk / ERM's", y_label="excess risk / ERM's",
              series=parts, x_scale="log", y_scale="log", level=1.0),
        Chart(title="The best temperature is kappa (lines: law)", x_label="temperature / kappa",
              y_label="excess risk / ERM's", series=sweeps, x_scale="log"),
        Chart(title="Adversaries that do not weaken return the reference", x_label="n, samples",
              y_label="excess risk / reference's", series=fixed, x_scale="log", y_scale="log",
              level=1.0),
    ]  # fmt: skip


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(sys.argv[1:])
