"""Alerts: numbers of a run that are beyond a threshold."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from drrho.contrastive.memory.temperature import Constant
from drrho.contrastive.objectives.global_risk import DRRhoCLIP, FastCLIP
from drrho.contrastive.objectives.objective import Objective
from drrho.recipe.document import RunResults
from drrho.recipe.recipe import Recipe
from drrho.studies.compare.curves import Row
from drrho.training.metrics import METRICS


@dataclass(frozen=True, kw_only=True)
class Thresholds:
    """Alert thresholds beside those that the metrics of the log declare (`Limit`).

    Attributes:
        tail: share of the log's rows, the newest, that an alert's mean is taken of.
        floor_excess: a learned temperature within this factor of its minimum is at it.
        memorised: how much better than on held-out pairs, in mean reciprocal rank, the reference
            may be on the training pairs.
        solved: mean reciprocal rank of the reference on training pairs that leaves nothing to
            steer by.
        left_out: share of samples that were skipped.
        fell: an evaluation below this share of the best one of the run.
    """

    tail: float = 0.1
    floor_excess: float = 1.02
    memorised: float = 0.05
    solved: float = 0.98
    left_out: float = 0.01
    fell: float = 0.9


@dataclass(frozen=True, kw_only=True)
class ReferenceCheck:
    """Retrieval by a reference on training pairs and held-out pairs.

    Attributes:
        train: mean reciprocal rank of the right partner among sampled training pairs.
        held_out: the same among as many held-out pairs; None if it was not looked at.
        interval: 95 % of train minus held-out.
        common_shards: shards that the reference was trained on and steers on; None if its own
            data are not known.
        num_pairs: sampled.
    """

    train: float
    num_pairs: int
    held_out: float | None = None
    interval: tuple[float, float] | None = None
    common_shards: int | None = None


@dataclass(frozen=True, kw_only=True)
class Alert:
    """One finding.

    Attributes:
        name: of the kind of alert.
        run: that it is about.
        text: what was found, against which threshold.
        remedy: what to do.
    """

    name: str
    run: str
    text: str
    remedy: str


def find_alerts(
    run: str,
    recipe: Recipe,
    rows: Sequence[Row],
    results: RunResults | None,
    *,
    reference: ReferenceCheck | None = None,
    thresholds: Thresholds | None = None,
) -> list[Alert]:
    """All alerts of a run, the gravest kinds first.

    Args:
        run: its name.
        recipe: what was trained.
        rows: of its metrics log.
        results: what its `results.json` says; None while it is not finished.
        reference: what is known of its reference.
        thresholds: None means the defaults.
    """
    limits = Thresholds() if thresholds is None else thresholds
    num_negatives = recipe.trained_batch_size - 1
    return [
        *_not_finite(run, rows, results),
        *_contaminated(run, reference, limits),
        *_unreachable(run, recipe.objective, rows, num_negatives, limits),
        *_beyond_limits(run, rows, num_negatives, limits),
        *_fell(run, rows, limits),
        *_left_out(run, results, limits),
    ]


def recent(rows: Sequence[Row], metric: str, *, tail: float) -> float | None:
    """Mean of a metric over the newest rows that have it; None if none does."""
    values = [value for row in rows if (value := row.get(metric)) is not None]
    newest = values[-max(1, math.ceil(tail * len(values))) :]
    return sum(newest) / len(newest) if newest else None


def _beyond_limits(run: str, rows: Sequence[Row], num_negatives: int, limits: Thresholds):
    for metric in METRICS:
        value = recent(rows, metric.name, tail=limits.tail)
        if metric.limit is None or value is None:
            continue
        text = metric.limit.found(value, num_negatives=num_negatives)
        if text is not None:
            yield Alert(name=metric.limit.alert, run=run, text=text, remedy=metric.limit.remedy)


def _unreachable(
    run: str,
    objective: Objective,
    rows: Sequence[Row],
    num_negatives: int,
    limits: Thresholds,
):
    if not isinstance(objective, FastCLIP | DRRhoCLIP) or objective.rho is None:
        return
    rho = objective.rho
    highest = math.log(num_negatives)
    if rho > highest:
        yield Alert(
            name="rho unreachable",
            run=run,
            text=f"rho = {rho:g} nats, but weights on {num_negatives:,} negatives are never more "
            f"than log({num_negatives:,}) = {highest:.2f} nats from uniform: no temperature is "
            "stationary, and it falls to its minimum.",
            remedy=f"Set rho below {highest:.2f}, or take larger batches.",
        )
        return
    floor = 0.0 if isinstance(objective.temperature, Constant) else objective.temperature.minimum
    tau = recent(rows, "temperature", tail=limits.tail)
    divergence = recent(rows, "weights_kl", tail=limits.tail)
    if tau is None or divergence is None:
        return
    if tau <= limits.floor_excess * floor and divergence < rho:
        yield Alert(
            name="rho unreachable",
            run=run,
            text=f"The temperature is at its minimum, {floor:g}, and the weights are "
            f"{divergence:.2f} nats from uniform, less than rho = {rho:g}.",
            remedy="Set a smaller rho, or a smaller temperature.minimum.",
        )


def _contaminated(run: str, reference: ReferenceCheck | None, limits: Thresholds):
    if reference is None:
        return
    remedy = "Take a reference that was trained on other data: on pairs it knows by heart it has "
    remedy += "no loss, so that the excess loss is the loss, and nothing is steered."
    found = []
    if reference.common_shards:
        found.append(f"{reference.common_shards} of the shards were also trained on by it")
    if reference.held_out is not None and reference.interval is not None:
        better = reference.train - reference.held_out
        if better >= limits.memorised and reference.interval[0] > 0:
            low, high = reference.interval
            found.append(
                f"its mean reciprocal rank is {reference.train:.3f} on {reference.num_pairs:,} "
                f"training pairs and {reference.held_out:.3f} on as many held-out ones, a "
                f"difference of {better:.3f} ({low:+.3f} to {high:+.3f}; alert from "
                f"{limits.memorised:g} on)"
            )
    elif reference.train >= limits.solved and reference.num_pairs >= 256:
        found.append(
            f"its mean reciprocal rank is {reference.train:.3f} on {reference.num_pairs:,} "
            f"training pairs (alert from {limits.solved:g} on): known by heart, or very easy"
        )
    if found:
        text = f"The reference may know the training pairs: {'; '.join(found)}."
        yield Alert(name="reference contaminated", run=run, text=text, remedy=remedy)


def _not_finite(run: str, rows: Sequence[Row], results: RunResults | None):
    steps = [int(row.get("step") or 0) for row in rows if "loss" in row and row["loss"] is None]
    skipped = 0 if results is None else results.skipped_steps
    if steps or skipped:
        where = f" (logged: step {', '.join(f'{step:,}' for step in steps[:5])})" if steps else ""
        yield Alert(
            name="steps not finite",
            run=run,
            text=f"{max(skipped, len(steps)):,} steps had a loss or gradient that was not finite"
            f"{where}; alert from 1 on.",
            remedy="Lower the learning rate, clip the gradient, or train in bfloat16 or float32.",
        )


def _left_out(run: str, results: RunResults | None, limits: Thresholds):
    if results is None:
        return
    total = sum(results.skipped.values())
    share = total / max(1, total + results.samples_seen)
    if share > limits.left_out:
        reasons = ", ".join(f"{count:,} {reason}" for reason, count in results.skipped.items())
        yield Alert(
            name="samples left out",
            run=run,
            text=f"{share:.1%} of the samples were left out ({reasons}); alert above "
            f"{limits.left_out:.0%}.",
            remedy="See `drrho index` and `drrho reference verify` for what is wrong with them.",
        )


def _fell(run: str, rows: Sequence[Row], limits: Thresholds):
    values = [value for row in rows if (value := row.get("evaluation/mrr")) is not None]
    if values and values[-1] < limits.fell * max(values):
        yield Alert(
            name="quality fell",
            run=run,
            text=f"The last evaluation, {values[-1]:.3f}, is below {limits.fell:.0%} of the best, "
            f"{max(values):.3f}.",
            remedy='Train for fewer steps, or keep the best: training.keep_best="evaluation/mrr".',
        )
