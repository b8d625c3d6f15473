"""A run in a few sentences, from its numbers alone."""

from collections.abc import Sequence
from typing import Any

from drrho.contrastive.objectives.algorithms import method_title
from drrho.recipe.folder import RunFolder
from drrho.studies.compare.curves import Row
from drrho.studies.report.alerts import logged, recent


def summarise_run(name: str, run: RunFolder) -> dict[str, Any]:
    """The name, a headline number and what happened in a run, sentence by sentence."""
    recipe, rows = run.recipe, run.rows
    method = method_title(recipe.objective.method)
    if not rows:
        sentences = [f"{method}: nothing is logged yet."]
        return {"name": name, "headline": None, "sentences": sentences}
    step, samples = int(rows[-1]["step"] or 0), int(rows[-1].get("samples") or 0)
    done = "finished" if run.results is not None else f"stopped or still running at {step:,} of"
    sentences = [f"{method}, {done} {recipe.training.num_steps:,} steps, {samples:,} samples seen."]
    quality = logged(rows, "evaluation/mrr")
    if quality:
        best = "its best" if quality[-1] == max(quality) else f"the best was {max(quality):.3f}"
        course = f"went from {quality[0]:.3f} to {quality[-1]:.3f}, {best}."
        once = f"is {quality[0]:.3f}; it was evaluated once."
        sentences.append(
            "On the evaluation set its mean reciprocal rank "
            f"{once if len(quality) == 1 else course}"
        )
    sentences += _steering(rows, num_negatives=recipe.trained_batch_size - 1)
    return {"name": name, "headline": quality[-1] if quality else None, "sentences": sentences}


def _steering(rows: Sequence[Row], *, num_negatives: int) -> list[str]:
    found = []
    excess = recent(rows, "excess_loss_variance")
    plain = recent(rows, "loss_variance")
    if excess is not None and plain is not None:
        first = logged(rows, "excess_loss_variance")[0]
        size = "smaller" if excess < plain else "larger"
        start, end = f"{first:.3g}", f"{excess:.3g}"
        course = "fell" if excess < first else "rose"
        course = f"stayed at {end}" if start == end else f"{course} from {start} to {end}"
        found.append(
            f"The variance of the excess loss {course}; it ended {size} than the variance of the "
            f"loss, {plain:.3g}."
        )
    share = recent(rows, "effective_sample_size")
    if share is not None:
        found.append(
            f"At the end {share * num_negatives:.1f} of an anchor's {num_negatives:,} negatives "
            "count, on average."
        )
    saturated = recent(rows, "saturated_anchors")
    if saturated is not None and saturated > 0:
        found.append(f"{saturated:.0%} of the anchors are saturated.")
    return found
