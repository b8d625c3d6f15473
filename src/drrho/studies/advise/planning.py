"""What a race would do and cost, said beforehand."""

from collections.abc import Sequence

from drrho.data.manifest import Manifest
from drrho.encoding.costs import Rates, measure
from drrho.encoding.encoder import EmbeddingModel
from drrho.models.build import build_model
from drrho.recipe.recipe import Recipe
from drrho.runtime.launch import resolve_device
from drrho.studies.advise.arms import Arm, with_head_start
from drrho.studies.advise.halving import Budget, field_of
from drrho.studies.advise.lead import DECIDED_BY_LEAD
from drrho.studies.advise.references import Candidate


def describe_plan(
    recipe: Recipe,
    train: Manifest,
    candidates: Sequence[Candidate],
    arms: Sequence[Arm],
    budget: Budget,
    *,
    pilot: int | None,
) -> str:
    """Describe references, arms, rungs and costs, measured on a few pairs.

    Args:
        pilot: steps of plain training by which the lead of a reference is found; None is a race.

    Raises:
        ValueError: there is nothing to race, or too small a budget.
    """
    raced = [arm for arm in arms if arm.recipe is not None]
    stops = [(pilot, 1)] if pilot is not None else _stops(budget, raced)
    lines = [f"{len(train.usable_ids()):,} training pairs; a whole run has {budget.length:,} steps"]
    target = None
    for candidate in candidates:
        rates = _rates(candidate, recipe, train)
        target = rates
        cost = "its stored embeddings are read"
        if candidate.model is not None:
            seconds = rates.reference * len(train.usable_ids())
            cost = f"about {seconds:,.0f} s to encode the training pairs, once"
        lines.append(f"reference {candidate.name}: {candidate.given}; {cost}")
    if pilot is None:
        lines.append(f"{len(raced)} arms are raced:")
        lines += [f"  {arm.name}: {arm.title}" for arm in raced]
        lines += [f"not raced: {arm.title}: {arm.reason}" for arm in arms if arm.reason is not None]
        lines.append(
            f"{budget.steps:,} steps in all, {budget.steps / budget.length:.0%} of a whole run, "
            "compared at " + ", ".join(f"step {step:,} ({count} arms)" for step, count in stops)
        )
    else:
        lines.append(
            f"plain training is begun, {pilot:,} steps, {pilot / budget.length:.0%} of a whole "
            "run, and the lead of a reference over it chooses between plain training and:"
        )
        lines += [f"  {arm.name}: {arm.title}" for arm in raced if arm.use in DECIDED_BY_LEAD]
        lines += [f"not possible: {it.title}: {it.reason}" for it in arms if it.reason is not None]
    if (warm_up := recipe.training.optimizer.warmup_steps) >= stops[0][0]:
        lines.append(
            f"WARNING: the first comparison, at step {stops[0][0]:,}, is within the warm-up of "
            f"{warm_up:,} steps; raise --budget or race fewer --uses"
        )
    assert target is not None  # there is a reference at least
    seconds = (budget.steps if pilot is None else pilot) * recipe.loading.batch_size * target.step
    lines.append(f"about {seconds:,.0f} s of training, and the scoring of held-out pairs")
    return "\n".join(lines)


def _stops(budget: Budget, raced: Sequence[Arm]) -> list[tuple[int, int]]:
    return budget.stops(field_of([arm.name for arm in raced], with_head_start(raced)))


def _rates(candidate: Candidate, recipe: Recipe, train: Manifest) -> Rates:
    device = resolve_device(recipe.device)
    target = build_model(recipe.model, seed=recipe.seed, target=True)
    named = target if candidate.model is None else build_model(candidate.model, seed=0)
    reference = EmbeddingModel.frozen(named, device=device)
    target.module.requires_grad_(True)
    return measure(reference, target, train, precision=recipe.training.precision)
