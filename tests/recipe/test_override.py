"""A recipe's part as another class of its union: what was given stays, defaults do not."""

import math
from dataclasses import MISSING, fields, is_dataclass, replace
from itertools import permutations
from typing import get_args

import pytest

from drrho.contrastive.memory.temperature import AnyTemperature, Learned, PerSample
from drrho.contrastive.objectives.global_risk import DRRhoCLIP, FastCLIP
from drrho.contrastive.objectives.objective import Objective
from drrho.recipe.arguments.override import changed_kind, overridden
from drrho.training.optimizer import ConstantRate, Cooldown, ThresholdDecay

PAIRS = [
    pair
    for union in (Objective, AnyTemperature)
    for pair in permutations([kind for kind in get_args(union) if is_dataclass(kind)], 2)
]


@pytest.mark.parametrize(
    "change", [lambda config: config, lambda config: replace(config, gamma_min=0.5)]
)
def test_an_explicit_value_is_kept_though_it_equals_the_default(change):
    given = changed_kind(change(DRRhoCLIP(epsilon=1e-4)), FastCLIP)
    assert given.epsilon == 1e-4
    assert changed_kind(change(DRRhoCLIP()), FastCLIP).epsilon == FastCLIP().epsilon == 1e-14


def test_an_explicit_value_is_kept_by_an_option_that_changes_the_class(plain_recipe):
    recipe = replace(plain_recipe, objective=FastCLIP(epsilon=float("1e-14")))
    arguments = ["--objective.method", "drrho_clip", "--reference", "x"]
    found = overridden(recipe, arguments, source="x", description="")
    assert found.objective.epsilon == 1e-14


def test_a_limit_that_was_taken_away_stays_away():
    assert changed_kind(PerSample(maximum=None), Learned).maximum == math.inf
    assert changed_kind(PerSample(), Learned).maximum == 1.0


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--training.optimizer.schedule.kind", "constant"], ("schedule", ConstantRate())),
        (
            [
                *("--training.optimizer.schedule.steps", "2"),
                *("--training.optimizer.schedule.kind", "cooldown"),
            ],
            ("schedule", Cooldown(steps=2)),
        ),
        (
            [
                *("--training.optimizer.temperature-schedule.kind", "threshold"),
                *("--training.optimizer.temperature-schedule.threshold", "0.02"),
            ],
            ("temperature_schedule", ThresholdDecay(threshold=0.02)),
        ),
    ],
)
def test_a_class_may_be_chosen_where_the_recipe_has_another_or_none(
    plain_recipe, arguments, expected
):
    found = overridden(plain_recipe, arguments, source="x", description="")
    name, schedule = expected
    assert getattr(found.training.optimizer, name) == schedule


def test_a_part_without_classes_to_choose_from_is_added_in_the_file(plain_recipe):
    with pytest.raises(ValueError, match="has selection = None"):
        overridden(plain_recipe, ["--selection.batch-size", "2"], source="x", description="")
    with pytest.raises(ValueError, match="must be one of cosine, constant, cooldown, got 'linear'"):
        overridden(
            plain_recipe,
            ["--training.optimizer.schedule.kind", "linear"],
            source="x",
            description="",
        )


@pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: "-".join(k.__name__ for k in pair))
def test_defaults_that_differ_between_classes_are_floats_which_can_be_told_apart(pair):
    of_one, of_other = ({part.name: part for part in fields(kind)} for kind in pair)
    for name in of_one.keys() & of_other.keys():
        defaults = (of_one[name].default, of_other[name].default)
        if defaults[0] != defaults[1] and MISSING not in defaults:
            assert {type(default) for default in defaults} == {float}
