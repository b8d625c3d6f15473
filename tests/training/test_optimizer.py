"""Which parameter is decayed, at which rate it moves, and which is left out."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from drrho.training.config import Training
from drrho.training.optimizer import (
    ConstantRate,
    Cooldown,
    CosineDecay,
    Optimizer,
    ThresholdDecay,
    build_optimizer,
    learning_rate_schedule,
    temperature_rate_schedule,
)

CONFIG = Optimizer(learning_rate=0.1, weight_decay=0.5)


class Tower(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 4, 2)
        self.norm = nn.LayerNorm(4)
        self.words = nn.Embedding(5, 4)
        self.class_token = nn.Parameter(torch.ones(4))
        self.logit_scale = nn.Parameter(torch.tensor(2.0))


class Temperature(nn.Module):
    def __init__(self, *, learnable: bool) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.tensor(0.07), requires_grad=learnable)


def step_with_zero_gradients(model, config, loss=None):
    """Names of the parameters that weight decay alone moves."""
    optimizer = build_optimizer(model, config, loss=loss)
    modules = nn.ModuleList([model] if loss is None else [model, loss])
    before = {name: p.detach().clone() for name, p in modules.named_parameters()}
    for parameter in modules.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    return {n for n, p in modules.named_parameters() if not torch.equal(p, before[n])}


def test_weight_decay_is_for_matrices_only():
    moved = step_with_zero_gradients(Tower(), CONFIG, Temperature(learnable=True))
    assert moved == {"0.patches.weight", "0.words.weight"}


def test_every_trainable_parameter_is_in_one_group():
    model, loss = Tower(), Temperature(learnable=True)
    model.words.requires_grad_(False)
    optimizer = build_optimizer(model, CONFIG, loss=loss)
    listed = [id(p) for group in optimizer.param_groups for p in group["params"]]
    trainable = {id(p) for p in [*model.parameters(), *loss.parameters()] if p.requires_grad}
    assert len(listed) == len(trainable)
    assert set(listed) == trainable


def test_temperature_has_its_own_share_of_the_rate():
    config = replace(CONFIG, temperature_lr_scale=0.25)
    loss = Temperature(learnable=True)
    groups = build_optimizer(Tower(), config, loss=loss).param_groups
    scales = {id(p): group["lr_scale"] for group in groups for p in group["params"]}
    assert scales.pop(id(loss.value)) == 0.25
    assert set(scales.values()) == {1.0}


@pytest.mark.parametrize("loss", [None, Temperature(learnable=False)])
@pytest.mark.parametrize(
    ("option", "value"),
    [("temperature_lr_scale", 0.25), ("temperature_schedule", ThresholdDecay())],
)
def test_an_option_without_a_learnable_temperature_is_an_error(loss, option, value):
    config = replace(CONFIG, **{option: value})
    with pytest.raises(ValueError, match=f"{option} = .* has no effect"):
        build_optimizer(Tower(), config, loss=loss)


def test_nothing_to_train_is_an_error():
    with pytest.raises(ValueError, match="no parameter"):
        build_optimizer(Tower().requires_grad_(False), CONFIG)


def test_schedule_follows_the_config():
    schedule = learning_rate_schedule(replace(CONFIG, warmup_steps=5), steps=50)
    assert schedule(0) < schedule(4) == schedule(5) == 0.1
    assert schedule(50) == 0.0


@pytest.mark.parametrize(
    ("decay", "expected"),
    [
        (CosineDecay(minimum=0.04), {0: 0.05, 1: 0.1, 2: 0.1, 6: 0.07, 10: 0.04, 11: 0.04}),
        (ConstantRate(), {0: 0.05, 1: 0.1, 2: 0.1, 10: 0.1, 99: 0.1}),
        (Cooldown(steps=4), {0: 0.05, 1: 0.1, 6: 0.1, 7: 0.075, 9: 0.025, 10: 0.0, 11: 0.0}),
        (Cooldown(steps=4, power=2, minimum=0.02), {6: 0.1, 8: 0.02 + 0.08 / 4, 10: 0.02}),
    ],
)
def test_schedules_of_the_learning_rate(decay, expected):
    """Those of open_clip, whose warm-up is (step + 1) / warmup_steps."""
    config = replace(CONFIG, warmup_steps=2, schedule=decay)
    schedule = learning_rate_schedule(config, steps=10)
    assert {step: schedule(step) for step in expected} == pytest.approx(expected)


def test_a_temperature_of_its_own_schedule():
    tau = [0.05]
    config = replace(CONFIG, warmup_steps=2, temperature_lr_scale=0.5)

    def rates(decay):
        config_of = replace(config, temperature_schedule=decay)
        return temperature_rate_schedule(config_of, steps=10, temperature=lambda: tau[0])

    assert rates(None) is None
    assert rates(ConstantRate())(0) == 0.05
    assert rates(CosineDecay())(0) == 0.025
    threshold = rates(ThresholdDecay())
    assert threshold(0) == 0.05
    tau[0] = 0.03
    assert threshold(0) == pytest.approx(0.05 / 3)


@pytest.mark.parametrize(
    ("decay", "message"),
    [
        (Cooldown(steps=9), "a cooldown of 9 steps are longer than the run of 10"),
        (CosineDecay(minimum=0.2), "minimum = 0.2 of a cosine schedule is above its peak of 0.1"),
        (Cooldown(steps=2, minimum=0.2), "minimum = 0.2 of a cooldown schedule"),
    ],
)
def test_schedules_that_do_not_fit_the_run_are_errors_before_anything_is_written(decay, message):
    config = replace(CONFIG, warmup_steps=2, schedule=decay)
    with pytest.raises(ValueError, match=message):
        learning_rate_schedule(config, steps=10)
    with pytest.raises(ValueError, match=message):
        Training(steps=10, optimizer=config)
    with pytest.raises(ValueError, match=message):
        Training(steps=10, optimizer=replace(CONFIG, warmup_steps=2, temperature_schedule=decay))


@pytest.mark.parametrize(
    "change",
    [
        {"learning_rate": 0.0},
        {"learning_rate": float("nan")},
        {"epsilon": 0.0},
        {"betas": (0.9, 1.0)},
        {"weight_decay": -0.1},
        {"warmup_steps": -1},
        {"temperature_lr_scale": 0.0},
    ],
)
def test_options_out_of_range_are_named(change):
    with pytest.raises(ValueError, match=next(iter(change))):
        replace(CONFIG, **change)
