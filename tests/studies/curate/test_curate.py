"""Ranking a data set's pairs, and training on what is left."""

import csv
from dataclasses import replace

import pyarrow.parquet
import pytest
import torch

from drrho.cli import main
from drrho.contrastive.objectives.global_risk import FastCLIP
from drrho.data.indexing import index_shards, open_manifest
from drrho.data.scenes import ScenesConfig, write_scenes
from drrho.data.views import Views
from drrho.recipe.folder import read_run
from drrho.recipe.train import train_recipe
from drrho.reference.build import PrecomputeConfig, precompute_reference
from drrho.reference.reader import open_reference
from drrho.runtime.records import read_record
from drrho.studies.curate import curate as curating
from drrho.studies.curate.curate import (
    CurateConfig,
    CurationSummary,
    Quality,
    curate,
    find_repeats,
    label_pairs,
)
from drrho.studies.curate.pair_quality import PairScores


@pytest.fixture(scope="module")
def run(steered_recipe, tmp_path_factory):
    folder = tmp_path_factory.mktemp("curated")
    train_recipe(replace(steered_recipe, output=str(folder / "run")))
    return folder / "run"


@pytest.fixture(scope="module")
def found(run):
    """Curated with a given share, since a reference of a few steps knows nothing."""
    config = CurateConfig(
        run=str(run),
        output=str(run.parent / "out"),
        mismatched_share=0.25,
        duplicate_similarity=None,
        drop=("mismatched",),
        negatives=16,
        device="cpu",
    )
    return curate(config)


def test_every_pair_is_in_the_table_with_its_ranks(found, run):
    with found.table.open() as file:
        rows = list(csv.DictReader(file))
    assert [int(row["sample_id"]) for row in rows] == list(range(40))
    for name in ("mismatched_rank", "learnable_rank"):
        assert sorted(int(row[name]) for row in rows) == list(range(1, 41))
    called = {row["sample_id"] for row in rows if row["label"] == "mismatched"}
    assert called == {row["sample_id"] for row in rows if int(row["mismatched_rank"]) <= 10}
    best = min(rows, key=lambda row: int(row["learnable_rank"]))
    assert float(best["excess_loss"]) == max(float(row["excess_loss"]) for row in rows)
    assert found.summary.kept == 30
    assert read_record(run.parent / "out" / "summary.json", CurationSummary) == found.summary


def test_training_takes_the_filtered_manifest_with_the_same_reference(found, steered_recipe, run):
    """The ids are the same, so the reference fits; but it is another run's data."""
    manifest = open_manifest(found.manifest)
    assert len(manifest.usable_ids()) == 30
    output = str(run.parent / "again")
    results = train_recipe(replace(steered_recipe, data=str(found.manifest), output=output))
    assert results.samples_seen == 48
    with pytest.raises(ValueError, match="data_sha256"):
        train_recipe(replace(steered_recipe, output=output))


def test_keep_takes_the_largest_excess_losses(run, tmp_path):
    config = CurateConfig(
        run=str(run),
        output=str(tmp_path),
        keep=0.5,
        mismatched_share=0.0,
        drop=(),
        negatives=16,
        format="parquet",
        device="cpu",
    )
    found = curate(config)
    rows = pyarrow.parquet.read_table(found.table).to_pylist()
    kept = set(open_manifest(found.manifest).usable_ids().tolist())
    assert len(kept) == 20
    assert kept == {row["sample_id"] for row in rows if row["learnable_rank"] <= 20}


def test_repetitions_are_found_across_tiles(reference, tmp_path, monkeypatch):
    """The same scenes twice, as two shards."""
    for name in ("a", "b"):
        write_scenes(tmp_path / name, ScenesConfig(num_samples=9, seed=5))
    (shard,) = (tmp_path / "b").glob("*.tar")
    shard.rename(tmp_path / "a" / "again.tar")
    manifest = index_shards(tmp_path / "a")
    manifest.save(tmp_path / "m.json")
    precompute_reference(
        PrecomputeConfig(
            data=str(tmp_path / "m.json"),
            model=f"run:{reference.parent / 'run'}",
            output=str(tmp_path / "r"),
            device="cpu",
        )
    )
    store = open_reference(tmp_path / "r", manifest)
    expected = find_repeats(store, torch.arange(18), similarity=0.9995)
    assert expected[9:].tolist() == list(range(9))
    monkeypatch.setattr(curating, "TILE", 4)
    again = find_repeats(store, torch.arange(18), similarity=0.9995)
    assert again.tolist() == expected.tolist()


def test_several_references_are_one(run, reference, tmp_path):
    """A run that was steered by the mean of two: here of one and itself."""
    copy = tmp_path / "copy"
    copy.symlink_to(reference)
    found = read_run(run)
    manifest = open_manifest(found.recipe.data)
    several = replace(found, recipe=replace(found.recipe, reference=(str(reference), str(copy))))
    ids = torch.arange(4)
    single, mean = found.open_reference(manifest), several.open_reference(manifest)
    assert single is not None and mean is not None
    one, two = (store.gather(ids).pairs for store in (single, mean))
    torch.testing.assert_close(two.image @ two.text.T, one.image @ one.text.T)
    without = replace(found, recipe=replace(found.recipe, reference=None, objective=FastCLIP()))
    assert without.open_reference(manifest) is None
    loading = replace(found.recipe.loading, views=Views(count=2))
    of_views = replace(found, recipe=replace(found.recipe, loading=loading))
    with pytest.raises(ValueError, match="was trained on views"):
        of_views.open_reference(manifest)


def test_labels_come_in_their_order():
    quality = Quality(
        torch.arange(4),
        PairScores(
            similarity=torch.zeros(4, 2),
            loss=torch.tensor([[0.0, 0.0, x] for x in (1.0, 1.0, -1.0, 1.0)]),
            rank=torch.tensor([-0.1, -5.0, -5.0, -5.0]),
            chance_rank=torch.zeros(4),
        ),
    )
    repeats = torch.tensor([-1, 0, -1, -1])
    assert label_pairs(quality, repeats, share=0.25) == [
        "mismatched",
        "redundant",
        "learned",
        "learnable",
    ]


def test_what_cannot_be_done_is_refused(plain_recipe, run, tmp_path, capsys):
    train_recipe(replace(plain_recipe, output=str(tmp_path / "plain")))
    assert main(["curate", str(tmp_path / "plain"), "--output", str(tmp_path)]) == 1
    assert "trained without a reference" in capsys.readouterr().err
    with pytest.raises(ValueError, match="no pair would be left"):
        curate(
            CurateConfig(
                run=str(run), output=str(tmp_path), mismatched_share=1.0, negatives=8, device="cpu"
            )
        )
    with pytest.raises(ValueError, match="keep must be between"):
        CurateConfig(run="r", output="o", keep=2.0)
    with pytest.raises(ValueError, match="no effect with duplicate_similarity"):
        CurateConfig(run="r", output="o", duplicate_similarity=None)
