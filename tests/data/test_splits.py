"""Held-out pairs share no image with the training pairs; stored embeddings stay valid."""

from dataclasses import replace

import pytest
from tests.data.tar_files import pair, write_shard

from drrho.cli import main
from drrho.data.index import IndexConfig, write_manifest
from drrho.data.manifest import Manifest, is_manifest
from drrho.data.reading.cache import OpenShards
from drrho.data.splits import hold_out
from drrho.recipe.train import train_recipe
from drrho.reference.reader import open_reference


def images_of(manifest):
    samples = OpenShards(manifest).read(manifest.usable_ids().tolist())
    return [sample.fields["jpg"] for sample in samples]


def indexed(folder, count, *, copies=1):
    image = pair(0)["jpg"]  # with a few bytes behind its end, which nobody decodes here
    rows = [{"jpg": image + b"%d" % (n // copies), "txt": b"text %d" % n} for n in range(count)]
    write_shard(folder / "a.tar", rows)
    return write_manifest(IndexConfig(data=str(folder)))[0]


@pytest.mark.parametrize("copies", [1, 3])
def test_no_image_is_on_both_sides(tmp_path, copies):
    manifest = indexed(tmp_path, 60 * copies, copies=copies)
    train, held_out = hold_out(manifest, pairs=None, seed=0)
    assert len(held_out.usable_ids()) == 20
    assert len(train.usable_ids()) == 40 * copies
    assert not set(images_of(train)) & set(images_of(held_out))
    assert len(set(images_of(held_out))) == 20
    again = hold_out(manifest, pairs=None, seed=0)[1].usable_ids()
    assert held_out.usable_ids().equal(again)
    assert not again.equal(hold_out(manifest, pairs=None, seed=1)[1].usable_ids())
    assert len(hold_out(manifest, pairs=7, seed=0)[1].usable_ids()) == 7


def test_too_few_images_are_said(tmp_path):
    with pytest.raises(ValueError, match="20 held-out pairs are more than half of the 12"):
        hold_out(indexed(tmp_path, 12), pairs=None, seed=0)


def test_both_sides_keep_ids_and_stored_embeddings(scenes, steered_recipe, tmp_path, capsys):
    source = scenes / "train" / "manifest.json"
    train, held_out = tmp_path / "train.json", tmp_path / "val.json"
    arguments = ["--output", str(train), "--held-out", str(held_out), "--pairs", "9"]
    assert main(["split", str(source), *arguments]) == 0
    assert "31 pairs; " in capsys.readouterr().out
    whole, *sides = map(Manifest.load, (source, train, held_out))
    assert len({whole.contents_sha256, *(side.contents_sha256 for side in sides)}) == 3
    for side in sides:
        assert side.num_samples == whole.num_samples
        assert open_reference(steered_recipe.reference, side).num_absent == 0
    recipe = replace(steered_recipe, data=str(train), output=str(tmp_path / "run"))
    assert train_recipe(recipe).samples_seen == 48
    assert is_manifest(train)
    assert not is_manifest(tmp_path / "run" / "recipe.json")
