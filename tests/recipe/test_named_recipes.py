"""Every published recipe trains, at the size of a test."""

from dataclasses import replace

import pytest
from tests.small_runs import TINY

from drrho.contrastive.objectives.algorithms import ALGORITHMS
from drrho.recipe.arguments.command import recipe_of
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


@pytest.mark.parametrize(
    ("name", "read"),
    {
        "drrho_clip": ("reference",),
        "jest": ("reference",),
        "distillation": ("teachers",),
        "drrho_clip_distillation": ("reference", "teachers"),
        "openclip_filtered": ("filtering",),
    }.items(),
)
@pytest.mark.parametrize("given", [["--reference", "mine"], ["--reference=mine"]])
def test_a_reference_that_is_given_is_the_one_that_is_read(name, read, given):
    recipe = recipe_of(name, [*given, "--data", "d.json"])
    filtering = None if recipe.filtering is None else recipe.filtering.reference
    found = {"reference": recipe.reference, "teachers": recipe.teachers, "filtering": filtering}
    mine = {"reference": "mine", "teachers": ("mine",), "filtering": "mine"}
    nothing = {"reference": None, "teachers": (), "filtering": None}
    assert found == nothing | {part: mine[part] for part in read}
    assert recipe.data == "d.json"


def test_other_teachers_than_the_reference_can_be_named(capsys):
    options = ["--reference", "mine", "--teachers", "other"]
    recipe = recipe_of("drrho_clip_distillation", options)
    assert (recipe.reference, recipe.teachers) == ("mine", ("other",))
    with pytest.raises(SystemExit):
        recipe_of("openclip", ["--reference", "mine"])
    assert "reference = 'mine' has no effect on" in capsys.readouterr().err
