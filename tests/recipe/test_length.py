"""The length of a run: in steps, in epochs, and a warning where steps are of other data."""

from dataclasses import replace

import pytest

from drrho.contrastive.objectives.clip import CLIP
from drrho.data.indexing import open_manifest
from drrho.models.build import Model
from drrho.recipe.arguments.override import overridden
from drrho.recipe.folder import read_run
from drrho.recipe.recipe import Recipe
from drrho.recipe.train import train_recipe, with_steps
from drrho.studies.compare.runs import finished
from drrho.training.config import Training


def lasting(recipe, **length):
    """The recipe with another length."""
    training = replace(recipe.training, **{"steps": None, "epochs": None} | length)
    return replace(recipe, training=training)


def test_epochs_are_passes_over_the_data(plain_recipe, tmp_path):
    in_epochs = replace(lasting(plain_recipe, epochs=1.2), output=str(tmp_path / "epochs"))
    in_steps = replace(plain_recipe, output=str(tmp_path / "steps"))  # 6; 5 batches are a pass
    train_recipe(in_epochs)
    train_recipe(in_steps)
    weights = [
        (tmp_path / name / "model" / "open_clip_model.safetensors").read_bytes()
        for name in ("epochs", "steps")
    ]
    assert weights[0] == weights[1]
    recorded = read_run(tmp_path / "epochs").recipe.training
    assert (recorded.steps, recorded.epochs) == (6, 1.2)
    assert finished(in_epochs) is not None
    assert finished(lasting(in_epochs, epochs=2.4)) is None
    train_recipe(replace(in_steps, output=str(tmp_path / "epochs")))  # finished: the same run


def test_a_recipe_needs_no_more_than_what_differs(scenes, tmp_path):
    manifest = open_manifest(str(scenes / "train" / "manifest.json"))
    recipe = Recipe(
        output=str(tmp_path), data=str(scenes / "train"), model=Model("small"), objective=CLIP()
    )
    small = replace(recipe, loading=replace(recipe.loading, batch_size=8))
    assert with_steps(small, manifest).training.steps == 50


def test_a_length_is_given_once(plain_recipe, scenes):
    manifest = open_manifest(plain_recipe.data)
    with pytest.raises(ValueError, match="steps or epochs"):
        Training()
    with pytest.raises(ValueError, match="epochs must be positive"):
        Training(epochs=0)
    with pytest.raises(ValueError, match="epochs = 2 differ"):
        with_steps(lasting(plain_recipe, steps=6, epochs=2), manifest)
    agreeing = lasting(plain_recipe, steps=10, epochs=2)
    assert with_steps(agreeing, manifest) == agreeing


def test_the_last_given_on_the_command_line_counts(plain_recipe):
    def changed(recipe, *arguments):
        found = overridden(recipe, arguments, source="recipe.py", description="")
        return found.training.steps, found.training.epochs

    assert changed(plain_recipe, "--training.epochs", "3") == (None, 3)
    assert changed(lasting(plain_recipe, epochs=3), "--training.steps", "9") == (9, None)


def test_more_than_a_hundred_passes_are_warned_of_once(plain_recipe, monkeypatch):
    manifest = open_manifest(plain_recipe.data)
    with_steps(lasting(plain_recipe, steps=500), manifest)
    with pytest.warns(UserWarning, match=r"501 are 100 passes over the data, 5 batches each"):
        with_steps(lasting(plain_recipe, steps=501), manifest)
    launched = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "MASTER_ADDR": "host"}
    for name, value in (launched | {"MASTER_PORT": "29500"}).items():
        monkeypatch.setenv(name, value)
    with_steps(lasting(plain_recipe, steps=501), manifest)  # the first process says it
