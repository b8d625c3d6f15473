"""What a run does at each step, and what stops it."""

import json
import re
from dataclasses import replace

import pytest
import torch
from tests.training.tiny_run import (
    CONFIG,
    TinyBatch,
    TinyLoss,
    TinyObjective,
    tiny_batches,
    tiny_state,
    tiny_train,
)
from torch import nn

from drrho.runtime.errors import NotFiniteError
from drrho.training.checkpoint import latest_checkpoint, list_checkpoints
from drrho.training.config import Training, require_precision
from drrho.training.log import read_metrics
from drrho.training.loop import evaluate
from drrho.training.optimizer import Optimizer
from drrho.training.schedules import constant
from drrho.training.state import TrainingState
from drrho.training.step import StepResult
from drrho.training.tensor_files import read_tensors


def test_rows_are_logged_where_asked_and_at_the_end(tmp_path):
    state = tiny_state(tmp_path)
    objective = TinyObjective(state)
    result = tiny_train(state, objective)
    rows = read_metrics(tmp_path)
    logged = [*range(3, 40, 3), 40]
    assert [row["step"] for row in rows if "loss" in row] == logged
    assert [row["step"] for row in rows if "val/output" in row] == [10, 20, 30, 40]
    assert objective.diagnosed == [step - 1 for step in logged]
    assert {"loss", "gradient_norm", "learning_rate", "noise", "skipped_samples"} <= rows[0].keys()
    assert [row["samples"] for row in rows[:2]] == [17, 33]
    assert dict(result.metrics).items() <= rows[-1].items()


def test_checkpoints_are_kept_as_asked(tmp_path):
    config = replace(CONFIG, checkpoint_every=7, keep_checkpoints=3)
    tiny_train(tiny_state(tmp_path), config=config)
    names = [path.name for path in list_checkpoints(tmp_path / "checkpoints")]
    assert names == ["step-00000028", "step-00000035", "step-00000040"]


def test_learning_rate_is_the_schedule_times_the_scale_of_the_group(tmp_path):
    state = tiny_state(tmp_path)
    seen = []

    def note(loss):
        seen.append({group["name"]: group["lr"] for group in state.optimizer.param_groups})
        return loss

    objective = TinyObjective(state)
    objective.at = dict.fromkeys(range(40), note)
    tiny_train(state, objective, learning_rate=lambda step: 0.001 * (step + 1))
    assert [rates["decayed"] for rates in seen] == pytest.approx([0.001 * k for k in range(1, 41)])
    assert seen[9]["temperature"] == pytest.approx(0.25 * seen[9]["undecayed"])


def test_the_temperature_may_have_a_schedule_of_its_own(tmp_path):
    state, seen = tiny_state(tmp_path), []
    state.temperature_rate = lambda step: 0.5 / (step + 1)

    def note(loss):
        seen.append({group["name"]: group["lr"] for group in state.optimizer.param_groups})
        return loss

    objective = TinyObjective(state)
    objective.at = dict.fromkeys(range(40), note)
    tiny_train(state, objective, learning_rate=constant(0.001))
    assert [rates["temperature"] for rates in seen] == [0.5 / k for k in range(1, 41)]
    assert {rates["decayed"] for rates in seen} == {0.001}


def linear_run(folder, *, max_grad_norm, slope):
    """One step of plain gradient descent on a loss of constant gradient; returns the movement."""
    model = nn.Linear(4, 1, bias=False)
    start = model.weight.detach().clone()
    groups = [{"params": list(model.parameters()), "lr_scale": 1.0}]
    state = TrainingState(
        folder=folder,
        model=model,
        loss=None,
        optimizer=torch.optim.SGD(groups, lr=1.0),
        config={},
    )

    def objective(batch, *, step, diagnose):
        loss = slope * model.weight.sum() / 2  # gradient of norm `slope`
        return StepResult(loss=loss, num_samples=1, metrics={})

    config = Training(steps=1, optimizer=Optimizer(learning_rate=1.0), max_grad_norm=max_grad_norm)
    result = tiny_train(state, objective, config=config, learning_rate=constant(1.0))  # type: ignore[arg-type]
    return (model.weight.detach() - start).norm().item(), result.metrics["gradient_norm"]


@pytest.mark.parametrize(
    ("slope", "limit", "moved"), [(10.0, 0.5, 0.5), (0.2, 0.5, 0.2), (10.0, None, 10.0)]
)
def test_gradient_is_clipped_to_the_norm(tmp_path, slope, limit, moved):
    movement, norm = linear_run(tmp_path, max_grad_norm=limit, slope=slope)
    assert movement == pytest.approx(moved, rel=1e-4)
    assert norm == pytest.approx(slope), "the norm is logged as it was before clipping"


def test_temperature_is_not_clipped_with_the_model(tmp_path):
    """A large gradient of the temperature must not stop the model, and is not itself cut."""
    gradients = {}
    for factor in (1.0, 1000.0):
        state = tiny_state(tmp_path / str(factor))
        config = replace(CONFIG, steps=1, optimizer=replace(CONFIG.optimizer, warmup_steps=0))
        objective = TinyObjective(state)
        assert isinstance(state.loss, TinyLoss)
        temperature = state.loss.temperature
        objective.at[0] = lambda loss, f=factor, t=temperature: loss + f * t
        tiny_train(state, objective, config=replace(config, evaluate_every=None))
        gradients[factor] = [p.grad for p in state.model.parameters()]
        assert temperature.grad is not None
        assert temperature.grad >= 0.99 * factor
    for small, large in zip(gradients[1.0], gradients[1000.0], strict=True):
        assert torch.equal(small, large)


@pytest.mark.parametrize("learnable", [True, False])
def test_temperature_gradient_is_logged_where_there_is_one(tmp_path, learnable):
    state = tiny_state(tmp_path)
    assert isinstance(state.loss, TinyLoss)
    state.loss.temperature.requires_grad_(learnable)
    tiny_train(state)
    assert all(
        ("temperature_gradient_norm" in row) == learnable
        for row in read_metrics(tmp_path)
        if "loss" in row
    )


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda loss: loss * float("nan"), "loss = nan"),
        (lambda loss: loss / 0.0, "loss = inf"),
        # 0 times the square root of 0: a finite value with an infinite gradient.
        (lambda loss: loss + (loss * 0).sqrt(), "gradient_norm = nan"),
    ],
)
def test_not_finite_stops_and_names_the_step_and_the_samples(tmp_path, spoil, message):
    state = tiny_state(tmp_path)
    objective = TinyObjective(state)
    objective.at[16] = spoil
    with pytest.raises(NotFiniteError, match="step 16") as info:
        tiny_train(state, objective)
    batches = tiny_batches(16)
    ids = next(batches).sample_ids
    text = str(info.value)
    assert message in text
    assert ", ".join(map(str, ids.tolist())) in text
    assert "learning rate" in text
    assert info.value.step == 16
    assert torch.equal(info.value.sample_ids, ids)

    kept = latest_checkpoint(tmp_path / "checkpoints")
    assert str(kept) in text
    assert kept is not None
    weights = read_tensors(kept).values()
    assert all(value.isfinite().all() for value in weights)
    assert kept.name == "step-00000015"


def test_not_finite_before_any_checkpoint_says_so(tmp_path):
    state = tiny_state(tmp_path)
    objective = TinyObjective(state)
    objective.at[0] = lambda loss: loss * float("nan")
    with pytest.raises(NotFiniteError, match="No checkpoint was saved"):
        tiny_train(state, objective)
    assert list_checkpoints(tmp_path / "checkpoints") == []


def test_steps_that_are_not_finite_can_be_left_out(tmp_path):
    state = tiny_state(tmp_path)
    objective = TinyObjective(state)
    seen = []

    def spoil(loss):
        seen.extend(p.detach().clone() for p in state.model.parameters())
        return loss * float("nan")

    objective.at[16] = spoil
    objective.at[17] = lambda loss: (compare(), loss)[1]

    def compare():
        assert all(map(torch.equal, seen, state.model.parameters()))

    config = replace(CONFIG, not_finite="skip", log_every=1, evaluate_every=None)
    with pytest.warns(UserWarning, match="1 of 40 steps were left out"):
        result = tiny_train(state, objective, config=config)
    assert seen
    assert result.metrics["skipped_steps"] == 1
    assert all(p.isfinite().all() for p in state.model.parameters())
    row = read_metrics(tmp_path)[16]
    assert (row["step"], row["loss"]) == (17, None), "and it is seen in the log"


def test_float16_scales_the_gradient_and_its_state_is_kept(tmp_path):
    config = replace(CONFIG, precision="float16", evaluate_every=None, max_grad_norm=None)
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    tiny_train(scaled_state(whole, config), config=config)
    state = scaled_state(parts, config)
    objective = TinyObjective(state)
    objective.at[22] = lambda loss: 1 / 0
    with pytest.raises(ZeroDivisionError):
        tiny_train(state, objective, config=config)
    state = scaled_state(parts, config)
    assert state.resume()
    tiny_train(state, config=config)
    finals = [latest_checkpoint(folder / "checkpoints") for folder in (whole, parts)]
    ours, theirs = (read_tensors(path) for path in finals)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    scales = [[row["gradient_scale"] for row in read_metrics(folder)] for folder in (whole, parts)]
    assert scales[0] == scales[1]
    assert len(set(scales[0])) > 1, "it grows and falls"


def scaled_state(folder, config):
    state = tiny_state(folder, config)
    state.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**16, growth_interval=15)
    return state


def test_the_best_model_is_kept(tmp_path):
    state = tiny_state(tmp_path)
    written = []
    state.export = lambda folder: written.append((state.step, folder))
    scores = iter([0.2, 0.5, 0.4, 0.5])
    config = replace(CONFIG, keep_best="val/score")
    tiny_train(state, config=config, evaluators={"val": lambda: {"score": next(scores)}})
    assert written == [(10, tmp_path / "best" / "model"), (20, tmp_path / "best" / "model")]
    best = json.loads((tmp_path / "best" / "best.json").read_text())
    assert best == {"metric": "val/score", "step": 20, "value": 0.5}


def test_the_best_so_far_is_remembered_when_resumed(tmp_path):
    state = tiny_state(tmp_path)
    state.best = {"step": 1, "value": 9.0}
    state.save(keep=1)
    state.wait_until_saved()
    state = tiny_state(tmp_path)
    state.resume()
    state.export = lambda folder: pytest.fail("nothing was better")
    config = replace(CONFIG, keep_best="val/output")
    tiny_train(state, config=config, evaluators={"val": lambda: {"output": 8.0}})


def test_an_unknown_best_metric_is_named(tmp_path):
    state = tiny_state(tmp_path)
    state.export = lambda folder: None
    config = replace(CONFIG, keep_best="val/unknown")
    with pytest.raises(ValueError, match=r"'val/unknown' is no metric.*val/output"):
        tiny_train(state, config=config)


def test_bfloat16_is_for_the_forward_pass_only(tmp_path):
    state = tiny_state(tmp_path)
    dtypes = set()
    state.model[-1].register_forward_hook(lambda _m, _i, out: dtypes.add(out.dtype))  # type: ignore[operator]
    config = replace(CONFIG, precision="bfloat16", evaluate_every=None)
    first = [p.detach().clone() for p in state.model.parameters()]
    tiny_train(state, config=config)
    assert dtypes == {torch.bfloat16}
    assert all(p.dtype == torch.float32 for p in state.model.parameters())
    assert any(not torch.equal(a, b) for a, b in zip(first, state.model.parameters(), strict=True))


def test_bfloat16_on_a_device_without_it_is_an_error():
    require_precision("float32", torch.device("mps"))
    with pytest.raises(ValueError, match="bfloat16.*mps.*float32"):
        require_precision("bfloat16", torch.device("mps"))


def test_skipped_samples_are_counted_and_reported(tmp_path):
    def batches():
        for step, batch in enumerate(tiny_batches(0)):
            skipped = ((step, "corrupt image"),) if step % 4 == 0 else ()
            yield TinyBatch(batch.sample_ids, batch.inputs, skipped)

    with pytest.warns(UserWarning, match="10 of 230 samples .* 10 corrupt image"):
        result = tiny_train(tiny_state(tmp_path), batches=batches())
    assert result.metrics["skipped_samples"] == 10


def test_batches_that_end_are_an_error(tmp_path):
    batches = iter([next(tiny_batches(0))])
    with pytest.raises(ValueError, match="ended at step 1"):
        tiny_train(tiny_state(tmp_path), batches=batches)


def test_metrics_of_the_objective_may_not_hide_the_loops(tmp_path):
    state = tiny_state(tmp_path)

    def objective(batch, *, step, diagnose):
        result = TinyObjective(state)(batch, step=step, diagnose=diagnose)
        return replace(result, metrics={"loss": 0.0})

    with pytest.raises(ValueError, match=r"\['loss'\]"):
        tiny_train(state, objective)  # type: ignore[arg-type]


def test_evaluate_every_without_evaluators_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="evaluate_every = 10 has no effect"):
        tiny_train(tiny_state(tmp_path), evaluators={})


def test_run_that_is_past_its_end_is_an_error(tmp_path):
    state = tiny_state(tmp_path)
    state.step = 41
    with pytest.raises(ValueError, match="step 41, beyond steps = 40"):
        tiny_train(state)


def test_evaluation_gives_each_module_its_mode_back():
    model = nn.Sequential(nn.Dropout(), nn.Sequential(nn.BatchNorm1d(2), nn.Dropout()))
    model.train()
    model[1].eval()
    modes = [module.training for module in model.modules()]
    seen = []

    def evaluator():
        seen.append((any(m.training for m in model.modules()), torch.is_grad_enabled()))
        return {"x": 1}

    assert evaluate({"a": evaluator}, model) == {"a/x": 1.0}
    assert seen == [(False, False)]
    assert [module.training for module in model.modules()] == modes

    def failing():
        raise RuntimeError

    with pytest.raises(RuntimeError):
        evaluate({"a": failing}, model)
    assert [module.training for module in model.modules()] == modes


@pytest.mark.parametrize(
    "change",
    [
        {"steps": 0},
        {"log_every": 0},
        {"checkpoint_every": 0},
        {"keep_checkpoints": 0},
        {"evaluate_every": 0},
        {"max_grad_norm": 0.0},
        {"steps": 3},  # shorter than the warm-up
    ],
)
def test_options_out_of_range_are_named(change):
    with pytest.raises(ValueError, match=next(iter(change))):
        replace(CONFIG, **change)


def test_the_first_loss_and_every_evaluation_are_told_at_once(tmp_path, capsys):
    tiny_train(tiny_state(tmp_path), evaluators={"val": lambda: {"mrr": 0.5, "other": 1.0}})
    told = capsys.readouterr().err.splitlines()
    assert f"train {tmp_path.name}: 1/40 steps" in told[0]
    assert re.search(r", loss \S+$", told[0])
    scored = [f"{tmp_path.name}, step {step} of 40: val/mrr 0.5000" for step in (10, 20, 30, 40)]
    assert [line for line in told if "val/" in line] == scored
