"""Fine-tuning: locks, adapters and rates by layer in whole runs, alone and with all else."""

import json
import pickle
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tests.processes import by_torchrun, finish, start_drrho
from tests.recipe.test_processes import RECIPE, transformer  # noqa: F401  a fixture
from tests.recipe.test_training import files_of, go_back
from torch.testing import assert_close

from drrho.cli import main
from drrho.contrastive.memory.temperature import Learned, PerSample
from drrho.contrastive.objectives.clip import CLIP
from drrho.contrastive.objectives.global_risk import FastCLIP
from drrho.models.build import Model, build_model, load_model
from drrho.models.lora import LoRA
from drrho.models.tuning import Tuning
from drrho.recipe.arguments.command import recipe_of
from drrho.recipe.named.finetune import FineTuningScale, finetune_recipe
from drrho.recipe.plan import plan_run
from drrho.recipe.selection import Selection
from drrho.recipe.train import train_recipe
from drrho.training.averaging import EMA
from drrho.training.checkpoint import list_checkpoints
from drrho.training.log import read_metrics
from drrho.training.optimizer import Optimizer
from drrho.training.tensor_files import read_tensors

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
    with pytest.raises(ValueError, match="layer_decay must be in"):
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


def averaged(recipe, **changes):
    training = replace(recipe.training, ema=EMA(decay=0.5), **changes)
    return replace(recipe, training=training)


@pytest.mark.parametrize("tuning", [Tuning(), BOTH])
def test_the_average_of_the_weights_is_evaluated_saved_and_exported(recipe, tuning, tmp_path):
    """It is the recursion itself, over the weights of every step."""
    recipe = replace(averaged(recipe, checkpoint_every=1, keep_checkpoints=6), tuning=tuning)
    results = train_recipe(recipe)
    run = tmp_path / "run"
    steps = [read_tensors(it) for it in list_checkpoints(run / "checkpoints")]
    names = [n.removeprefix("model.") for n in steps[0] if n.startswith("model.")]
    expected = {name: steps[0][f"model.{name}"] for name in names}
    for step in steps[1:]:
        for name in names:
            expected[name] = torch.lerp(expected[name], step[f"model.{name}"], 0.5)
    for name in names:
        assert_close(steps[-1][f"ema.module.{name}"], expected[name], rtol=0, atol=0)
    found = load_model(run / "ema" / "model").module.state_dict()
    plain = load_model(run / "model").module.state_dict()
    assert found.keys() == plain.keys()
    assert any(not torch.equal(found[name], plain[name]) for name in plain)
    rows = read_metrics(run)
    assert [("ema/mrr" in row) for row in rows] == [("evaluation/mrr" in row) for row in rows]
    assert results.metrics["ema/mrr"] == rows[-1]["ema/mrr"]
    model = build_model(Model(f"run:{run}/ema"), seed=0).module
    for checkpoint in ([], ["--checkpoint", str(list_checkpoints(run / "checkpoints")[-1])]):
        output = tmp_path / "average.safetensors"
        arguments = ["export", str(run), "--ema", "--format", "open-clip", "--output", str(output)]
        assert main([*arguments, *checkpoint]) == 0
        exported = load_file(output)
        assert all(torch.equal(exported[n], v) for n, v in model.state_dict().items())


@pytest.mark.parametrize("tuning", [Tuning(), BOTH])
def test_a_resumed_average_is_the_uninterrupted_one(recipe, tuning, tmp_path):
    recipe = replace(averaged(recipe), tuning=tuning, micro_batch_size=3)
    train_recipe(replace(recipe, output=str(tmp_path / "whole")))
    train_recipe(recipe)
    go_back(tmp_path / "run", before=6)
    train_recipe(recipe)
    run, whole = tmp_path / "run", tmp_path / "whole"
    assert files_of(run) == files_of(whole)
    name = "ema/model/open_clip_model.safetensors"
    assert (run / name).read_bytes() == (whole / name).read_bytes()


def test_the_best_model_may_be_the_average(recipe, tmp_path):
    train_recipe(averaged(recipe, keep_best="ema/mrr"))
    best = load_file(tmp_path / "run" / "best" / "model" / "open_clip_model.safetensors")
    step = json.loads((tmp_path / "run" / "best" / "best.json").read_text())["step"]
    checkpoint = read_tensors(tmp_path / "run" / "checkpoints" / f"step-{6:08d}")
    if step == 6:
        assert all(torch.equal(v, checkpoint[f"ema.module.{n}"]) for n, v in best.items())
    last = weights(tmp_path / "run")
    assert any(not torch.equal(value, last[name]) for name, value in best.items())


@pytest.mark.parametrize(
    ("options", "message"),
    [({"decay": 0.0}, "decay must be in"), ({"decay": 1.0}, "decay must be in")],
)
def test_the_decay_of_the_average_is_checked(options, message):
    with pytest.raises(ValueError, match=message):
        EMA(**options)


def test_a_run_without_an_average_exports_none(recipe, tmp_path, capsys):
    train_recipe(recipe)
    arguments = ["--ema", "--format", "open-clip", "--output", str(tmp_path / "x.pt")]
    assert main(["export", recipe.output, *arguments]) == 1
    assert "was trained without training.ema" in capsys.readouterr().err


def resting(recipe, steps):
    optimizer = replace(recipe.training.optimizer, moment_warmup_steps=steps)
    return replace(recipe, training=replace(recipe.training, optimizer=optimizer))


def test_moments_are_gathered_before_anything_moves(recipe, tmp_path):
    """The moments are those of AdamW over the gradients at the first weights."""
    recipe = resting(replace(recipe, objective=CLIP(temperature=Learned()), reference=None), 2)
    training = replace(recipe.training, checkpoint_every=1, keep_checkpoints=6)
    recipe = replace(recipe, training=training)
    before = build_model(recipe.model, seed=0).module.state_dict()
    train_recipe(recipe)
    steps = [read_tensors(it) for it in list_checkpoints(tmp_path / "run" / "checkpoints")]
    for step in steps[:2]:
        assert all(torch.equal(step[f"model.{name}"], value) for name, value in before.items())
        own = [name for name in step if name.startswith("loss.temperature")]
        assert own
        assert all(torch.equal(step[name], steps[0][name]) for name in own)
    name = "visual.proj"
    first, second = (step[f"optimizer.model.{name}.exp_avg"] for step in steps[:2])
    assert not torch.equal(first, second)
    assert steps[1][f"optimizer.model.{name}.step"] == 2
    assert not torch.equal(steps[2][f"model.{name}"], before[name])
    rows = read_metrics(tmp_path / "run")
    assert [row["learning_rate"] > 0 for row in rows] == [False] * 2 + [True] * 4
    assert rows[0]["learning_rate/temperature"] == 0


def test_the_averages_of_the_samples_are_gathered_too(recipe, tmp_path):
    train_recipe(resting(recipe, 2))
    run = tmp_path / "run"
    go_back(run, before=6)
    whole = files_of(run)[1]
    train_recipe(resting(recipe, 2))
    assert files_of(run)[1] == whole


@pytest.mark.parametrize(
    ("steps", "warmup", "message"),
    [(6, 0, "leaves no step that moves"), (5, 2, "longer than the run of steps = 6 after")],
)
def test_the_rest_leaves_room_for_the_run(recipe, steps, warmup, message):
    optimizer = Optimizer(warmup_steps=warmup, moment_warmup_steps=steps)
    with pytest.raises(ValueError, match=message):
        replace(recipe.training, optimizer=optimizer)


def test_temperatures_of_samples_do_not_rest(recipe):
    objective = FastCLIP(temperature=PerSample(initial=0.05), rho=0.5)
    with pytest.raises(ValueError, match="does not fit a temperature for each sample"):
        resting(replace(recipe, objective=objective, reference=None), 2)


def test_a_configuration_alone_is_an_architecture_for_a_target(recipe, tmp_path, capsys):
    folder = tmp_path / "configuration"
    folder.mkdir()
    source = Path(recipe.model.name.removeprefix("local-dir:"))
    (folder / "open_clip_config.json").write_bytes((source / "open_clip_config.json").read_bytes())
    (folder / "README.md").write_text("an architecture")
    model = Model(f"local-dir:{folder}")
    with pytest.raises(ValueError, match="random weights"):
        model.require_trained()
    drawn = build_model(model, seed=0, target=True).module.state_dict()
    again = build_model(model, seed=0, target=True).module.state_dict()
    assert all(torch.equal(again[name], value) for name, value in drawn.items())
    assert main(["evaluate", model.name, "--data", recipe.evaluation.data]) == 1
    capsys.readouterr()
    small = replace(recipe, model=model, output=str(tmp_path / "run"))
    assert "with random weights" in plan_run(small)
    train_recipe(small)
    (folder / "open_clip_config.json").unlink()
    load_model(tmp_path / "run" / "model")


def test_another_model_leaves_the_weights_of_the_recipes_behind():
    found = recipe_of("finetune", ["--model.name", "local-dir:x"])
    assert found.model == Model("local-dir:x")
    assert recipe_of("finetune", ["--model.pretrained", "openai"]).model.pretrained == "openai"


@pytest.mark.parametrize("part", ["ema", "lora"])
def test_what_sharded_runs_cannot_have_is_refused_at_once(recipe, part):
    if part == "ema":
        changes = {"training": replace(recipe.training, ema=EMA(decay=0.5))}
    else:
        changes = {"tuning": Tuning(lora=LoRA(rank=2))}
    with pytest.raises(ValueError, match=f"parallel = 'sharded' does not fit t.*{part}, .*replica"):
        replace(recipe, parallel="sharded", **changes)
