"""A finished run continues to more steps when asked, and says under which schedules."""

import json
import pickle
import shutil
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from tests.recipe.test_training import files_of

from drrho.cli import main
from drrho.contrastive.memory.temperature import Learned
from drrho.contrastive.objectives.clip import CLIP
from drrho.contrastive.objectives.global_risk import DRRhoCLIP
from drrho.models.build import Model, build_model
from drrho.recipe.document import read_run_results
from drrho.recipe.train import train_recipe
from drrho.runtime.errors import CheckpointError
from drrho.training.checkpoint import list_checkpoints
from drrho.training.log import read_metrics
from drrho.training.optimizer import ConstantRate, Cooldown

NOTE = "were trained under the schedule of a run of 6 steps"


def of_steps(recipe, steps, **changes):
    changes = {"log_every": 3, "evaluate_every": 3, "checkpoint_every": 3} | changes
    return replace(recipe, training=replace(recipe.training, steps=steps, **changes))


@pytest.fixture
def recipe(steered_recipe, tmp_path):
    """A run whose rates and gamma do not depend on its length."""
    optimizer = replace(steered_recipe.training.optimizer, schedule=ConstantRate())
    return replace(
        of_steps(steered_recipe, 6, optimizer=optimizer),
        objective=DRRhoCLIP(gamma_min=0.5, gamma_schedule="constant"),
        output=str(tmp_path / "run"),
    )


def extended(recipe, steps=12, **changes):
    return replace(of_steps(recipe, steps, **changes), resume="extend")


def test_an_extended_run_is_the_longer_run_where_the_schedules_are_the_same(recipe, tmp_path):
    train_recipe(of_steps(replace(recipe, output=str(tmp_path / "whole")), 12))
    first = train_recipe(recipe)
    with pytest.warns(UserWarning, match=NOTE):
        results = train_recipe(extended(recipe))
    assert files_of(tmp_path / "run") == files_of(tmp_path / "whole")
    assert [part.steps for part in results.parts] == [6]
    assert results == read_run_results(tmp_path / "run")
    assert first == read_run_results(tmp_path / "run", name="results-step-00000006.json")
    assert train_recipe(extended(recipe)) == results, "finished"
    with pytest.warns(UserWarning, match="of a run of 12 steps"):
        again = train_recipe(extended(recipe, 15))
    assert [part.steps for part in again.parts] == [6, 12]


def test_an_interrupted_extension_goes_on(recipe, tmp_path):
    train_recipe(recipe)
    shutil.copytree(tmp_path / "run", tmp_path / "copy")
    for name in ("run", "copy"):
        with pytest.warns(UserWarning, match=NOTE):
            train_recipe(extended(replace(recipe, output=str(tmp_path / name))))
    run = tmp_path / "run"
    (run / "results.json").unlink()
    shutil.rmtree(run / "checkpoints" / "step-00000012")
    other = replace(recipe.training.optimizer, learning_rate=1e-4)
    with pytest.raises(CheckpointError, match="learning_rate: 0.001 before, 0.0001 now"):
        train_recipe(extended(recipe, optimizer=other))
    assert [part.steps for part in train_recipe(extended(recipe)).parts] == [6]
    assert files_of(run) == files_of(tmp_path / "copy")


def test_killed_before_its_first_step_it_may_be_extended_or_finished_again(recipe, tmp_path):
    first = train_recipe(recipe)
    run = tmp_path / "run"
    (run / "results.json").rename(run / "results-step-00000006.json")
    again = train_recipe(recipe)
    assert (again.parts, again.metrics["loss"]) == ((), first.metrics["loss"])
    with pytest.warns(UserWarning, match=NOTE):
        assert len(train_recipe(extended(recipe)).parts) == 1


def test_an_extension_may_have_its_own_rate_and_schedule(recipe, tmp_path):
    train_recipe(recipe)
    optimizer = replace(recipe.training.optimizer, learning_rate=1e-4, schedule=Cooldown(steps=4))
    with pytest.warns(UserWarning, match=r"ended at 0.001; steps 7 to 12 .*, whose rate is 0.0001"):
        results = train_recipe(extended(recipe, optimizer=optimizer))
    rates = [row["learning_rate"] for row in read_metrics(tmp_path / "run")]
    assert rates == pytest.approx([1e-3, 1e-3, 1e-4, 2.5e-5])
    assert results.parts[0].optimizer == recipe.training.optimizer
    assert results.recipe.training.optimizer == optimizer


def test_the_last_evaluation_of_the_first_part_stays_in_the_log(plain_recipe, tmp_path):
    recipe = of_steps(plain_recipe, 5, evaluate_every=None)
    recipe = replace(recipe, output=str(tmp_path), objective=CLIP(temperature=Learned()))
    first = train_recipe(recipe)
    with pytest.warns(UserWarning, match="steps 6 to 8 follow"):
        train_recipe(extended(recipe, 8, evaluate_every=None))
    rows = {row["step"]: row for row in read_metrics(tmp_path)}
    assert rows[5]["evaluation/mrr"] == first.metrics["evaluation/mrr"]
    assert {step for step, row in rows.items() if "evaluation/mrr" in row} == {5, 8}


def test_what_is_no_extension_is_an_error(recipe, tmp_path):
    with pytest.raises(ValueError, match="holds no run to continue, and resume = 'extend'"):
        train_recipe(extended(recipe))
    train_recipe(recipe)
    with pytest.raises(ValueError, match="to train for more steps, extend it: --extend"):
        train_recipe(of_steps(recipe, 12))
    with pytest.raises(ValueError, match="by another recipe than its own(.|\n)*seed: 0 before"):
        train_recipe(replace(extended(recipe), seed=1))
    with pytest.raises(ValueError, match="training.steps: 6 before, 3 now"):
        train_recipe(extended(recipe, 3))
    assert read_run_results(tmp_path / "run") is not None
    shutil.rmtree(list_checkpoints(tmp_path / "run" / "checkpoints")[-1])
    with pytest.raises(CheckpointError, match="its checkpoint of step 6 is gone"):
        train_recipe(extended(recipe))


def test_from_the_command_line(recipe, tmp_path, capsys):
    file = tmp_path / "recipe.py"
    file.write_text(f"import pickle; recipe = pickle.loads({pickle.dumps(recipe)})")
    assert main(["train", str(file)]) == 0
    more = ["train", str(file), "--training.steps", "9", "--extend"]
    assert main([*more, "--dry-run"]) == 0
    assert f"extends the run there: steps 1 to 6 {NOTE}" in capsys.readouterr().out
    with pytest.warns(UserWarning, match=NOTE):
        assert main(more) == 0
    assert f"extended: steps 1 to 6 {NOTE}" in capsys.readouterr().out
    recorded = json.loads((tmp_path / "run" / "results.json").read_text())
    assert [part["steps"] for part in recorded["parts"]] == [6]


def test_a_run_may_start_from_another_runs_model(plain_recipe, tmp_path):
    """As may one that starts from its reference."""
    first, second = (replace(plain_recipe, output=str(tmp_path / name)) for name in ("one", "two"))
    train_recipe(first)
    second = replace(second, model=Model(f"run:{first.output}"))
    started = build_model(second.model, seed=0).module.state_dict()
    trained = load_file(tmp_path / "one" / "model" / "open_clip_model.safetensors")
    assert all(torch.equal(trained[name], value) for name, value in started.items())
    train_recipe(second)
