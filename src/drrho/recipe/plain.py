"""A recipe as it is without any use of a reference: the baseline of probes and races."""

from dataclasses import replace

from drrho.contrastive.objectives.clip import CLIP
from drrho.contrastive.objectives.distillation import Distillation
from drrho.contrastive.objectives.global_risk import DRRhoCLIP, FastCLIP
from drrho.recipe.arguments.override import changed_kind
from drrho.recipe.recipe import Recipe


def without_reference(recipe: Recipe) -> Recipe:
    """Return the recipe without reference, teachers, selection and filter.

    FastCLIP replaces DRRho-CLIP, and CLIP replaces distillation alone. Batches have as
    many pairs as the recipe trains on, without those that it loads to select from.
    """
    objective = recipe.objective
    if isinstance(objective, DRRhoCLIP):
        objective = changed_kind(objective, FastCLIP)
    elif isinstance(objective, Distillation):
        objective = CLIP(temperature=objective.temperature)
    return replace(
        recipe,
        objective=replace(objective, distillation=None),
        loading=replace(recipe.loading, batch_size=recipe.trained_batch_size),
        reference=None,
        reference_weights=None,
        missing_reference="leave_out",
        teachers=(),
        selection=None,
        filtering=None,
    )
