"""Ranking a data set's pairs, and training on what is left."""

import csv
import re
import shutil
from dataclasses import replace

import pyarrow.parquet
import pytest
import torch

from drrho.cli import main
from drrho.contrastive.objectives.global_risk import FastCLIP
from drrho.contrastive.pairs import PairEmbeddings
from drrho.data.indexing import index_shards, open_manifest
from drrho.data.scenes import ScenesConfig, write_scenes
from drrho.data.views import Views
from drrho.encoding.encoder import EmbeddingModel
from drrho.recipe.folder import read_run
from drrho.recipe.train import train_recipe
from drrho.reference.build import PrecomputeConfig, precompute_reference
from drrho.reference.reader import open_reference
from drrho.runtime.records import read_record
from drrho.studies.curate import scores as scoring
from drrho.studies.curate.curate import CurateConfig, CurationSummary, curate
from drrho.studies.curate.gallery import Shown, write_gallery
from drrho.studies.curate.labels import label_pairs
from drrho.studies.curate.pair_quality import PairScores
from drrho.studies.curate.scores import Quality, find_repeats


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


def test_the_gallery_shows_what_would_be_left_out(found, run):
    assert found.gallery == run.parent / "out" / "gallery.html"
    page = found.gallery.read_text()
    assert "Mismatched: 10 pairs, dropped" in page
    learned = found.summary.labels.get("learned", 0)
    assert f"Learned: {learned} pairs, not dropped" in page
    assert page.count('src="data:image/jpeg;base64,') == 10 + learned
    addresses = re.findall(r'(?:src|href)="([^"#][^"]*)"', page)
    assert all(address.startswith("data:") for address in addresses)
    with found.table.open() as file:
        wrong = [row for row in csv.DictReader(file) if row["label"] == "mismatched"]
    clearest = min(wrong, key=lambda row: int(row["mismatched_rank"]))
    assert page.index(f"id {clearest['sample_id']}<") == min(
        page.index(f"id {row['sample_id']}<") for row in wrong
    )


def gallery(quality, labels, repeats, tmp_path, scenes, **shown):
    manifest = open_manifest(str(scenes / "train" / "manifest.json"))
    path = tmp_path / "gallery.html"
    options = {"number": 2, "dropped": ("redundant",)} | shown
    write_gallery(path, manifest, quality, labels, repeats, shown=Shown(**options))
    return path.read_text()


def test_a_gallery_escapes_captions_and_shows_the_doubtful_beside_the_clear(tmp_path, scenes):
    evil = "<script>alert(1)</script>"
    scores = PairScores(
        similarity=torch.zeros(4, 2),
        loss=torch.zeros(4, 3),
        rank=torch.tensor([-3.0, -1.0, -2.0, -0.5]),
        chance_rank=torch.zeros(4),
    )
    texts = [(f"key {place}", f"{evil} {place}") for place in range(4)]
    nothing = PairEmbeddings(torch.zeros(0, 1), torch.zeros(0, 1))
    quality = Quality(torch.arange(4), texts, scores, nothing, 0)
    page = gallery(quality, ["mismatched"] * 4, torch.full((4,), -1), tmp_path, scenes)
    assert evil not in page
    assert "&lt;script&gt;" in page
    assert re.findall(r"key (\d), id", page) == ["3", "0"]  # the clearest, the most doubtful
    assert "finds 61% of the others closer" in page
    labels = ["learnable", "redundant", "learnable", "learnable"]
    page = gallery(quality, labels, torch.tensor([-1, 0, -1, -1]), tmp_path, scenes)
    assert re.findall(r"key (\d), id", page) == ["1", "0"]  # beside the pair that it repeats
    assert "Redundant: 1 pairs, dropped" in page


def test_no_gallery_is_written_where_none_is_wanted(run, tmp_path):
    config = CurateConfig(
        str(run), output=str(tmp_path), mismatched_share=0.1, gallery=0, negatives=16, device="cpu"
    )
    assert curate(config).gallery is None
    assert not (tmp_path / "gallery.html").exists()
    with pytest.raises(ValueError, match="gallery must not be negative"):
        replace(config, gallery=-1)


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
    monkeypatch.setattr(scoring, "TILE", 4)
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


@pytest.fixture(scope="module")
def with_held_out(run, scenes, reference, tmp_path_factory):
    """A run whose recipe names held-out pairs and the reference's stored embeddings of them."""
    folder = tmp_path_factory.mktemp("held_out")
    precompute_reference(
        PrecomputeConfig(
            data=str(scenes / "test" / "manifest.json"),
            model=f"run:{reference.parent / 'run'}",
            output=str(folder / "stored"),
            device="cpu",
        )
    )
    recipe = read_run(run).recipe
    evaluation = replace(recipe.evaluation, references=(str(folder / "stored"),))
    train_recipe(replace(recipe, output=str(folder / "run"), evaluation=evaluation))
    return folder


@pytest.mark.parametrize("given", [False, True])
def test_a_reference_too_weak_to_judge_ranks_only(given, run, with_held_out, scenes, capsys):
    """The held-out pairs are those that the run's recipe names, or those that are given."""
    held_out = ["--held-out", str(scenes / "test" / "manifest.json")]
    held_out += ["--held-out-reference", str(with_held_out / "stored")]
    arguments = ["curate", str(run), *held_out] if given else ["curate", f"{with_held_out / 'run'}"]
    output = with_held_out / f"out-{given}"
    assert main([*arguments, "--output", str(output), "--negatives", "16"]) == 0
    printed = capsys.readouterr().out
    assert "too weak to call captions mismatched with a precision of 0.95" in printed
    assert "among 12 held-out pairs" in printed
    assert "No manifest was written" in printed
    assert not (output / "manifest.json").exists()
    summary = read_record(output / "summary.json", CurationSummary)
    assert summary.judgement is not None and summary.judgement.held_out == 12
    assert "mismatched" not in summary.labels
    with (output / "pairs.csv").open() as file:
        first = next(csv.DictReader(file))
    assert first["key"] == "00000000"
    assert first["caption"].startswith("a ")


def test_without_held_out_pairs_nothing_is_called_mismatched(run, tmp_path, capsys):
    output = str(tmp_path / "out")
    assert main(["curate", str(run), "--output", output, "--negatives", "16"]) == 0
    assert "No caption is called mismatched" in capsys.readouterr().out
    arguments = ["curate", str(run), "--output", output, "--drop", "mismatched"]
    assert main(arguments) == 1
    assert "--held-out-reference" in capsys.readouterr().err


def test_held_out_embeddings_of_another_reference_are_refused(run, scenes, tmp_path):
    precompute_reference(
        PrecomputeConfig(
            data=str(scenes / "test" / "manifest.json"),
            model=f"run:{run}",
            output=str(tmp_path / "other"),
            device="cpu",
        )
    )
    held_out = {"held_out": str(scenes / "test" / "manifest.json"), "device": "cpu"}
    config = CurateConfig(run=str(run), output=str(tmp_path / "out"), **held_out)
    with pytest.raises(ValueError, match="needs held_out_reference"):
        curate(config)
    with pytest.raises(ValueError, match="is of another reference"):
        curate(replace(config, held_out_reference=(str(tmp_path / "other"),)))


def test_pairs_that_are_not_finite_are_counted_and_not_ranked(run, tmp_path, monkeypatch, capsys):
    encode = EmbeddingModel.encode_pairs

    def encode_pairs(self, images, captions):
        pairs = encode(self, images, captions)
        pairs.image[0] = torch.nan
        return pairs

    monkeypatch.setattr(EmbeddingModel, "encode_pairs", encode_pairs)
    arguments = ["curate", str(run), "--output", str(tmp_path), "--drop", "redundant"]
    assert main([*arguments, "--batch-size", "8", "--negatives", "30"]) == 0
    assert "6 pairs are not ranked: their embeddings are not finite" in capsys.readouterr().out
    with (tmp_path / "pairs.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 34
    assert not any("nan" in value for row in rows for value in row.values())
    kept = set(open_manifest(tmp_path / "manifest.json").usable_ids().tolist())
    assert kept <= {int(row["sample_id"]) for row in rows}


def test_no_manifest_but_curation_s_own_is_replaced(run, scenes, tmp_path):
    data = tmp_path / "data"
    shutil.copytree(scenes / "train", data)
    before = (data / "manifest.json").read_bytes()
    config = CurateConfig(
        run=str(run), output=str(data), data=str(data / "manifest.json"), keep=0.5, device="cpu"
    )
    with pytest.raises(ValueError, match=r"manifest.json is what is curated; name another folder"):
        curate(config)
    with pytest.raises(ValueError, match="is no earlier curation's"):
        curate(replace(config, data=None))
    assert (data / "manifest.json").read_bytes() == before
    twice = replace(config, output=str(tmp_path / "out"), negatives=16)
    assert curate(twice).manifest == curate(twice).manifest


def test_labels_come_in_their_order():
    quality = Quality(
        torch.arange(4),
        [("key", "caption")] * 4,
        PairScores(
            similarity=torch.zeros(4, 2),
            loss=torch.tensor([[0.0, 0.0, x] for x in (1.0, 1.0, -1.0, 1.0)]),
            rank=torch.tensor([-0.1, -5.0, -5.0, -5.0]),
            chance_rank=torch.zeros(4),
        ),
        PairEmbeddings(torch.zeros(2, 4), torch.zeros(2, 4)),
        0,
    )
    repeats, mismatched = torch.tensor([-1, 0, -1, -1]), torch.tensor([True, False, False, False])
    assert label_pairs(quality, repeats, mismatched) == [
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
                run=str(run),
                output=str(tmp_path),
                mismatched_share=1.0,
                drop=("mismatched",),
                negatives=8,
                device="cpu",
            )
        )
    with pytest.raises(ValueError, match="keep must be between"):
        CurateConfig(run="r", output="o", keep=2.0)
    with pytest.raises(ValueError, match="no effect with duplicate_similarity"):
        CurateConfig(run="r", output="o", drop=("redundant",), duplicate_similarity=None)
