"""Every published recipe trains, at the size of a test."""

from dataclasses import replace

import pytest
from tests.small_runs import TINY

from drrho.contrastive.objectives.algorithms import ALGORITHMS
from drrho.recipe.named.published import Scale, named_recipe
from drrho.recipe.train import train_recipe
from drrho.training.config import Training
from drrho.training.optimizer import Optimizer


@pytest.mark.parametrize("name", ALGORITHMS)
def test_every_recipe_trains_in_small(name, plain_recipe, reference, tmp_path):
    scale = Scale(batch_size=4, samples_seen=4)
    recipe = named_recipe(name, scale)
    filtering = recipe.filtering
    if filtering is not None:
        filtering = replace(filtering, reference=str(reference))
    objective = recipe.objective
    if getattr(objective, "rho", None) is not None:
        objective = replace(objective, rho=0.5)  # which four pairs can reach
    small = replace(
        recipe,
        output=str(tmp_path / "run"),
        data=plain_recipe.data,
        model=TINY,
        objective=objective,
        loading=replace(recipe.loading, workers=0),
        training=Training(
            steps=1,
            optimizer=Optimizer(
                learning_rate=1e-3,
                temperature_lr_scale=recipe.training.optimizer.temperature_lr_scale,
            ),
        ),
        reference=None if recipe.reference is None else str(reference),
        teachers=(str(reference),) * len(recipe.teachers),
        filtering=filtering,
        device="cpu",
    )
    assert train_recipe(small).samples_seen == 4
