"""The published runs: their numbers, and what follows from another scale."""

import pytest

from drrho.contrastive.objectives.algorithms import ALGORITHMS
from drrho.recipe.published import Scale, named_recipe
from drrho.recipe.train import gamma_schedule


def test_every_recipe_is_listed_and_builds():
    for name in ALGORITHMS:
        recipe = named_recipe(name)
        assert recipe.trained_batch_size == 5120
        assert recipe.training.steps == 262_719
        assert recipe.training.optimizer.learning_rate == 3.125e-4


def test_the_published_run():
    recipe = named_recipe("drrho_clip")
    assert recipe.objective.temperature.initial == 0.01
    assert recipe.objective.epsilon == 1e-4
    # The published gamma is 1, which is what the rule gives for its 7 epochs.
    gamma = gamma_schedule(recipe, epochs=7)
    assert gamma(0) == gamma(recipe.training.steps) == 1
    assert gamma_schedule(recipe, epochs=30)(recipe.training.steps) < 0.5
    fastclip = named_recipe("fastclip_v3").training.optimizer
    assert fastclip.temperature_lr_scale * fastclip.learning_rate == pytest.approx(7.8125e-5)


def test_what_follows_from_the_scale():
    scale = Scale(batch_size=100, samples_seen=20_050)
    recipe = named_recipe("jest", scale)
    assert recipe.training.steps == 200
    assert recipe.training.optimizer.warmup_steps == 10
    assert (recipe.loading.batch_size, recipe.trained_batch_size) == (500, 100)
    with pytest.raises(ValueError, match="less than one batch"):
        Scale(batch_size=100, samples_seen=99)
    with pytest.raises(ValueError, match="at least 2"):
        Scale(batch_size=1)
