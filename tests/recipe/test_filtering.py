"""Filtering leaves pairs out before training; ids, order and what is left stay theirs."""

from dataclasses import replace

import pytest
import torch

from drrho.data.manifest import Manifest
from drrho.data.order import epoch_order, steps_per_epoch
from drrho.recipe.document import read_run_results
from drrho.recipe.filtering import Filtering, filtered
from drrho.recipe.recipe import Evaluation
from drrho.recipe.train import train_recipe
from drrho.reference.reader import open_reference
from drrho.runtime.distributed import Processes
from drrho.training.log import read_metrics

ALONE = Processes()


@pytest.fixture(scope="module")
def stored(plain_recipe, reference):
    manifest = Manifest.load(plain_recipe.data)
    return manifest, open_reference(reference, manifest)


def similarities(store, manifest):
    found = store.gather(torch.arange(manifest.num_samples))
    return (found.image * found.text).sum(dim=1)


def test_the_most_alike_fraction_is_kept_and_ids_stay(stored):
    manifest, store = stored
    left, report = filtered(manifest, store, Filtering(kept_fraction=0.3), ALONE)
    expected = similarities(store, manifest).topk(12).indices.sort().values
    assert left.usable_ids().tolist() == expected.tolist()
    assert (report.num_pairs, report.num_kept, report.num_below) == (40, 12, 28)
    assert left.num_samples == 40 and left.offsets == manifest.offsets
    assert steps_per_epoch(left, batch_size=4) == 3
    order = epoch_order(left, seed=0, epoch=0, shuffle_window=1)
    assert sorted(order.tolist()) == expected.tolist()


def test_a_threshold_keeps_what_reaches_it(stored):
    manifest, store = stored
    values = similarities(store, manifest)
    threshold = float(values.median())
    left, report = filtered(manifest, store, Filtering(threshold=threshold), ALONE)
    assert left.usable_ids().tolist() == (values >= threshold).nonzero().flatten().tolist()
    assert report.threshold == threshold
    with pytest.raises(ValueError, match="leaves none of 40 pairs.*highest similarity"):
        filtered(manifest, store, Filtering(threshold=1.5), ALONE)


def test_processes_share_the_reading_and_decide_alike(stored, monkeypatch):
    manifest, store = stored
    config = Filtering(kept_fraction=0.5)
    alone, report = filtered(manifest, store, config, ALONE)
    parts = []
    for turn in range(2):  # first what each process reads, then what all of them know
        for rank in range(2):
            processes = replace(ALONE, rank=rank, size=2)
            gather = (lambda own: parts.append(own) or [own, own]) if turn == 0 else None
            monkeypatch.setattr(
                Processes,
                "all_gather_object",
                lambda self, own, g=gather: g(own) if g else parts[:2],
            )
            if turn == 0:
                with pytest.raises(KeyError):  # of the other's shard
                    filtered(manifest, store, config, processes)
            else:
                left, found = filtered(manifest, store, config, processes)
                assert found == report
                assert left.usable_ids().tolist() == alone.usable_ids().tolist()
    assert [list(part) for part in parts] == [[0], [1]]


def test_a_saved_index_holds_no_filter(stored, tmp_path):
    manifest, store = stored
    left, _ = filtered(manifest, store, Filtering(kept_fraction=0.5), ALONE)
    left.save(tmp_path / "left.json")
    assert len(Manifest.load(tmp_path / "left.json").usable_ids()) == 40


def test_a_run_trains_on_what_is_left_and_goes_on(plain_recipe, reference, tmp_path):
    recipe = replace(
        plain_recipe,
        output=str(tmp_path / "run"),
        filtering=Filtering(kept_fraction=0.4, reference=str(reference)),
        evaluation=Evaluation(),
        training=replace(plain_recipe.training, evaluate_every=None),
    )
    results = train_recipe(recipe)
    assert results.filtering.num_kept == 16
    assert results.epochs == 3  # 6 steps of 8 of 16
    assert results.samples_seen == 48 and results.skipped == {}
    (tmp_path / "run" / "results.json").unlink()
    rows = read_metrics(tmp_path / "run")
    assert train_recipe(recipe).samples_seen == 48
    assert read_metrics(tmp_path / "run")[: len(rows)] == rows
    other = replace(recipe, filtering=replace(recipe.filtering, kept_fraction=0.5))
    with pytest.raises(ValueError, match="another recipe"):
        train_recipe(other)
    assert read_run_results(tmp_path / "run").filtering == results.filtering


def test_filters_that_make_no_sense_are_refused(plain_recipe, steered_recipe):
    with pytest.raises(ValueError, match="one of kept_fraction and threshold"):
        Filtering()
    with pytest.raises(ValueError, match="must be in"):
        Filtering(kept_fraction=1.0)
    config = Filtering(threshold=0.2)
    with pytest.raises(ValueError, match="filtering needs the similarities of a reference"):
        replace(plain_recipe, filtering=config)
    with pytest.raises(ValueError, match="'plain' has no effect with filtering"):
        replace(steered_recipe, filtering=config, missing_reference="plain")


def test_an_ensemble_steers_as_one_reference(steered_recipe, reference, tmp_path):
    """Two copies of one reference, weighted a and 1 - a, are that reference."""
    copy = tmp_path / "copy"
    copy.symlink_to(reference)
    recipe = replace(
        steered_recipe,
        evaluation=Evaluation(),
        training=replace(steered_recipe.training, steps=2, evaluate_every=None),
    )
    one = train_recipe(replace(recipe, output=str(tmp_path / "one")))
    two = train_recipe(
        replace(
            recipe,
            output=str(tmp_path / "two"),
            reference=(str(reference), str(copy)),
            reference_weights=(0.3, 0.7),
        )
    )
    assert two.metrics["loss"] == pytest.approx(one.metrics["loss"], rel=1e-5)
    assert two.reference["weights"] == [0.3, 0.7]
    with pytest.raises(ValueError, match="reference_weights = .* has no effect on 1 references"):
        replace(recipe, reference_weights=(1.0,))
    with pytest.raises(ValueError, match="different folders"):
        replace(recipe, reference=(str(reference), str(reference)))
