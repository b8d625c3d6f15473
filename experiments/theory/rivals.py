"""E6: E4 with rivals. What else could be done with a reference, and when is DRRho better?

    python experiments/theory/rivals.py --output docs/results/theory

Three cases, of 500 samples in d = 20 dimensions; hypotheses, primaries and the rule for strengths
are in docs/results/plan.md ("R6" and its amendment), committed before the first run.

* "right labels": E4's logistic regression, the reference from 250 other samples.
* "20 % flipped": the target's labels only; the reference from 200 samples with right ones.
* "unequal noise": least squares. Half of the samples have the first ten features and noise of
  variance 1, half the last ten and noise of variance 16; the reference is from 500 others, all with
  noise of variance 1.

Weight averaging, distillation and DRRho go the same share x of the way to the reference, to
leading order. Each takes the share that is best on data sets which are not reported. Excess risk is
over the population with right labels.

Three minutes.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from logistic_regression import DIMENSIONS, FLIPS, SAMPLES, excess_risk, fit
from logistic_regression import draw as draw_labels
from newton import Problem, minimise
from study import Estimate, Table, generator_of, mean_of, parser_of, publish, ratio_of
from torch import Tensor

from drrho.plotting.chart import Chart, Series
from drrho.risk import KL, Mean
from drrho.runtime.progress import Progress
from drrho.studies.compare.statistics import holm, paired_test

SHARES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
HELD_OUT = 100  # of the target's samples, where the share is chosen by them
NOISY = 16.0  # variance of the noise in the noisy half
TUNING_SEED = 1000  # the data sets that choose shares and are not reported


@dataclass(frozen=True, kw_only=True)
class Case:
    """Data sets of one case.

    Attributes:
        target: what the target learns from.
        seen: what the reference has learned from.
        reference: its parameters, shape (sets, d).
        excess: parameters -> excess risk over the population with right labels.
        own_excess: the same over the population that the target's samples are drawn from.
    """

    target: Problem
    seen: Problem
    reference: Tensor
    excess: Callable[[Tensor], Tensor]
    own_excess: Callable[[Tensor], Tensor]


def right_labels(replicates: int, generator: torch.Generator) -> Case:
    target = draw_labels(replicates, SAMPLES, generator)
    seen = draw_labels(replicates, 250, generator)
    return Case(
        target=target,
        seen=seen,
        reference=fit(seen),
        excess=excess_risk,
        own_excess=excess_risk,
    )


def flipped_labels(replicates: int, generator: torch.Generator) -> Case:
    target = draw_labels(replicates, SAMPLES, generator, flips=FLIPS)
    seen = draw_labels(replicates, 200, generator)

    def own_excess(w: Tensor) -> Tensor:
        return excess_risk(w, flips=FLIPS)

    return Case(
        target=target, seen=seen, reference=fit(seen), excess=excess_risk, own_excess=own_excess
    )


def unequal_noise(replicates: int, generator: torch.Generator) -> Case:
    true = torch.randn(replicates, DIMENSIONS, generator=generator, dtype=torch.float64)
    target = _halves(true, generator, variances=(1.0, NOISY))
    seen = _halves(true, generator, variances=(1.0, 1.0))

    def excess(w: Tensor) -> Tensor:
        return (w - true).square().sum(dim=1) / 4  # a feature is there in half of the samples

    return Case(
        target=target,
        seen=seen,
        reference=minimise(Mean(), seen).w,
        excess=excess,
        own_excess=excess,
    )


def _halves(true: Tensor, generator: torch.Generator, *, variances: tuple[float, float]) -> Problem:
    """Samples of which each half has its half of the features and its variance of the noise."""
    shape = (len(true), 2, SAMPLES // 2)
    features = torch.randn(*shape, DIMENSIONS // 2, generator=generator, dtype=true.dtype)
    x = torch.zeros(*shape, DIMENSIONS, dtype=true.dtype)
    x[:, 0, :, : DIMENSIONS // 2] = features[:, 0]
    x[:, 1, :, DIMENSIONS // 2 :] = features[:, 1]
    scale = torch.tensor(variances, dtype=true.dtype).sqrt()[:, None]
    noise = scale * torch.randn(*shape, generator=generator, dtype=true.dtype)
    # Mixed, so that the first samples are of both kinds.
    order = torch.randperm(SAMPLES, generator=generator)
    x, noise = x.flatten(1, 2)[:, order], noise.flatten(1)[:, order]
    return Problem(x=x, y=(x @ true[..., None]).squeeze(-1) + noise, loss="squared")


CASES = {
    "right labels": right_labels,
    "20 % flipped": flipped_labels,
    "unequal noise": unequal_noise,
}


def average(_: Problem, reference: Tensor, share: float, *, erm: Tensor) -> Tensor:
    """Weight averaging."""
    return (1 - share) * erm + share * reference


def distil(problem: Problem, reference: Tensor, share: float, *, erm: Tensor) -> Tensor:
    """Labels that are a mixture of the given ones and the reference's predictions."""
    z = problem.predictions(reference)
    predicted = z.sigmoid() if problem.loss == "logistic" else z
    soft = replace(problem, y=(1 - share) * problem.y + share * predicted)
    return minimise(Mean(), soft, start=erm).w


def steer(problem: Problem, reference: Tensor, share: float, *, erm: Tensor) -> Tensor:
    """DRRho with the KL penalty.

    Raises:
        ArithmeticError: the duality gap says that this is not the minimum.
    """
    found = minimise(KL(temperature=1 / share - 1), problem.against(reference), start=erm)
    if (gap := found.gap.max().item()) > 1e-9:
        raise ArithmeticError(f"the minimum at the share {share} has a duality gap of {gap:.0e}")
    return found.w


WAYS = {"weight averaging": average, "distillation": distil, "DRRho": steer}
Found = dict[str, Tensor]  # way -> parameters, shape (shares, sets, d)


def at_shares(
    problem: Problem,
    reference: Tensor,
    *,
    shares: Sequence[float] | None = None,
    progress: Progress,
) -> Found:
    """The models of all ways at all shares, those of `SHARES` without others."""
    shares = SHARES if shares is None else shares
    erm = minimise(Mean(), problem).w
    found = {}
    for way, fitted in WAYS.items():
        found[way] = torch.stack([fitted(problem, reference, x, erm=erm) for x in shares])
        progress.advance(1)
    return found


def study_case(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """The excess risks of one case, by way and by how its share was chosen."""
    number = list(CASES).index(name)
    with Progress(f"E6, {name}", total=3 * len(WAYS) + 3, unit="sweeps") as progress:
        judge = CASES[name](options.replicates, generator_of(TUNING_SEED + number))
        case = CASES[name](options.replicates, generator_of(options.seed + number))
        chosen = _best_places(judge, at_shares(judge.target, judge.reference, progress=progress))
        found = at_shares(case.target, case.reference, progress=progress)
        ahead = case.target.first(SAMPLES - HELD_OUT)
        few = at_shares(ahead, case.reference, progress=progress)
        erm = minimise(Mean(), case.target).w
        union = minimise(Mean(), _pooled(case.target, case.seen)).w
        kappa = (case.excess(case.reference).mean() / case.excess(erm).mean()).item()
        law = 1 / (1 + kappa)
        at_law = at_shares(case.target, case.reference, shares=(law,), progress=progress)
    risks = {
        way: {
            "by share": torch.stack([case.excess(w) for w in models]),
            "best share": case.excess(models[chosen[way]]),
            "best share, own population": case.own_excess(models[chosen[way]]),
            "law's share": case.excess(at_law[way][0]),
            "held out": case.excess(_chosen_by_held_out(case, models, few[way])),
        }
        for way, models in found.items()
    }
    alone = {"ERM": erm, "reference": case.reference, "union": union}
    return {
        "case": name,
        "kappa": kappa,
        "law share": law,
        "chosen": {way: SHARES[place] for way, place in chosen.items()},
        "alone": {key: case.excess(w) for key, w in alone.items()},
        "alone, own population": {key: case.own_excess(w) for key, w in alone.items()},
        "risks": risks,
    }


def _best_places(case: Case, found: Found) -> dict[str, int]:
    return {
        way: int(torch.stack([case.excess(w).mean() for w in models]).argmin())
        for way, models in found.items()
    }


def _chosen_by_held_out(case: Case, models: Tensor, few: Tensor) -> Tensor:
    """In each data set, the model at the share whose model of the other samples lost least."""
    rest = case.target.last(HELD_OUT)
    losses = torch.stack([rest.losses(w).mean(dim=1) for w in few])
    return models[losses.argmin(dim=0), torch.arange(models.shape[1])]


def _pooled(a: Problem, b: Problem) -> Problem:
    return Problem(x=torch.cat([a.x, b.x], 1), y=torch.cat([a.y, b.y], 1), loss=a.loss)


def primary(found: dict[str, Any]) -> dict[str, Any]:
    """DRRho less distillation, each at the share that was chosen for it."""
    pair = (found["risks"][way]["best share"] for way in ("DRRho", "distillation"))
    drrho, distillation = pair
    test = paired_test((drrho - distillation).tolist())
    assert test is not None  # the options ask for two data sets at least
    return {
        "case": found["case"],
        "difference": (drrho - distillation).mean().item(),
        "interval": test.interval,
        "p": test.p,
        "ratio": ratio_of(drrho, distillation),
    }


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    options = parser_of(__doc__.splitlines()[0], replicates=400).parse_args(arguments)
    found = [study_case(name, options) for name in CASES]
    primaries = [primary(case) for case in found]
    for row, p in zip(primaries, holm([row["p"] for row in primaries]), strict=True):
        row["adjusted p"] = p
        row["verdict"] = _verdict(row)
    results = {"primaries": primaries, "cases": [_means(case) for case in found]}
    publish(
        "rivals",
        options=options,
        results=results,
        tables=_tables(results, options.replicates),
        charts=_charts(results),
    )
    return results


def _verdict(row: dict[str, Any]) -> str:
    if row["adjusted p"] >= 0.05:
        return "not found"
    return "holds" if row["difference"] < 0 else "refuted"


def _means(found: dict[str, Any]) -> dict[str, Any]:
    """A case with means and intervals in place of the risks of every data set."""

    def mean(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: mean(item) for key, item in value.items()}
        if isinstance(value, Tensor):
            return [mean_of(row) for row in value] if value.dim() == 2 else mean_of(value)
        return value

    return mean(found)


def _tables(results: dict[str, Any], replicates: int) -> list[Table]:
    tables = [
        Table(
            f"DRRho less distillation in excess risk, {replicates} data sets, each at the share "
            "that is best on others: paired t, two-sided, adjusted by Holm's rule for the three.",
            ["case", "difference", "95 %", "p", "adjusted", "DRRho / distillation", "verdict"],
            [
                [row["case"], f"{row['difference']:+.5f}",
                 f"{row['interval'][0]:+.5f} to {row['interval'][1]:+.5f}", _short(row["p"]),
                 _short(row["adjusted p"]), str(row["ratio"]), row["verdict"]]
                for row in results["primaries"]
            ],
        )
    ]  # fmt: skip
    for case in results["cases"]:
        rows = [
            [key, "", *[str(value)] * 3, str(case["alone, own population"][key])]
            for key, value in case["alone"].items()
        ]
        rows += [
            [way, f"{case['chosen'][way]:g}", str(risks["best share"]), str(risks["law's share"]),
             str(risks["held out"]), str(risks["best share, own population"])]
            for way, risks in case["risks"].items()
        ]  # fmt: skip
        tables.append(
            Table(
                f"Excess risk, {case['case']}; kappa {case['kappa']:.2f}, the law's share "
                f"{case['law share']:.2f}. The last column is at the best share, over the "
                "population that the target's samples are from.",
                ["", "best share", "there", "at the law's share",
                 f"chosen by {HELD_OUT} held-out samples", "own population"],
                rows,
            )
        )  # fmt: skip
    return tables


def _short(p: float) -> str:
    return f"{p:.2g}" if p >= 1e-4 else "< 0.0001"


def _charts(results: dict[str, Any]) -> list[Chart]:
    charts = []
    for case in results["cases"]:
        erm = case["alone"]["ERM"].value

        def over_erm(estimates: Sequence[Estimate], by: float = erm) -> dict[str, list[float]]:
            return {
                "y": [estimate.value / by for estimate in estimates],
                "half_width": [estimate.half_width / by for estimate in estimates],
            }

        parts = [
            Series(
                name=way,
                x=list(SHARES),
                **over_erm(risks["by share"]),
                style="o-",
                colour=colour,
            )
            for colour, (way, risks) in enumerate(case["risks"].items())
        ]
        parts += [
            Series(name=key, x=[SHARES[0], SHARES[-1]], y=[case["alone"][key].value / erm] * 2,
                   style="--", colour=colour)
            for colour, key in ((3, "union"), (6, "reference"))
        ]  # fmt: skip
        charts.append(
            Chart(title=case["case"], x_label="share of the way to the reference",
                  y_label="excess risk / ERM's", series=parts, y_scale="log", level=1.0)
        )  # fmt: skip
    return charts


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(sys.argv[1:])
