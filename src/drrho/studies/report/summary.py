"""A run in a few sentences, from its numbers alone."""

from collections.abc import Sequence
from typing import Any

from drrho.contrastive.objectives.algorithms import method_title
from drrho.recipe.document import RunResults
from drrho.recipe.recipe import Recipe
from drrho.studies.compare.curves import Row
from drrho.studies.report.alerts import recent

TAIL = 0.1


def summarise_run(
    name: str,
    recipe: Recipe,
    rows: Sequence[Row],
    results: RunResults | None,
) -> dict[str, Any]:
    """The run's name, a headline number and what happened, sentence by sentence.

    Args:
        name: of the run.
        recipe: what was trained.
        rows: of its metrics log.
        results: what its `results.json` says; None while it is not finished.
    """
    method = method_title(recipe.objective.method)
    sentences = []
    if not rows:
        sentences.append(f"{method}: nothing is logged yet.")
        return {"name": name, "headline": None, "sentences": sentences}
    step, samples = int(rows[-1]["step"] or 0), int(rows[-1].get("samples") or 0)
    steps = recipe.training.num_steps
    done = "finished" if results is not None else f"stopped or still running at {step:,}"
    sentences.append(f"{method}, {done} of {steps:,} steps, {samples:,} samples seen.")
    sentences[0] = sentences[0].replace(f"finished of {steps:,} steps", f"finished {steps:,} steps")
    quality = [value for row in rows if (value := row.get("evaluation/mrr")) is not None]
    if len(quality) == 1:
        sentences.append(
            f"On the evaluation set its mean reciprocal rank is {quality[0]:.3f}; it was evaluated "
            "once."
        )
    elif quality:
        best = "its best" if quality[-1] == max(quality) else f"the best was {max(quality):.3f}"
        sentences.append(
            f"On the evaluation set its mean reciprocal rank went from {quality[0]:.3f} to "
            f"{quality[-1]:.3f}, {best}."
        )
    sentences += _steering(rows, num_negatives=recipe.trained_batch_size - 1)
    return {"name": name, "headline": quality[-1] if quality else None, "sentences": sentences}


def _steering(rows: Sequence[Row], *, num_negatives: int) -> list[str]:
    found = []
    excess = recent(rows, "excess_loss_variance", tail=TAIL)
    plain = recent(rows, "loss_variance", tail=TAIL)
    first = next((v for r in rows if (v := r.get("excess_loss_variance")) is not None), None)
    if excess is not None and plain is not None and first is not None:
        size = "smaller" if excess < plain else "larger"
        start, end = f"{first:.3g}", f"{excess:.3g}"
        course = "fell" if excess < first else "rose"
        course = f"stayed at {end}" if start == end else f"{course} from {start} to {end}"
        found.append(
            f"The variance of the excess loss {course}; it ended {size} than that of the loss, "
            f"{plain:.3g}."
        )
    share = recent(rows, "effective_sample_size", tail=TAIL)
    if share is not None:
        found.append(
            f"At the end {share * num_negatives:.1f} of an anchor's {num_negatives:,} negatives "
            "count, on average."
        )
    saturated = recent(rows, "saturated_anchors", tail=TAIL)
    if saturated is not None and saturated > 0:
        found.append(f"{saturated:.0%} of the anchors are saturated.")
    return found
