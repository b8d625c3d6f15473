"""A dry run finds what a run would fail on, describes it, and writes nothing."""

import shutil
from dataclasses import replace

import pytest
import torch
from PIL import Image
from tests.small_runs import TINY

from drrho.cli import main
from drrho.contrastive.objectives.global_risk import FastCLIP
from drrho.models.build import Model, build_model
from drrho.recipe.filtering import Filtering
from drrho.recipe.named.published import Scale, named_recipe
from drrho.recipe.plan import activation_bytes, describe_objective, plan_run, sizes_of
from drrho.recipe.train import train_recipe


def test_a_plan_says_what_the_run_does_and_writes_nothing(steered_recipe, reference, tmp_path):
    recipe = replace(
        steered_recipe,
        output=str(tmp_path / "run"),
        filtering=Filtering(kept_fraction=0.5),
    )
    plan = plan_run(recipe)
    assert list(tmp_path.iterdir()) == []
    assert "40 samples in 2 shards, 0 unusable; 8 were read" in plan
    assert "20 of 40 pairs kept" in plan
    assert "reference    " + str(reference) in plan and "0 samples without embeddings" in plan
    assert "DRRho-CLIP" in plan and "temperature constant 0.07" in plan
    assert "6 of 8 pairs: 48 samples seen, 3 passes over 20 usable pairs" in plan
    assert "gamma        1 at the start, 0.5 at the end" in plan
    assert "12 samples, retrieval, zero-shot" in plan
    assert "a new run" in plan
    results = train_recipe(recipe)
    assert results.filtering.num_kept == 20 and results.samples_seen == 48
    assert "holds this run, finished" in plan_run(recipe)
    (tmp_path / "run" / "results.json").rename(tmp_path / "results.json")
    assert "continues at step-00000006" in plan_run(recipe)
    (tmp_path / "results.json").rename(tmp_path / "run" / "results.json")
    with pytest.raises(ValueError, match="holds a run of another recipe"):
        plan_run(replace(recipe, seed=5))


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("fastclip_v0", "temperature learned 0.07, without the factor tau"),
        ("fastclip_v3", "temperature learned 0.07, rho 11.0"),
        ("jest", "64 of 320 pairs by JEST on excess, score and draws as published"),
    ],
)
def test_variants_of_an_objective_are_told_apart(name, words):
    recipe = named_recipe(name, Scale(batch_size=64, samples_seen=6400))
    assert describe_objective(recipe).endswith(words)


def test_what_a_run_would_fail_on_is_found(plain_recipe, steered_recipe, tmp_path):
    output = str(tmp_path / "run")
    for recipe, error, message in (
        (replace(plain_recipe, data="none.json"), FileNotFoundError, "none.json"),
        (replace(steered_recipe, reference="nowhere"), FileNotFoundError, "nowhere"),
        (replace(plain_recipe, model=Model(name="ViT-B-99")), ValueError, "ViT-B-99"),
        (
            replace(plain_recipe, evaluation=replace(plain_recipe.evaluation, data="nothing")),
            FileNotFoundError,
            "nothing",
        ),
        (
            replace(plain_recipe, loading=replace(plain_recipe.loading, batch_size=64)),
            ValueError,
            "at most the number of usable samples",
        ),
    ):
        with pytest.raises(error, match=message):
            plan_run(replace(recipe, output=output))
    assert list(tmp_path.iterdir()) == []


def test_missing_shards_are_named(plain_recipe, scenes, tmp_path):
    shutil.copytree(scenes / "train", tmp_path / "train")
    shard = sorted((tmp_path / "train").glob("*.tar"))[0]
    shard.unlink()
    recipe = replace(plain_recipe, data=str(tmp_path / "train" / "manifest.json"))
    with pytest.raises(FileNotFoundError, match="1 of 2 shards are missing"):
        plan_run(recipe)


def test_sizes_are_those_of_the_model_and_of_the_state(plain_recipe):
    model = build_model(TINY, seed=0)
    parameters = sum(p.numel() for p in model.module.parameters())
    fast = replace(plain_recipe, objective=FastCLIP())
    one = sizes_of(fast, model, num_samples=1000, num_processes=1)
    assert one.parameters == parameters
    assert one.model_and_optimizer == 16 * parameters
    assert one.per_sample == 8_000
    assert one.checkpoints == 3 * (12 * parameters + 8_000)
    two = sizes_of(replace(fast, parallel="sharded"), model, num_samples=1000, num_processes=2)
    assert two.model_and_optimizer == 8 * parameters
    assert (two.per_sample, two.activations) == (4_000, one.activations // 2)
    recomputed = replace(fast, gradient_checkpointing=True)
    assert sizes_of(recomputed, model, num_samples=1, num_processes=1).activations is None


def test_activations_are_what_autograd_keeps():
    """Of a layer whose input and output it is known to keep, per pair."""

    class Linear(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Linear(3 * 32 * 32, 5)

        def encode_image(self, images, *, normalize):
            return self.layer(images.flatten(1)).exp()

        def encode_text(self, tokens, *, normalize):
            return tokens.float()

    model = replace(build_model(TINY, seed=0), module=Linear())
    size = model.train_transform(Image.new("RGB", (8, 8))).numel()
    model.module.layer = torch.nn.Linear(size, 5)
    assert activation_bytes(model, precision="float32") == 4 * (size + 5)
    assert model.module.training


def test_the_command(plain_recipe, reference, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["recipes"]) == 0
    assert "drrho_clip_distillation" in capsys.readouterr().out
    assert main(["train"]) == 2
    assert "published recipes" in capsys.readouterr().out
    small = ["--data", plain_recipe.data, "--model.name", "small", "--loading.workers", "0"]
    scale = ["--scale.batch-size", "5", "--scale.samples-seen=1000", "--device", "cpu"]
    command = ["train", "drrho_clip", *small, *scale, "--dry-run"]
    assert main([*command, "--reference", str(reference)]) == 0
    printed = capsys.readouterr().out
    assert "200 of 5 pairs: 1,000 samples seen" in printed
    assert "linear to 0.0003125 in 10 steps" in printed
    twice = [str(reference), f"{reference}/."]
    weighted = ["--reference", *twice, "--reference-weights", "0.5", "0.5"]
    assert main([*command, *weighted]) == 0
    assert f"{twice[0]} and {twice[1]}: 16 dimensions" in capsys.readouterr().out
    assert main([*command, "--reference", "nowhere"]) == 1
    assert "nowhere" in capsys.readouterr().err
    assert main(["train", "drrho_clap", "--dry-run"]) == 2
    assert "near it: ['drrho_clip'" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
