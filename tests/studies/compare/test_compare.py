"""Comparisons: what varies between methods, what is kept, what fails, and what is reported."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from statistics import fmean

import pytest
from tests.small_runs import draw_no_pictures

from drrho.contrastive.objectives.clip import CLIP
from drrho.contrastive.objectives.distillation import DistillationTerm
from drrho.contrastive.objectives.global_risk import DRRhoCLIP
from drrho.data.views import Views
from drrho.models.build import Model
from drrho.recipe.document import read_run_results
from drrho.recipe.filtering import Filtering
from drrho.recipe.selection import Selection
from drrho.runtime.locks import exclusive
from drrho.studies.compare.compare import CompareConfig, compare, run_comparison
from drrho.studies.compare.spec import Comparison, GapConfig, Part, Stored, TuningConfig
from drrho.training.config import Training
from drrho.training.optimizer import Optimizer

pytestmark = pytest.mark.usefixtures("few_resamples")


def rates(recipe, *values):
    """The recipe with each of some learning rates."""
    return tuple(
        replace(
            recipe,
            training=replace(
                recipe.training, optimizer=replace(recipe.training.optimizer, learning_rate=value)
            ),
        )
        for value in values
    )


@pytest.fixture(scope="module")
def comparison(plain_recipe, scenes, reference, tmp_path_factory):
    """Plain, steered, selecting and distilling; two references, one of them given; not run."""
    target = replace(
        plain_recipe,
        evaluation=replace(plain_recipe.evaluation, data=str(scenes / "train")),
        training=Training(steps=2, optimizer=Optimizer(learning_rate=1e-3), log_every=1),
    )
    weak = replace(target, seed=7)
    jest = replace(
        target,
        selection=Selection(batch_size=4, num_chunks=2, reference_temperature=0.07),
        reference="weak",
    )
    steered = replace(
        target,
        objective=DRRhoCLIP(),
        reference=("weak", "given"),
        filtering=Filtering(kept_fraction=0.5, reference="weak"),
        evaluation=replace(target.evaluation, references=("weak",)),
    )
    distilled = replace(
        target,
        objective=CLIP(distillation=DistillationTerm(teacher_temperatures=(0.07, 0.07))),
        teachers=("weak", "given"),
    )
    return Comparison(
        output=str(tmp_path_factory.mktemp("compare") / "out"),
        references={
            "given": Model(name=f"run:{reference.parent / 'run'}"),
            "weak": weak,
        },
        methods={"clip": target, "jest": jest, "steered": steered, "distilled": distilled},
        test={"clean": str(scenes / "test"), "again": str(scenes / "test" / "manifest.json")},
        seeds=(0, 1),
        gap=GapConfig(weak="weak", ceiling="clip"),
    )


@pytest.fixture(scope="module")
def results(comparison, few_resamples):
    """Of the whole, run in two tasks and one after another; the last draws the pictures."""
    with pytest.MonkeyPatch.context() as patch:
        draw_no_pictures(patch)
        _, first = run_comparison(comparison, CompareConfig(tasks=2, task=1))
    _, second = run_comparison(comparison, CompareConfig(tasks=2, task=0))
    assert first == second == 0
    return json.loads((Path(comparison.output) / "results.json").read_text())


def test_every_run_is_there_with_its_scores_and_costs(comparison, results):
    for name, method in results["methods"].items():
        assert [run["seed"] for run in method["runs"]] == [0, 1]
        assert method["missing"] == []
        assert method["tests"]["clean"] == method["tests"]["again"]
        assert method["cost"]["samples_seen"] == (8 if name == "jest" else 16)
        assert method["cost"]["forward_only"] == (16 if name == "jest" else 0)
        mean = sum(run["tests"]["clean"]["mrr"] for run in method["runs"]) / 2
        assert method["tests"]["clean"]["mrr"] == pytest.approx(mean)
    guessed = results["setup"]["chance"]["clean"]  # of some 15 candidates
    assert 0.1 < guessed["mrr"] < 0.4
    assert set(guessed) < set(results["references"]["weak"]["tests"]["clean"])
    assert set(results["methods"]["distilled"]["reference_cost"]) == {"weak", "given"}
    given = results["methods"]["distilled"]["reference_cost"]["given"]
    assert given["precompute"]["samples"] == 40
    assert given["training"] is None
    assert results["references"]["weak"]["cost"]["samples_seen"] == 16


def test_views_are_stored_beside_samples_as_they_are(comparison, tmp_path, monkeypatch):
    draw_no_pictures(monkeypatch)
    plain = replace(
        comparison.methods["clip"],
        objective=DRRhoCLIP(),
        reference="given",
    )
    views = Views(count=2, seed=3, scale=(0.5, 1.0))
    viewed = replace(plain, loading=replace(plain.loading, views=views))
    both = replace(
        comparison,
        output=str(tmp_path),
        references={"given": comparison.references["given"]},
        methods={"plain": plain, "viewed": viewed},
        seeds=(0,),
        gap=None,
    )
    _, status = run_comparison(both, CompareConfig())
    assert status == 0
    stored = [both.embeddings(Stored("given", plain.data, v)) for v in (None, views)]
    assert [(folder / "view-001").is_dir() for folder in stored] == [False, True]
    found = json.loads((tmp_path / "results.json").read_text())
    passes = {
        name: method["reference_cost"]["given"]["precompute"]["samples"]
        for name, method in found["methods"].items()
    }
    assert passes == {"plain": 40, "viewed": 80}


def test_differences_and_gap_are_paired_by_seed(results):
    assert len(results["differences"]) == 2 * 6
    for row in results["differences"]:
        means = [results["methods"][row[n]]["tests"]["clean"]["mrr"] for n in ("method", "minus")]
        assert row["mrr"] == pytest.approx(means[0] - means[1])
        assert row["interval"][0] <= row["mrr"] <= row["interval"][1]
    assert {row["method"] for row in results["gap"]} == {"jest", "steered", "distilled"}


def test_the_report_shows_all_of_it(comparison, results):
    text = (Path(comparison.output) / "results.md").read_text()
    assert "JEST" in text
    assert "gap recovered" in text
    assert "higher in" in text
    for plot in ("curves", "differences", "costs"):
        assert (Path(comparison.output) / f"{plot}.png").stat().st_size > 5000


def test_finished_runs_are_kept_and_missing_ones_named(comparison, results, monkeypatch):
    draw_no_pictures(monkeypatch)
    shutil.rmtree(comparison.run_recipe(Part("jest", 1)).output)
    text, status = run_comparison(comparison, CompareConfig(table_only=True))
    assert status == 0
    assert "Not finished: JEST seed 1." in text
    kept = Path(comparison.run_recipe(Part("clip", 0)).output) / "results.json"
    before = kept.stat().st_mtime_ns
    with exclusive(Path(comparison.output) / "claims" / "jest-seed1"):
        text, _ = run_comparison(comparison, CompareConfig())
        assert "Not finished: JEST seed 1." in text  # another process has it
    text, _ = run_comparison(comparison, CompareConfig(only=("jest:1",)))
    assert "Not finished" not in text
    assert kept.stat().st_mtime_ns == before
    again = json.loads((Path(comparison.output) / "results.json").read_text())
    assert again["methods"]["jest"]["tests"] == results["methods"]["jest"]["tests"]


def test_a_setting_is_chosen_by_validation_and_a_diverged_run_is_reported(
    comparison, tmp_path, monkeypatch
):
    draw_no_pictures(monkeypatch)
    clip = comparison.methods["clip"]
    tuned = Comparison(
        output=str(tmp_path / "out"),
        methods={"clip": rates(clip, 1e-30, 3e-3), "wild": rates(clip, 1e30, 1e31)},
        test=str(comparison.tests["clean"]),
        tuning=TuningConfig(seed=5, runs=2),
    )
    text, status = run_comparison(tuned, CompareConfig())
    assert status == 1
    assert "wild, seed 0, failed: " in text
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    choice = results["methods"]["clip"]["choice"]
    assert choice["scores"][choice["chosen"]] == max(choice["scores"])
    found = [
        read_run_results(tmp_path / "out" / "tuning" / f"clip-setting0{seed}")
        for seed in ("", "-seed6")
    ]
    assert choice["scores"][0] == fmean(run.metrics["evaluation/mrr"] for run in found)
    assert "highest mean evaluation/mrr of 2 runs with seeds 5 to 6 was taken" in text
    assert "learning_rate" in choice["settings"][1][0]
    assert len(results["methods"]["clip"]["runs"]) == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seeds": (1, 1)}, "differ from each other"),
        ({"gap": GapConfig(weak="none", ceiling="clip")}, "none of the references"),
        ({"tuning": TuningConfig()}, "exactly where"),
        ({"references": {}, "gap": None}, "names the reference 'weak'"),
        ({"methods": {}}, "at least one method"),
    ],
)
def test_what_cannot_be_is_refused(comparison, changes, message):
    with pytest.raises(ValueError, match=message):
        replace(comparison, **changes)


def test_a_test_set_is_not_what_was_trained_on(comparison):
    with pytest.raises(ValueError, match="take another"):
        replace(comparison, test=comparison.methods["clip"].data)


def test_a_reference_that_no_method_reads_is_refused(comparison):
    other = next(iter(comparison.references.values()))
    with pytest.raises(ValueError, match="no method reads the reference 'unread'"):
        replace(comparison, references={**comparison.references, "unread": other})


def test_a_missing_test_set_is_said_before_anything_is_trained(comparison, tmp_path):
    lost = replace(comparison, output=str(tmp_path / "out"), test={"a": "gone.json"})
    with pytest.raises(FileNotFoundError, match=r"manifest gone\.json does not exist"):
        compare(lost)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "arguments", [{"task": 1}, {"tasks": 2, "only": ("clip:0",)}, {"tasks": 2, "table_only": True}]
)
def test_options_without_effect_are_errors(arguments):
    with pytest.raises(ValueError, match=r"exclude each other|no effect"):
        CompareConfig(**arguments)


def test_tasks_are_those_of_slurm(comparison, monkeypatch):
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "3")
    shares = [CompareConfig(tasks=4, task=t).parts(comparison) for t in range(4)]
    assert CompareConfig(tasks=4).parts(comparison) == shares[3]
    assert sorted(part for share in shares for part in share) == sorted(comparison.parts)
