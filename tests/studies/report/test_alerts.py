"""Each alert comes at its threshold, and not before it."""

import math
from dataclasses import replace
from pathlib import Path

import pytest

from drrho.contrastive.memory.temperature import Learned
from drrho.contrastive.objectives.clip import CLIP
from drrho.contrastive.objectives.global_risk import FastCLIP
from drrho.data.loading import Loading
from drrho.models.build import Model
from drrho.recipe.document import RunResults
from drrho.recipe.folder import RunFolder
from drrho.recipe.recipe import Evaluation, Recipe
from drrho.recipe.selection import Selection
from drrho.studies.report.alerts import ReferenceCheck, find_alerts
from drrho.training.config import Training
from drrho.training.optimizer import Optimizer

RECIPE = Recipe(
    output="run",
    data="data",
    loading=Loading(batch_size=101),
    model=Model(name="ViT-B-16"),
    objective=FastCLIP(),
    training=Training(steps=30, optimizer=Optimizer(learning_rate=1e-3)),
)


def alerts(rows=(), *, recipe=None, results=None, reference=None):
    if results is not None:
        results = RunResults(recipe=RECIPE, metrics={}, seconds=1.0, **results)
    run = RunFolder(path=Path("run"), recipe=recipe or RECIPE, rows=list(rows), results=results)
    found = find_alerts(run, reference=reference)
    return [alert.name for alert in found]


def rows_of(**metrics):
    """A log in which only the newest tenth has these numbers."""
    return [{"step": s, **dict.fromkeys(metrics, 0.7)} for s in range(9)] + [{"step": 9} | metrics]


def test_a_quiet_run_has_none():
    assert alerts(rows_of(loss=1.0)) == []
    assert alerts() == []


def test_advice_is_about_the_run_at_hand():
    steps = [{"step": 1, "saturated_anchors": 0.7, "time/data_wait": 0.9}]
    run = RunFolder(path=Path("run"), recipe=RECIPE, rows=steps, results=None)
    saturated, waiting = find_alerts(run)
    assert "epsilon below 1e-14, or batches of more than 101" in saturated.remedy
    assert waiting.remedy == "Take more loading.workers, of which there are 0."
    assert {alert.grade for alert in (saturated, waiting)} == {"note"}
    plain = replace(RECIPE, objective=CLIP())  # whose anchors give up no gradient
    assert [it.name for it in find_alerts(replace(run, recipe=plain))] == ["waiting for data"]
    fell = [{"step": s, "evaluation/mrr": value} for s, value in ((1, 0.9), (2, 0.1))]
    best = replace(RECIPE.training, keep_best="evaluation/mrr")
    kept = replace(RECIPE, training=best, evaluation=Evaluation(data="held_out"))
    (alert,) = find_alerts(RunFolder(path=Path("run"), recipe=kept, rows=fell, results=None))
    assert alert.grade == "warning"
    assert "in best/" in alert.remedy


@pytest.mark.parametrize(
    ("metric", "value", "name"),
    [
        ("effective_sample_size", 0.0199, "effective sample size collapsed"),
        ("saturated_anchors", 0.51, "anchors saturated"),
        ("time/data_wait", 0.51, "waiting for data"),
    ],
)
def test_means_of_the_newest_rows(metric, value, name):
    quiet = {"effective_sample_size": 0.0201, "saturated_anchors": 0.5, "time/data_wait": 0.5}
    assert alerts(rows_of(**{metric: value})) == [name]
    assert alerts(rows_of(**{metric: quiet[metric]})) == []


def learned(rho, **temperature):
    return replace(RECIPE, objective=FastCLIP(rho=rho, temperature=Learned(**temperature)))


def test_rho_beyond_what_the_batch_allows():
    assert alerts(recipe=learned(math.log(100) + 0.01)) == ["rho unreachable"]
    assert alerts(recipe=learned(math.log(100) - 0.01)) == []
    selection = Selection(kind="loss", batch_size=50, num_chunks=2)
    selected = replace(learned(4.0), selection=selection)  # 49 negatives: log 49 < 4
    assert alerts(recipe=selected) == ["rho unreachable"]


def test_rho_not_reached_at_the_smallest_temperature():
    recipe = learned(3.0, minimum=0.02)
    assert alerts(rows_of(temperature=0.02, weights_kl=2.9), recipe=recipe) == ["rho unreachable"]
    assert alerts(rows_of(temperature=0.02, weights_kl=3.1), recipe=recipe) == []
    assert alerts(rows_of(temperature=0.03, weights_kl=2.9), recipe=recipe) == []


@pytest.mark.parametrize(
    ("check", "found"),
    [
        (ReferenceCheck(train=0.6, num_pairs=500), False),
        (ReferenceCheck(train=0.985, num_pairs=500), True),
        (ReferenceCheck(train=0.985, num_pairs=200), False),
        (ReferenceCheck(train=0.6, num_pairs=500, held_out=0.54, interval=(0.01, 0.1)), True),
        (ReferenceCheck(train=0.6, num_pairs=500, held_out=0.54, interval=(-0.01, 0.1)), False),
        (ReferenceCheck(train=0.6, num_pairs=500, held_out=0.56, interval=(0.01, 0.1)), False),
        (ReferenceCheck(train=0.99, num_pairs=500, held_out=0.99, interval=(-0.1, 0.1)), False),
        (ReferenceCheck(train=0.1, num_pairs=500, common_shards=1), True),
        (ReferenceCheck(train=0.1, num_pairs=500, common_shards=0), False),
    ],
)
def test_a_reference_that_knows_the_training_pairs(check, found):
    assert alerts(reference=check) == (["reference contaminated"] if found else [])


def test_what_is_not_finite_is_named():
    rows = [{"step": 4, "loss": None}, {"step": 5, "loss": 1.0}]
    (found,) = find_alerts(RunFolder(path=Path("run"), recipe=RECIPE, rows=rows, results=None))
    assert found.name == "steps not finite"
    assert "step 4" in found.text
    assert alerts(results={"skipped_steps": 1, "samples_seen": 9}) == ["steps not finite"]


def test_samples_left_out_and_quality_that_fell():
    assert alerts(results={"samples_seen": 985, "skipped": {"corrupt image": 15}}) == [
        "samples left out"
    ]
    assert alerts(results={"samples_seen": 995, "skipped": {"corrupt image": 5}}) == []
    evaluated = [{"step": 1, "evaluation/mrr": 0.5}, {"step": 2, "evaluation/mrr": 0.44}]
    assert alerts(evaluated) == ["quality fell"]
    assert alerts([*evaluated, {"step": 3, "evaluation/mrr": 0.46}]) == []
