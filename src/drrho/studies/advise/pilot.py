"""References beside a pilot of plain training: the same measure on the same held-out pairs."""

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float64
from torch import Tensor

from drrho.data.manifest import Manifest
from drrho.evaluation.evaluate import evaluate_model
from drrho.evaluation.metrics.interval import Interval
from drrho.evaluation.sets import EvaluationSet
from drrho.models.build import build_model
from drrho.recipe.recipe import Recipe
from drrho.reference.judgement import judge_reference
from drrho.reference.reader import open_reference
from drrho.runtime.launch import resolve_device
from drrho.studies.advise.arms import Arm
from drrho.studies.advise.config import AdviseConfig
from drrho.studies.advise.halving import paired_interval
from drrho.studies.advise.lead import DECIDED_BY_LEAD, Lead, expected_lead
from drrho.studies.advise.references import Candidate, has_seen


def decided_by_lead(arms: Sequence[Arm], config: AdviseConfig) -> bool:
    """Whether the lead of a reference decides, and no race is run.

    Raises:
        ValueError: the lead was asked for, and no arm that it could recommend can be trained.
    """
    uses = {arm.use for arm in arms if arm.recipe is not None}
    possible = bool(uses & DECIDED_BY_LEAD)
    if config.decide_by == "lead" and not possible:
        raise ValueError(
            "decide_by = 'lead' chooses how much to steer or distil, and none of these uses can be "
            "trained; race the others with decide_by = 'race', or name more --uses"
        )
    if config.decide_by != "auto":
        return config.decide_by == "lead"
    return possible and not uses & {"start", "union"}


def lead_of(
    candidate: Candidate,
    recipe: Recipe,
    train: Manifest,
    held_out: EvaluationSet,
    *,
    plain: Float64[Tensor, " queries"],
    share: float,
) -> Lead:
    """Measure how far a reference is ahead of where plain training is expected to end.

    A model is scored on the held-out pairs as the pilot was. Of stored embeddings there are only
    those of the training pairs, of which as many are drawn, so that the task is as hard.

    Args:
        plain: reciprocal ranks of the pilot.
        share: steps of the pilot as a share of the whole run.

    Raises:
        ValueError: the stored embeddings are of fewer than two pairs.
    """
    if candidate.model is None:
        mrr, guessing = _of_stored(candidate, train, pairs=len(plain))
    else:
        mrr, guessing = _of_model(candidate, recipe, held_out)
    own = float(plain.mean())
    return Lead(
        reference=mrr,
        held_out=candidate.model is not None,
        guessing=guessing,
        plain=own,
        share=share,
        lead=expected_lead(reference=mrr.mean, plain=own, share=share),
        seen=candidate.model is not None and has_seen(candidate.model, held_out.manifest),
    )


def _of_model(
    candidate: Candidate, recipe: Recipe, held_out: EvaluationSet
) -> tuple[Interval, float]:
    assert candidate.model is not None
    device = resolve_device(recipe.device)
    model = build_model(candidate.model, seed=0)
    model.module.to(device).eval()
    with torch.no_grad():
        found = evaluate_model(
            model, held_out, device=device, batch_size=recipe.evaluation.batch_size
        )
    return paired_interval(found.reciprocal_ranks.double()), found.chance["mrr"]


def _of_stored(candidate: Candidate, train: Manifest, *, pairs: int) -> tuple[Interval, float]:
    found = judge_reference(open_reference(candidate.folder, train), train, sample=pairs)
    if found is None:
        raise ValueError(f"{candidate.given} has embeddings of fewer than two training pairs")
    mrr = found.mrr
    return Interval(mean=mrr.value, low=mrr.low, high=mrr.high), mrr.guessing


def why_doubtful(leads: Mapping[str, Lead], *, plain_low: float, guessing: float) -> list[str]:
    """Say what makes a recommendation by the lead doubtful."""
    found = [
        f"{name} was judged on training pairs, since only their embeddings are given: if it was "
        "trained on them, its lead is too large; name the model to judge it on the held-out pairs"
        for name, lead in leads.items()
        if not lead.held_out
    ]
    found += [
        f"{name} was trained on shards of the held-out pairs, so that its lead is too large; give "
        "the recipe an evaluation.data that it has not seen"
        for name, lead in leads.items()
        if lead.seen
    ]
    if plain_low <= guessing:
        found.append(
            f"plain training could not be told from guessing ({guessing:.3f}) at the end of its "
            "pilot, so that the lead says little: raise --budget"
        )
    return found
