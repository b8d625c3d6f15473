"""Alerts: numbers of a run that are beyond a threshold."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from drrho.contrastive.memory.temperature import Constant
from drrho.contrastive.objectives.global_risk import DRRhoCLIP, FastCLIP
from drrho.contrastive.objectives.objective import Objective
from drrho.recipe.document import RunResults
from drrho.recipe.folder import RunFolder
from drrho.recipe.recipe import Recipe
from drrho.studies.compare.curves import Row
from drrho.training.metrics import METRICS, Metric

# Thresholds beside those that the metrics of the log declare (`Limit`).
THRESHOLDS = {
    "memorised": 0.05,  # the reference's lead in reciprocal rank on training over held-out pairs
    "solved": 0.98,  # its reciprocal rank on training pairs at which little is left to steer by
    "left_out": 0.01,  # share of the samples that were skipped
    "fell": 0.9,  # the last evaluation as a share of the best
}
TAIL = 0.1  # share of the log's rows, the newest, that means are taken over
Limits = Mapping[str, float]
Grade = Literal["warning", "note"]
FLOOR_EXCESS = 1.02  # a learned temperature within this factor of its minimum is at it
FEWEST_JUDGED = 256  # pairs on which a reference's rank says that it knows them


@dataclass(frozen=True, kw_only=True)
class ReferenceCheck:
    """Retrieval by a reference on training pairs and held-out pairs.

    Attributes:
        train: mean reciprocal rank of the right partner among the drawn training pairs.
        num_pairs: number of drawn pairs.
        held_out: the same rank among as many held-out pairs; None if it was not measured.
        interval: 95 % interval of train minus held-out.
        common_shards: shards that the reference was trained on and steers on; None if its own
            data are not known.
    """

    train: float
    num_pairs: int
    held_out: float | None = None
    interval: tuple[float, float] | None = None
    common_shards: int | None = None


class Alert(NamedTuple):
    """A finding about a run: what was found against which threshold, and what to do.

    Attributes:
        grade: "warning" where a number of the run may mislead, "note" where it could be better.
    """

    name: str
    text: str
    remedy: str
    grade: Grade = "warning"


def find_alerts(
    run: RunFolder,
    *,
    reference: ReferenceCheck | None = None,
    thresholds: Limits = THRESHOLDS,
) -> list[Alert]:
    """Finds all alerts of a run and of what is known of its reference, the gravest kinds first.

    Thresholds are as in `THRESHOLDS`, some of them changed.
    """
    rows, results, num_negatives = run.rows, run.results, run.recipe.trained_batch_size - 1
    found = [
        _not_finite(rows, results),
        _contaminated(reference, thresholds),
        _unreachable(run.recipe.objective, rows, num_negatives),
        *(_beyond(metric, run) for metric in METRICS),
        _fell(run, thresholds),
        _left_out(results, thresholds),
    ]
    alerts = [alert for alert in found if alert is not None]
    return sorted(alerts, key=lambda alert: alert.grade != "warning")


def logged(rows: Sequence[Row], metric: str) -> list[float]:
    """The values of a metric, in the order of the rows that have it."""
    return [value for row in rows if (value := row.get(metric)) is not None]


def recent(rows: Sequence[Row], metric: str) -> float | None:
    """Mean of a metric over the newest tenth of the rows that have it; None if none does."""
    values = logged(rows, metric)
    newest = values[-max(1, math.ceil(TAIL * len(values))) :]
    return sum(newest) / len(newest) if newest else None


def _beyond(metric: Metric, run: RunFolder) -> Alert | None:
    value, limit = recent(run.rows, metric.name), metric.limit
    if limit is None or value is None:
        return None
    text = limit.found(value, num_negatives=run.recipe.trained_batch_size - 1)
    if text is None:
        return None
    remedy = _remedy(metric.name, run.recipe)
    return None if remedy is None else Alert(limit.alert, text, remedy, "note")


def _remedy(metric: str, recipe: Recipe) -> str | None:
    """What to do in this run; None where its method has no such trouble."""
    objective = recipe.objective
    match metric:
        case "saturated_anchors":
            if not isinstance(objective, FastCLIP | DRRhoCLIP):
                return None  # only these have the floor epsilon, which takes the gradient
            return (
                f"The run may end here; to go on, take objective.epsilon below "
                f"{objective.epsilon:g}, or batches of more than {recipe.trained_batch_size:,}."
            )
        case "effective_sample_size":
            temperature = objective.temperature
            if isinstance(temperature, Constant):
                return f"Raise objective.temperature, which is {temperature.initial:g}."
            return (
                "Set a smaller objective.rho, or a larger temperature.minimum."
                if isinstance(objective, FastCLIP | DRRhoCLIP)
                else "Set a larger temperature.minimum."
            )
        case "time/data_wait":
            return f"Take more loading.workers, of which there are {recipe.loading.workers}."
    return None


def _unreachable(objective: Objective, rows: Sequence[Row], num_negatives: int) -> Alert | None:
    if not isinstance(objective, FastCLIP | DRRhoCLIP) or objective.rho is None:
        return None
    rho, highest = objective.rho, math.log(num_negatives)
    if rho > highest:
        return Alert(
            "rho unreachable",
            f"rho = {rho:g} nats, but weights on {num_negatives:,} negatives are never more "
            f"than log({num_negatives:,}) = {highest:.2f} nats from uniform: no temperature is "
            "stationary, and it falls to its minimum.",
            f"Set rho below {highest:.2f}, or take larger batches.",
        )
    floor = 0.0 if isinstance(objective.temperature, Constant) else objective.temperature.minimum
    tau, divergence = recent(rows, "temperature"), recent(rows, "weights_kl")
    if tau is None or divergence is None or tau > FLOOR_EXCESS * floor or divergence >= rho:
        return None
    return Alert(
        "rho unreachable",
        f"The temperature is at its minimum, {floor:g}, and the weights are "
        f"{divergence:.2f} nats from uniform, less than rho = {rho:g}.",
        "Set a smaller rho, or a smaller temperature.minimum.",
    )


def _contaminated(reference: ReferenceCheck | None, limits: Limits) -> Alert | None:
    if reference is None:
        return None
    found = []
    if reference.common_shards:
        found.append(f"{reference.common_shards} of the shards were also trained on by it")
    on_train = f"its mean reciprocal rank is {reference.train:.3f} on {reference.num_pairs:,} "
    memorised, solved = limits["memorised"], limits["solved"]
    if reference.held_out is not None and reference.interval is not None:
        better, (low, high) = reference.train - reference.held_out, reference.interval
        if better >= memorised and low > 0:
            found.append(
                f"{on_train}training pairs and {reference.held_out:.3f} on as many held-out ones, "
                f"a difference of {better:.3f} ({low:+.3f} to {high:+.3f}; alert from "
                f"{memorised:g} on)"
            )
    elif reference.train >= solved and reference.num_pairs >= FEWEST_JUDGED:
        found.append(
            f"{on_train}training pairs (alert from {solved:g} on): known by heart, or very easy"
        )
    if not found:
        return None
    return Alert(
        "reference contaminated",
        f"The reference may know the training pairs: {'; '.join(found)}.",
        "Take a reference that was trained on other data: on pairs it knows by heart it has no "
        "loss, so that the excess loss is the loss, and nothing is steered.",
    )


def _not_finite(rows: Sequence[Row], results: RunResults | None) -> Alert | None:
    steps = [int(row.get("step") or 0) for row in rows if "loss" in row and row["loss"] is None]
    skipped = 0 if results is None else results.skipped_steps
    if not steps and not skipped:
        return None
    where = f" (logged: step {', '.join(f'{step:,}' for step in steps[:5])})" if steps else ""
    return Alert(
        "steps not finite",
        f"{max(skipped, len(steps)):,} steps had a loss or gradient that was not finite{where}; "
        "alert from 1 on.",
        "Lower the learning rate, clip the gradient, or train in bfloat16 or float32.",
    )


def _left_out(results: RunResults | None, limits: Limits) -> Alert | None:
    total = 0 if results is None else sum(results.skipped.values())
    if results is None or total <= limits["left_out"] * (total + results.samples_seen):
        return None
    reasons = ", ".join(f"{count:,} {reason}" for reason, count in results.skipped.items())
    return Alert(
        "samples left out",
        f"{total / (total + results.samples_seen):.1%} of the samples were left out ({reasons}); "
        f"alert above {limits['left_out']:.0%}.",
        "See `drrho index` and `drrho reference verify` for what is wrong with them.",
        "note",
    )


def _fell(run: RunFolder, limits: Limits) -> Alert | None:
    values = logged(run.rows, "evaluation/mrr")
    if not values or values[-1] >= limits["fell"] * max(values):
        return None
    return Alert(
        "quality fell",
        f"The last evaluation, {values[-1]:.3f}, is below {limits['fell']:.0%} of the best, "
        f"{max(values):.3f}.",
        "Take the model in best/, which the run has kept."
        if run.recipe.training.keep_best == "evaluation/mrr"
        else f"Train for fewer steps than {run.recipe.training.num_steps:,}, or keep the best: "
        'training.keep_best="evaluation/mrr".',
    )
