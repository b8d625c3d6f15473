"""What the version of 2026-11-30 wrote still opens, and a run it began is continued.

`tests/fixtures/baseline/make.py` says how the files were made.
"""

import hashlib
import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from drrho.contrastive.memory.temperature import Learned, PerSample
from drrho.contrastive.objectives.clip import CLIP
from drrho.contrastive.objectives.distillation import DistillationTerm
from drrho.contrastive.objectives.global_risk import DRRhoCLIP, FastCLIP
from drrho.data.indexing import open_manifest
from drrho.data.loading import Loading
from drrho.models.build import Model, build_model
from drrho.models.program import trusting
from drrho.recipe.export import load_checkpoint_model
from drrho.recipe.filtering import Filtering
from drrho.recipe.folder import read_run, stages_of
from drrho.recipe.recipe import Evaluation, Recipe
from drrho.recipe.selection import Selection
from drrho.recipe.train import train_recipe
from drrho.reference.store import ReferenceStore
from drrho.runtime.records import read_record
from drrho.studies.compare.compare import compare
from drrho.studies.compare.spec import Comparison
from drrho.studies.probe.results import ProbeResults
from drrho.studies.report.write import ReportConfig, write_report
from drrho.studies.scaling.points import read_runs
from drrho.training.config import Training
from drrho.training.optimizer import Optimizer

FIXTURES = Path(__file__).parent / "fixtures" / "baseline"


@pytest.fixture
def old(tmp_path, monkeypatch) -> Iterator[Path]:
    """A copy of the files, which is the working directory."""
    folder = tmp_path / "old"
    shutil.copytree(FIXTURES, folder)
    # A model of a program names the program's place, which is another one here.
    program = folder / "encoder.py"
    digest = hashlib.sha256(program.read_bytes()).hexdigest()
    for path in folder.rglob("program.json"):
        path.write_text(json.dumps({"path": str(program), "sha256": digest}))
    monkeypatch.chdir(folder)
    with trusting("python:encoder.py"):
        yield folder


def plain(output: str) -> Recipe:
    return Recipe(
        output=output,
        data="train/manifest.json",
        loading=Loading(batch_size=8),
        model=Model(name="python:encoder.py"),
        objective=CLIP(temperature=Learned()),
        training=Training(
            steps=6,
            optimizer=Optimizer(learning_rate=1e-2, warmup_steps=2),
            log_every=1,
            checkpoint_every=3,
            keep_checkpoints=1,
            evaluate_every=3,
        ),
        evaluation=Evaluation(data="test/manifest.json"),
        device="cpu",
    )


def steered(output: str) -> Recipe:
    return replace(
        plain(output),
        objective=DRRhoCLIP(temperature=0.05, gamma_min=0.5),
        reference="reference",
        selection=Selection(batch_size=4, num_chunks=2, reference_temperature=0.07),
        filtering=Filtering(kept_fraction=0.7),
    )


def individual(output: str) -> Recipe:
    return replace(
        plain(output),
        objective=FastCLIP(
            temperature=PerSample(initial=0.05),
            rho=1.5,
            gamma_min=0.8,
            gamma_schedule="constant",
            distillation=DistillationTerm(teacher_temperatures=(0.07,)),
        ),
        teachers=("reference",),
    )


RECIPES = {"steered": steered, "individual": individual}


def test_data_and_reference_open(old):
    manifest = open_manifest("train/manifest.json")
    assert manifest.num_samples == 16
    store = ReferenceStore.open("reference", manifest)
    assert store.num_absent == 0
    model = build_model(Model(name="run:trained/reference"), seed=0)
    assert model.identity["pretrained"] == "trained with drrho"


@pytest.mark.parametrize("name", RECIPES)
def test_a_finished_run_is_returned(old, name):
    before = (old / "trained" / name / "results.json").read_text()
    results = train_recipe(RECIPES[name](f"trained/{name}"))
    assert (old / "trained" / name / "results.json").read_text() == before
    assert results.metrics == json.loads(before)["metrics"]


@pytest.mark.parametrize("name", RECIPES)
def test_an_interrupted_run_is_continued_to_the_weights_of_an_uninterrupted_one(old, name):
    train_recipe(RECIPES[name](f"trained/{name}-interrupted"))
    train_recipe(RECIPES[name](f"again/{name}"))
    before, continued, again = (
        load_file(f"{folder}/model/model.safetensors")
        for folder in (f"trained/{name}", f"trained/{name}-interrupted", f"again/{name}")
    )
    same_rounding = all(torch.equal(again[key], before[key]) for key in before)
    tolerance = {"rtol": 0, "atol": 0} if same_rounding else {"rtol": 1e-4, "atol": 1e-6}
    torch.testing.assert_close(continued, before, **tolerance)


def test_a_run_with_another_configuration_is_not_continued(old):
    other = steered("trained/steered-interrupted")
    changed = replace(other.objective, gamma_min=0.25)
    with pytest.raises(Exception, match=r"objective\.gamma_min"):
        train_recipe(replace(other, objective=changed))


def test_the_stages_of_runs_are_read(old):
    finished = read_run(Path("trained/steered"))
    assert finished.recipe.objective.method == "drrho_clip"
    assert finished.recipe.trained_batch_size == 4
    assert [stage.step for stage in stages_of(finished)] == [0, 6]
    interrupted = read_run(Path("trained/individual-interrupted"))
    assert interrupted.results is None
    assert [stage.step for stage in stages_of(interrupted)] == [0, 4]
    assert interrupted.temperature_at(0) == 0.05
    load_checkpoint_model(
        interrupted.path, Path("trained/individual-interrupted/checkpoints/step-00000004")
    )


def test_a_comparison_is_read_and_not_run_again(old):
    before = json.loads(Path("compare/results.json").read_text())
    short = replace(
        plain("nowhere"),
        evaluation=Evaluation(data="train"),
        training=Training(steps=2, optimizer=Optimizer(learning_rate=1e-2)),
    )
    comparison = Comparison(
        output="compare",
        references={"weak": replace(short, seed=7)},
        methods={
            "openclip": short,
            "drrho_clip": replace(short, objective=DRRhoCLIP(), reference="weak"),
        },
        test="test",
    )
    compare(comparison)
    after = json.loads(Path("compare/results.json").read_text())
    for part in ("methods", "references", "differences"):
        assert after[part] == before[part]
    assert [run.method for run in read_runs(["compare"])] == ["openclip", "drrho_clip"]


def test_a_probe_is_read(old):
    assert "reference" in str(read_record(Path("probe/probe.json"), ProbeResults))


def test_a_report_of_all_of_it_is_written(old):
    page = write_report(
        ReportConfig(
            runs=("trained/steered", "trained/individual-interrupted", "compare"),
            output="report.html",
        )
    )
    assert "DRRho-CLIP" in Path(page).read_text()
