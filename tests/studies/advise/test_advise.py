"""`drrho advise`: what is raced, and why not; interruptions; a winner that is an ordinary run."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tests.recipe.test_training import files_of

import drrho
from drrho.cli import main
from drrho.contrastive.memory.temperature import Learned
from drrho.contrastive.objectives.clip import CLIP
from drrho.contrastive.objectives.global_risk import DRRhoCLIP, FastCLIP
from drrho.contrastive.objectives.siglip import SigLIP
from drrho.recipe.recipe import Evaluation, Recipe, load_recipe
from drrho.recipe.train import train_beginning, train_recipe
from drrho.runtime.records import read_record
from drrho.studies.advise import running
from drrho.studies.advise.advise import advise, open_setting
from drrho.studies.advise.arms import list_arms
from drrho.studies.advise.config import USES, AdviseConfig
from drrho.studies.advise.references import geometry_of, name_references
from drrho.studies.advise.results import AdviceResults
from drrho.training.log import read_metrics

FEW = {"uses": ("start", "steer", "distil"), "strengths": (1.0,), "distillation_weights": (1.0,)}


@pytest.fixture(scope="module")
def planned(plain_recipe):
    """Twelve steps of FastCLIP, as a user would plan them."""
    training = replace(plain_recipe.training, steps=12, log_every=4, evaluate_every=None)
    objective = FastCLIP(temperature=0.07, gamma_min=0.5)
    return replace(plain_recipe, training=training, objective=objective, output="runs/planned")


@pytest.fixture(scope="module")
def model(reference):
    """Folder of the run of a reference of the same architecture."""
    return str(reference.parent / "run")


def config(folder, model, **options):
    return AdviseConfig(
        **({"reference": (model,), "output": str(folder), "budget": 1.0} | FEW | options)
    )


@pytest.fixture(scope="module")
def raced(planned, model, tmp_path_factory):
    """The folder of a race that nothing interrupted, and what was found."""
    folder = tmp_path_factory.mktemp("raced") / "advice"
    return folder, advise(planned, config(folder, model))


def test_every_arm_is_raced_or_has_a_reason(raced):
    folder, results = raced
    assert list(results.arms) == ["plain", "start", "steer-1", "distil-1"], "the simplest first"
    assert all(Path(arm.run) == folder / name for name, arm in results.arms.items())
    assert set(results.rungs[0].mrr) == set(results.arms)
    assert {"plain", "start"} <= set(results.rungs[-1].mrr), "the control, and the head start"
    assert sum(arm.steps for arm in results.arms.values()) == results.spent.steps <= 12
    assert results == read_record(folder / "advice.json", AdviceResults)
    assert (folder / "advice.png").stat().st_size > 1000
    text = str(results)
    assert text.startswith("Recommended: ")
    for name in results.arms:
        assert name in text
    assert f"drrho train {folder}/recipe.py" in text
    (found,) = results.references.values()
    assert found.geometry.effective_rank > 1


def test_the_page_and_the_list_show_the_race(raced, tmp_path):
    folder, results = raced
    page = drrho.report(str(folder), output=str(tmp_path / "page.html"), galleries=False)
    text = page.read_text("utf-8")
    assert "What to do with the reference" in text
    assert results.sentence in text
    assert all(f"</span>{name}</li>" in text for name in results.arms)
    found = {it.path: it for it in drrho.ls(str(folder.parent))}
    assert found["advice"].what == f"4 arms; recommended: {results.recommended}"


def comparable(folder):
    """What a race leaves behind that must not depend on interruptions."""
    found = json.loads((folder / "advice.json").read_text().replace(str(folder), "FOLDER"))
    del found["spent"]["seconds"], found["spent"]["reference_seconds"]
    checkpoints = {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.glob("*/checkpoints/*/*.distcp"))
    }
    return found, checkpoints


class Killed(BaseException):
    """The end of a process that cannot clean up."""


def test_a_race_that_is_killed_anywhere_ends_as_one_that_was_not(
    raced, planned, model, tmp_path, monkeypatch
):
    """Killed within the training of an arm, twice, and between training and its scores."""
    calls = 0

    def killed_within(recipe, *, until):
        nonlocal calls
        calls += 1
        within = calls in (6, 8)  # the second rung, from step 1 to 3
        train_beginning(recipe, until=until - 1 if within else until)
        if within or calls == 2:
            raise Killed

    monkeypatch.setattr(running, "train_beginning", killed_within)
    kills, results = 0, None
    while results is None:
        try:
            results = advise(planned, config(tmp_path / "advice", model))
        except Killed:
            kills += 1
    assert kills == 3
    assert comparable(tmp_path / "advice") == comparable(raced[0])


def test_the_winner_goes_on_as_a_run_that_was_never_raced(raced, tmp_path):
    folder, results = raced
    recipe = load_recipe(folder / "recipe.py", Recipe)
    assert recipe.output == results.arms[results.recommended].run
    train_recipe(replace(recipe, output=str(tmp_path / "whole")))
    shutil.copytree(recipe.output, tmp_path / "winner")  # other tests look at the folder
    command = ["train", str(folder / "recipe.py"), "--output", str(tmp_path / "winner")]
    assert main(command) == 0
    assert files_of(tmp_path / "winner") == files_of(tmp_path / "whole")
    assert read_metrics(tmp_path / "winner")[0]["step"] == 4, "logged as the recipe says"


def test_a_race_that_is_done_is_read(raced, planned, model, monkeypatch):
    monkeypatch.setattr(running, "train_beginning", None)
    again = advise(planned, config(raced[0], model))
    assert again.rungs == raced[1].rungs
    assert again.spent.steps == raced[1].spent.steps


def test_without_validation_pairs_some_are_held_out(planned, reference, tmp_path):
    recipe = replace(planned, evaluation=Evaluation())
    stored = (str(reference),)
    results = advise(
        recipe, config(tmp_path / "advice", stored[0], reference=stored, uses=("start", "filter"))
    )
    assert (results.pairs, results.held_out) == (20, 20)
    assert results.arms["start"].run is None
    assert "only embeddings of the reference are given" in results.arms["start"].reason
    assert "Not raced: start from the reference: only embeddings" in str(results)
    for name in ("plain", "filter-0.75", "filter-0.5"):
        assert json.loads((tmp_path / "advice" / name / "recipe.json").read_text())["data"] == str(
            tmp_path / "advice" / "train.json"
        )


def test_the_data_of_a_reference_can_be_trained_on_too(planned, model, scenes, tmp_path):
    data = drrho.index(str(scenes / "test"), output=str(tmp_path / "own.json"))
    options = {"uses": ("union",), "reference_data": (str(tmp_path / "own.json"),)}
    recipe = replace(planned, evaluation=Evaluation())  # the 12 pairs are not held out then
    results = advise(recipe, config(tmp_path / "advice", model, **options))
    recorded = json.loads((tmp_path / "advice" / "union" / "recipe.json").read_text())
    assert recorded["data"] == str(next((tmp_path / "advice" / "unions").glob("*[0-9].json")))
    assert results.arms["union"].steps > 0
    assert data.num_samples == 12
    same = config(tmp_path / "same", model, uses=("union",), reference_data=(planned.data,))
    with pytest.raises(ValueError, match="2 shards of its data are among the training pairs"):
        advise(recipe, same)


@pytest.mark.parametrize(
    ("objective", "reason"),
    [
        (CLIP(temperature=Learned()), "CLIP with a temperature that is learned"),
        (SigLIP(temperature=Learned(initial=0.1)), "SigLIP with a temperature that is learned"),
    ],
)
def test_steering_of_other_objectives_says_why_not(
    planned, model, tmp_path, capsys, objective, reason
):
    options = {"dry_run": True, "budget": 20.0, "uses": USES}
    assert advise(replace(planned, objective=objective), config(tmp_path, model, **options)) is None
    said = capsys.readouterr().err
    assert "not raced: steer by the reference at strength 1: steering replaces" in said
    assert reason in said
    assert "distil-1: distil the reference at weight 1" in said


def test_a_steered_recipe_multiplies_its_own_scale(planned, model, reference, tmp_path):
    objective = DRRhoCLIP(temperature=0.07, reference_scale=2.0)
    recipe = replace(planned, objective=objective, reference=str(reference))
    options = config(tmp_path, model, strengths=(0.2, 1.0), uses=USES)
    setting = open_setting(recipe, options, write=False)
    arms = {
        arm.name: arm
        for arm in list_arms(setting.recipe, setting.candidates, options, base=setting.base)
    }
    assert arms["plain"].recipe.objective == FastCLIP(temperature=0.07)
    assert arms["steer-0.2"].recipe.objective.reference_scale == pytest.approx(0.4)
    assert arms["steer-1"].recipe.objective == objective
    assert arms["steer-1-distil-1"].recipe.objective.distillation.weight == 1
    assert {arm.recipe.seed for arm in arms.values() if arm.recipe} == {planned.seed}


def test_a_dry_run_says_the_plan_and_writes_nothing(planned, model, tmp_path, capsys):
    assert advise(planned, config(tmp_path / "advice", model, dry_run=True)) is None
    said = capsys.readouterr().err
    assert "4 arms are raced" in said
    assert "12 steps in all, 100% of a whole run, compared at step 1 (4 arms), step 3" in said
    assert "WARNING: the first comparison, at step 1, is within the warm-up of 2 steps" in said
    assert not (tmp_path / "advice").exists()


def test_wrong_calls_are_told_what_is_wrong(raced, planned, model, tmp_path):
    folder, _ = raced
    with pytest.raises(ValueError, match="holds another race.*\n.*budget: 1.0 before, 2.0 now"):
        advise(planned, config(folder, model, budget=2.0))
    with pytest.raises(ValueError, match="none for each of 4 arms in every rung, which takes 8"):
        advise(planned, config(tmp_path / "small", model, budget=0.1))
    with pytest.raises(FileNotFoundError, match="nope/run is no folder of a run"):
        advise(planned, config(tmp_path / "none", "nope/run"))
    for name in ("small", "none"):
        assert not (tmp_path / name / "asked.json").exists(), "a call that failed claims no folder"
        assert not (tmp_path / name / "references").exists()
    with pytest.raises(ValueError, match="one for each of 1 references"):
        config(tmp_path, model, reference_data=("a", "b"))
    with pytest.raises(ValueError, match="kept_fractions must be below 1"):
        config(tmp_path, model, kept_fractions=(1.0,))


def test_names_of_references_are_short_and_different():
    given = ("runs/a/run", "run:runs/b", "ViT-B-32@laion2b", "local-dir:/x/b/model")
    assert name_references(given) == ["a", "b-1", "ViT-B-32-laion2b", "b-2"]


def test_geometry_of_cosines():
    pairs = torch.eye(10, dtype=torch.float64)
    found = geometry_of(pairs)
    assert found.effective_rank == pytest.approx(9), "one direction is taken by centring"
    assert found.off_diagonal == 0
    shifted = geometry_of(0.5 * pairs + 0.3)
    assert shifted.effective_rank == pytest.approx(9), "a common offset is no direction"
    assert shifted.off_diagonal == pytest.approx(0.3)


def test_the_verb_returns_what_was_found(planned, reference, tmp_path):
    found = drrho.advise(
        planned,
        references=str(reference),
        output=str(tmp_path / "advice"),
        budget=1.0,
        uses=["filter"],
    )
    assert set(found.arms) == {"plain", "filter-0.75", "filter-0.5"}
    shutil.rmtree(tmp_path / "advice")
