"""Variances on held-out pairs are logged along training, for every reference that is named."""

from dataclasses import replace

import pytest
import torch

from drrho.cli import main
from drrho.data.indexing import open_manifest
from drrho.models.build import build_model
from drrho.recipe.batches import Stores
from drrho.recipe.filtering import Filtering
from drrho.recipe.recipe import Evaluation
from drrho.recipe.train import _evaluators, filter_manifest, train_recipe
from drrho.reference.build import PrecomputeConfig, precompute_reference
from drrho.runtime.distributed import Processes
from drrho.training.log import read_metrics


@pytest.fixture(scope="module")
def stored(plain_recipe, reference, tmp_path_factory):
    """Two folders with embeddings of the test scenes, by the same reference."""
    folder = tmp_path_factory.mktemp("held-out")
    for name in ("one", "other"):
        precompute_reference(
            PrecomputeConfig(
                data=plain_recipe.evaluation.data,
                model=f"run:{reference.parent / 'run'}",
                output=str(folder / name),
                device="cpu",
            )
        )
    return folder


def with_references(recipe, *folders):
    evaluation = replace(recipe.evaluation, references=tuple(map(str, folders)))
    return replace(recipe, evaluation=evaluation)


def test_variances_are_logged_at_every_evaluation(plain_recipe, stored, tmp_path, capsys):
    recipe = with_references(plain_recipe, stored / "one", stored / "other")
    plain = train_recipe(replace(plain_recipe, output=str(tmp_path / "plain")))
    logged = train_recipe(replace(recipe, output=str(tmp_path / "run")))
    rows = [r for r in read_metrics(tmp_path / "run") if r.get("evaluation/mrr") is not None]
    assert len(rows) == 2
    for row in rows:
        assert row["evaluation/loss_variance"] > 0
        names = [f"evaluation/excess_loss_variance/{name}" for name in ("one", "other")]
        assert row[names[0]] == row[names[1]] > 0
    assert plain.metrics["evaluation/mrr"] == logged.metrics["evaluation/mrr"]
    capsys.readouterr()
    picture = tmp_path / "variance.png"
    assert main(["variance", str(tmp_path / "run"), "--output", str(picture)]) == 0
    assert "excess over other" in capsys.readouterr().out
    assert picture.stat().st_size > 1000
    assert main(["variance", str(tmp_path / "plain"), "--output", str(picture)]) == 1
    assert "'plain' has logged no variances" in capsys.readouterr().err


def test_a_reference_of_other_data_is_refused(plain_recipe, reference, tmp_path):
    recipe = with_references(plain_recipe, reference)
    with pytest.raises(ValueError, match="do not fit shard"):
        train_recipe(replace(recipe, output=str(tmp_path)))


def test_references_without_effect_or_of_one_name_are_refused(plain_recipe, stored, tmp_path):
    with pytest.raises(ValueError, match="no effect without evaluation.data"):
        Evaluation(references=("a",))
    recipe = with_references(plain_recipe, stored / "one", stored / "one")
    with pytest.raises(ValueError, match="must differ"):
        train_recipe(replace(recipe, output=str(tmp_path)))


class _Other(Processes):
    """The first of two processes, whose partner has stores of another model."""

    def on_first(self, make):
        return make()

    def all_gather_object(self, own):
        changed = "another" if isinstance(own, dict) else own
        return [own, dict.fromkeys(own, changed) if isinstance(own, dict) else own]


def test_stores_for_evaluation_and_filtering_are_compared_by_processes(
    plain_recipe, stored, reference
):
    recipe = with_references(plain_recipe, stored / "one")
    model = build_model(recipe.model, seed=0)
    processes = _Other(rank=0, size=2)
    with pytest.raises(ValueError, match="processes of this run differ in evaluation.references"):
        _evaluators(recipe, {"evaluation": model}, processes, device=torch.device("cpu"))
    recipe = replace(plain_recipe, filtering=Filtering(threshold=0.0, reference=str(reference)))
    manifest = open_manifest(recipe.data)
    stores = Stores.open(recipe, manifest, device=torch.device("cpu"))
    with pytest.raises(ValueError, match="processes of this run differ in filtering.reference"):
        filter_manifest(recipe, manifest, stores, processes)
