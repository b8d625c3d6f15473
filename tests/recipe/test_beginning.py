"""A run that is stopped at a step of its schedule and continued is one that was never stopped."""

from dataclasses import replace

import pytest
from tests.recipe.test_training import files_of

from drrho.recipe.train import train_beginning, train_recipe
from drrho.training.checkpoint import list_checkpoints


def test_a_run_stopped_twice_equals_a_whole_one(steered_recipe, tmp_path):
    train_recipe(replace(steered_recipe, output=str(tmp_path / "whole")))
    recipe = replace(steered_recipe, output=str(tmp_path / "stopped"))
    for until in (1, 3):  # the recipe's own checkpoints are of even steps
        train_beginning(recipe, until=until)
        newest = list_checkpoints(tmp_path / "stopped" / "checkpoints")[-1]
        assert newest.name == f"step-{until:08d}"
        assert not (tmp_path / "stopped" / "results.json").exists()
    before = newest.stat().st_mtime_ns
    train_beginning(recipe, until=2)
    assert newest.stat().st_mtime_ns == before, "a run that is as far stays as it is"
    results = train_recipe(recipe)
    assert files_of(tmp_path / "stopped") == files_of(tmp_path / "whole")
    assert results.samples_seen == 48


def test_a_beginning_ends_within_the_run(steered_recipe, tmp_path):
    recipe = replace(steered_recipe, output=str(tmp_path / "run"))
    with pytest.raises(ValueError, match="between the run's step 0 and its last, 6, got 7"):
        train_beginning(recipe, until=7)
    train_beginning(recipe, until=6)
    assert (tmp_path / "run" / "results.json").exists(), "the whole run"
