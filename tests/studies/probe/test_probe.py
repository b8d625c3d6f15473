"""`drrho probe`: from files of losses, from stored losses, and from a recipe with pairs."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from drrho.cli import main
from drrho.data.indexing import open_manifest
from drrho.data.items import manifest_of_items
from drrho.data.subset import disjoint_halves, restricted
from drrho.recipe.arguments.command import recipe_of
from drrho.reference.losses.table import read_loss_table
from drrho.reference.losses.writer import LossWriter
from drrho.studies.probe.pairs import Pairs, common_pairs, reciprocal_ranks, with_distinct_texts
from drrho.studies.probe.probe import ProbeCommand

RECIPE = """
from dataclasses import replace
from drrho.contrastive.objectives.global_risk import DRRhoCLIP
from drrho.data.loading import Loading
from drrho.models.build import Model
from drrho.models.small import SmallConfig
from drrho.recipe.recipe import Recipe
from drrho.training.config import Training
from drrho.training.optimizer import Optimizer

recipe = Recipe(
    output="run", data={data!r}, reference="reference",
    loading=Loading(batch_size=8),
    model=Model(name="small", small=SmallConfig(
        embed_dim=8, image_width=2, text_width=8, text_layers=1, text_heads=1)),
    objective=DRRhoCLIP(reference_scale=0.5),
    training=Training(steps=8, optimizer=Optimizer(learning_rate=1e-3)),
    device="cpu",
)
"""


def losses(num=300, seed=0):
    generator = np.random.default_rng(seed)
    best, noise = generator.normal(size=num), generator.normal(size=(4, num))
    return {
        "one": best + noise[0],
        "two": best + noise[1],
        "good": best + 0.2 * noise[2],
        "bad": best + 3 * noise[3],
    }


def test_losses_in_a_file_are_ranked(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    held_out, train = losses(), losses(seed=1)
    held_out["bad"][7] = np.nan
    train["bad"] -= 3
    np.savez("held_out.npz", **held_out)
    np.savez("train.npz", **train)
    arguments = ["probe", "losses", "held_out.npz", "--pilots", "one", "two"]
    assert main([*arguments, "--train-losses", "train.npz", "--output", "probe"]) == 0
    printed = capsys.readouterr().out
    assert "299 held-out samples; 1 without a finite loss" in printed
    assert "ALARM: bad has a loss lower by" in printed
    document = json.loads((tmp_path / "probe" / "probe.json").read_text())
    assert list(document["references"]) == ["good", "bad"]
    good = document["references"]["good"]
    assert good["steerability"][0] > 0.8
    assert good["resolved"]
    assert not good["alarm"]
    assert document["references"]["bad"]["alarm"]
    assert (tmp_path / "probe" / "probe.md").read_text().strip() in printed
    with Image.open(tmp_path / "probe" / "probe.png") as picture:
        assert picture.size[0] > 500

    names = list(held_out)
    rows = np.stack([held_out[name] for name in names], axis=1)
    np.savetxt("held_out.csv", rows, delimiter=",", header=",".join(names), comments="")
    again = ["probe", "losses", "held_out.csv", "--pilots", "one", "two", "--reference", "good"]
    assert main(again) == 0
    rows = capsys.readouterr().out.splitlines()
    assert rows[2].startswith("| good")
    assert "bad" not in rows[3]


def test_stored_losses_are_a_table(tmp_path):
    manifest = manifest_of_items([bytes([i]) for i in range(12)], name="bytes", items_per_shard=8)
    for name, factor in (("a", 1.0), ("b", 2.0)):
        with LossWriter.open(tmp_path, manifest, reference=name, identity=name) as writer:
            writer.write(torch.arange(11), factor * torch.arange(11.0))
    table = read_loss_table(tmp_path)
    assert list(table) == ["a", "b"]
    torch.testing.assert_close(table["b"][:11], 2 * table["a"][:11])
    assert table["a"][11].isnan()
    with pytest.raises(ValueError, match=r"no losses of 'c'; it has: \['a', 'b'\]"):
        read_loss_table(tmp_path, needed=("c",))


def test_references_of_pairs_are_ranked(tmp_path, monkeypatch, scenes, reference, capsys):
    """One as a model, one as its stored embeddings: of the same pairs, the same answer."""
    monkeypatch.chdir(tmp_path)
    data, held_out = (str(scenes / name / "manifest.json") for name in ("train", "test"))
    (tmp_path / "recipe.py").write_text(RECIPE.format(data=data))
    model = f"run:{reference.parent / 'run'}"
    precompute = ["reference", "precompute", "--data", held_out, "--model", model]
    assert main([*precompute, "--output", "stored", "--device", "cpu"]) == 0
    arguments = ["probe", "recipe.py", "--held-out", held_out, "--output", "probe"]
    arguments += ["--reference", model, "--reference", "stored", "--resamples", "20"]
    assert main(arguments) == 0
    printed = capsys.readouterr().out
    document = json.loads((tmp_path / "probe" / "probe.json").read_text())
    assert document["pilot_steps"] == 2
    assert 10 <= document["held_out"] <= 12  # less those with the caption of another
    assert document["held_out"] + sum(document["not_used"].values()) == 12
    assert f"On {document['held_out']} held-out samples" in printed
    assert ("of 12; the others are not used (" in printed) == (document["held_out"] < 12)
    assert "Guessing reaches an MRR of 0." in printed
    named, stored = (document["references"][name] for name in (model, "stored"))
    # Stored in half precision.
    assert named["steerability"][0] == pytest.approx(stored["steerability"][0], abs=1e-2)
    assert 0 < named["effective_share"] <= 1
    value, low, high = named["mrr"]
    assert 0 < low <= value <= high <= 1
    assert value == pytest.approx(stored["mrr"][0], abs=0.05)
    assert [row["resolved"] for row in document["references"].values()][1] is None
    assert named["precompute_seconds"] > 0
    assert stored["precompute_seconds"] is None
    assert named["contamination"] is not None
    assert stored["contamination"] is None  # it has no embeddings of the training pairs
    assert "| stored" in printed
    halves = [open_manifest(str(tmp_path / f"probe/pilot-{k}/half.json")) for k in (1, 2)]
    ids = [set(half.usable_ids().tolist()) for half in halves]
    assert not ids[0] & ids[1]
    assert ids[0] | ids[1] == set(open_manifest(data).usable_ids().tolist())


def test_options_of_the_recipe_may_follow_it():
    own = ["--reference", "a", "--reference", "b", "--data", "d.json", "--pilot-steps", "3"]
    changes = ["--model.name", "small", "--batch-size=32", "--loading.views.scale", "0.5", "1"]
    config = ProbeCommand.from_arguments(["drrho_clip", *changes, *own])
    assert (config.recipe, config.reference, config.data) == ("drrho_clip", ("a", "b"), "d.json")
    assert config.changes == tuple(changes)
    recipe = recipe_of(config.recipe, list(config.changes[:3]))
    assert (recipe.model.name, recipe.loading.batch_size) == ("small", 32)
    with pytest.raises(ValueError, match="each reference once"):
        ProbeCommand(recipe="drrho_clip", reference=("a", "a"))


def test_pairs_are_ranked_by_the_reference_s_own_reciprocal_rank():
    """The right text of an image is first, second, and tied with the other two."""
    cosines = torch.tensor([[0.9, 0.1, 0.2], [0.5, 0.4, 0.3], [0.3, 0.3, 0.3]]).double()
    of_images = torch.tensor([1, 1 / 2, 1 / 2], dtype=torch.float64)  # ties rank in the middle
    of_texts = torch.tensor([1, 1, 1 / 1.5], dtype=torch.float64)
    torch.testing.assert_close(reciprocal_ranks(cosines), (of_images + of_texts) / 2)


def test_another_image_of_a_caption_is_no_negative():
    cosines = torch.rand(5, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    cosines[:, 3] = cosines[:, 1] + 1e-8
    pairs = Pairs(ids=torch.tensor([2, 4, 6, 8, 9]), cosines=cosines, rate=None)
    kept = with_distinct_texts(pairs)
    assert kept.ids.tolist() == [2, 4, 6, 9]
    torch.testing.assert_close(kept.cosines, cosines[[0, 1, 2, 4]][:, [0, 1, 2, 4]])
    other = Pairs(ids=torch.tensor([4, 8, 9]), cosines=cosines[:3, :3], rate=None)
    assert common_pairs({"one": pairs, "other": other})["other"].ids.tolist() == [4, 9]


def test_parts_keep_ids_and_contents(scenes):
    manifest = open_manifest(str(scenes / "train" / "manifest.json"))
    part = restricted(manifest, torch.tensor([3, 25]), reason="elsewhere")
    assert part.usable_ids().tolist() == [3, 25]
    assert [s.contents for s in part.shards] == [s.contents for s in manifest.shards]
    with pytest.raises(ValueError, match="two halves need two"):
        one = restricted(manifest, torch.tensor([3]), reason="elsewhere")
        disjoint_halves(one, generator=torch.Generator())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["losses", "nowhere.npz", "--pilots", "one", "two"], "nowhere.npz does not exist"),
        (["losses", "t.npz", "--pilots", "one", "three"], "no losses of 'three'"),
        (["losses", "t.npz", "--pilots", "one", "one"], "must be two models"),
        (["losses", "ragged.npz", "--pilots", "one", "two"], "one loss of every sample"),
        (["losses", "words.csv", "--pilots", "one", "two"], "something that is no number"),
        (["nowhere.py", "--held-out", "x", "--reference", "y"], "nowhere.py does not exist"),
    ],
)
def test_errors_name_the_thing(tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    np.savez("t.npz", **losses())
    np.savez("ragged.npz", one=np.zeros(3), two=np.zeros(4))
    (tmp_path / "words.csv").write_text("one,two\n1,many\n")
    assert main(["probe", *arguments]) == 1
    assert message in capsys.readouterr().err
