"""Fine-tuning: locks, adapters and rates by layer in whole runs, alone and with all else."""

import pickle
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from tests.processes import by_torchrun, finish, start_drrho
from tests.recipe.test_processes import RECIPE, transformer  # noqa: F401  a fixture
from tests.recipe.test_training import files_of, go_back
from torch.testing import assert_close

from drrho.cli import main
from drrho.contrastive.memory.temperature import Learned
from drrho.contrastive.objectives.clip import CLIP
from drrho.models.build import build_model, load_model
from drrho.models.lora import LoRA
from drrho.models.tuning import Tuning
from drrho.recipe.command import recipe_of
from drrho.recipe.named.finetune import FineTuningScale, finetune_recipe
from drrho.recipe.selection import Selection
from drrho.recipe.train import train_recipe
from drrho.training.log import read_metrics

LOCKED = Tuning(lock_image=True)
PARTLY = Tuning(
    lock_image=True,
    lock_image_unlocked_groups=2,
    lock_text=True,
    lock_text_unlocked_layers=1,
)
ADAPTED = Tuning(lora=LoRA(rank=2, dropout=0.1, targets=("c_fc", "c_proj")))
BOTH = Tuning(lock_text=True, lora=LoRA(rank=2))
TUNINGS = {"locked": LOCKED, "partly": PARTLY, "adapted": ADAPTED, "both": BOTH}


@pytest.fixture
def recipe(steered_recipe, transformer, tmp_path):  # noqa: F811
    return replace(steered_recipe, model=transformer, output=str(tmp_path / "run"))


def weights(run):
    return load_file(run / "model" / "open_clip_model.safetensors")


@pytest.mark.parametrize("name", TUNINGS)
def test_what_is_locked_stays_and_the_rest_moves(recipe, name, tmp_path):
    before = build_model(recipe.model, seed=0).module.state_dict()
    train_recipe(replace(recipe, tuning=TUNINGS[name]))
    after = weights(tmp_path / "run")
    assert after.keys() == before.keys(), "adapters are merged"
    moved = {name for name, value in before.items() if not torch.equal(value, after[name])}
    match name:
        case "locked":
            assert not any(it.startswith("visual.") for it in moved)
            assert "token_embedding.weight" in moved
        case "partly":
            assert {it for it in moved if not it.startswith("visual.")} == {"text_projection"}
            ends = ("visual.proj", "visual.ln_post.", "visual.transformer.resblocks.1.")
            assert all(it.startswith(ends) for it in moved - {"text_projection"})
            assert "visual.proj" in moved
        case "adapted":
            assert all(".mlp.c_" in it and it.endswith("weight") for it in moved)
            assert any(it.startswith("visual.") for it in moved)
        case "both":
            assert all(it.startswith("visual.") and it.endswith("weight") for it in moved)
            assert any(".attn.in_proj" in it for it in moved)


@pytest.mark.parametrize("name", TUNINGS)
def test_resumed_is_uninterrupted(recipe, name, tmp_path):
    recipe = replace(recipe, tuning=TUNINGS[name])
    whole = replace(recipe, output=str(tmp_path / "whole"))
    train_recipe(whole)
    train_recipe(recipe)
    go_back(tmp_path / "run", before=6)
    train_recipe(recipe)
    assert files_of(tmp_path / "run") == files_of(tmp_path / "whole")


@pytest.mark.parametrize("name", TUNINGS)
def test_micro_batches_and_recomputation_change_no_number_beyond_rounding(recipe, name, tmp_path):
    tuning = TUNINGS[name]
    if name == "adapted":  # dropout is drawn for a batch, whole or not
        tuning = replace(tuning, lora=replace(tuning.lora, dropout=0.0))
    train_recipe(replace(recipe, tuning=tuning))
    other = replace(recipe, tuning=tuning, micro_batch_size=3, gradient_checkpointing=True)
    train_recipe(replace(other, output=str(tmp_path / "other")))
    for one, expected in weights(tmp_path / "run").items():
        assert_close(weights(tmp_path / "other")[one], expected, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("name", ["locked", "both"])
def test_selection_scores_with_locked_towers_and_adapters(recipe, name, tmp_path):
    selection = Selection(batch_size=4, num_chunks=2, reference_temperature=0.07)
    recipe = replace(recipe, tuning=TUNINGS[name], selection=selection, micro_batch_size=3)
    assert train_recipe(recipe).samples_seen == 24


@pytest.mark.parametrize("name", ["partly", "both"])
def test_two_processes_train_what_one_trains(recipe, name, tmp_path):
    tuning = TUNINGS[name]
    train_recipe(replace(recipe, tuning=tuning))
    shared = replace(recipe, tuning=tuning, output=str(tmp_path / "shared"))
    (tmp_path / "recipe.py").write_text(
        RECIPE.format(pickle.dumps(replace(shared, micro_batch_size=2)))
    )
    processes = start_drrho(["train", str(tmp_path / "recipe.py")], by_torchrun(2))
    statuses, _, errors = finish(processes)
    assert statuses == [0, 0], errors
    for one, expected in weights(tmp_path / "run").items():
        assert_close(weights(tmp_path / "shared")[one], expected, rtol=1e-3, atol=1e-5)


def test_a_checkpoint_with_adapters_is_exported_merged(recipe, tmp_path):
    train_recipe(replace(recipe, tuning=BOTH))
    run, output = tmp_path / "run", tmp_path / "early.safetensors"
    for step, same in ((6, True), (4, False)):
        checkpoint = str(run / "checkpoints" / f"step-{step:08d}")
        arguments = ["export", str(run), "--format", "open-clip", "--output", str(output)]
        assert main([*arguments, "--checkpoint", checkpoint]) == 0
        found, final = load_file(output), load_model(run / "model").module.state_dict()
        assert found.keys() == final.keys()
        assert all(torch.equal(found[name], final[name]) for name in final) == same


def test_every_group_has_its_rate_in_the_log(recipe, tmp_path):
    optimizer = replace(
        recipe.training.optimizer, layer_decay=0.5, image_lr_scale=0.1, warmup_steps=0
    )
    training = replace(recipe.training, optimizer=optimizer)
    train_recipe(replace(recipe, training=training, tuning=PARTLY))
    row = read_metrics(tmp_path / "run")[0]
    rates = {name: value for name, value in row.items() if name.startswith("learning_rate/")}
    peak = row["learning_rate"]
    assert rates == pytest.approx(
        {
            "learning_rate/image/02": 0.05 * peak,
            "learning_rate/image/03": 0.1 * peak,
            "learning_rate/text/03": peak,
        }
    )


def test_the_temperature_has_its_rate_in_the_log(plain_recipe, tmp_path):
    optimizer = replace(plain_recipe.training.optimizer, temperature_lr_scale=0.25)
    training = replace(plain_recipe.training, optimizer=optimizer)
    recipe = replace(plain_recipe, training=training, objective=CLIP(temperature=Learned()))
    train_recipe(replace(recipe, output=str(tmp_path)))
    for row in read_metrics(tmp_path):
        assert row["learning_rate/temperature"] == 0.25 * row["learning_rate"]


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("image_lr_scale", 0.1, "nothing of the image tower is trained"),
        ("layer_decay", 0.5, "is one layer"),
    ],
)
def test_a_rate_without_effect_is_an_error(recipe, field, value, message):
    tuning = replace(LOCKED, lock_text=True, lock_text_unlocked_layers=1)
    optimizer = replace(recipe.training.optimizer, **{field: value})
    training = replace(recipe.training, optimizer=optimizer)
    with pytest.raises(ValueError, match=message):
        train_recipe(replace(recipe, training=training, tuning=tuning))


@pytest.mark.parametrize("decay", [0.0, 1.0, -0.5])
def test_layer_decay_is_a_factor(recipe, decay):
    with pytest.raises(ValueError, match="layer_decay must lie in"):
        replace(recipe.training.optimizer, layer_decay=decay)


def test_the_command_line_begins_adapters_and_locks(recipe):
    arguments = [
        *("--batch-size", "8", "--scale.samples-seen", "800", "--tuning.lock-image"),
        *("--tuning.lock-image-unlocked-groups", "2", "--tuning.lora.targets", "c_fc", "c_proj"),
        *("--training.optimizer.layer-decay", "0.8", "--model.pretrained", "None"),
        *("--model.name", recipe.model.name),
    ]
    found = recipe_of("finetune", arguments)
    assert found.tuning == Tuning(
        lock_image=True, lock_image_unlocked_groups=2, lora=LoRA(targets=("c_fc", "c_proj"))
    )
    assert found.training.steps == 100
    assert found.training.optimizer.warmup_steps == 5
    assert found.training.optimizer.layer_decay == 0.8
    assert found.model == recipe.model


def test_finetune_has_five_epochs_or_a_number_of_samples():
    assert finetune_recipe().training.epochs == 5
    assert finetune_recipe(FineTuningScale(epochs=2)).training.epochs == 2
    sized = finetune_recipe(FineTuningScale(batch_size=10, samples_seen=1000)).training
    assert (sized.steps, sized.epochs) == (100, None)
    with pytest.raises(ValueError, match="both give the length"):
        FineTuningScale(epochs=2, samples_seen=1000)


def test_finetune_trains_a_pretrained_model(recipe, tmp_path, capsys):
    arguments = [
        *("train", "finetune", "--model.name", recipe.model.name, "--model.pretrained", "None"),
        *("--data", recipe.data, "--reference", recipe.reference, "--output", recipe.output),
        *("--batch-size", "8", "--workers", "0", "--epochs", "1", "--device", "cpu"),
    ]
    assert main([*arguments, "--tuning.lock-image", "--dry-run"]) == 0
    assert "the image tower is locked; " in capsys.readouterr().out
    assert main([*arguments, "--tuning.lock-image"]) == 0
    assert main(["recipes"]) == 0
    assert "finetune" in capsys.readouterr().out
