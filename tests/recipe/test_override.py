"""A recipe's part as another class of its union: what was given stays, defaults do not."""

from dataclasses import MISSING, fields, is_dataclass, replace
from itertools import permutations
from typing import get_args

import pytest

from drrho.contrastive.memory.temperature import AnyTemperature
from drrho.contrastive.objectives.global_risk import DRRhoCLIP, FastCLIP
from drrho.contrastive.objectives.objective import Objective
from drrho.recipe.override import changed_kind, overridden

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


@pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: "-".join(k.__name__ for k in pair))
def test_defaults_that_differ_between_classes_are_floats_which_can_be_told_apart(pair):
    of_one, of_other = ({part.name: part for part in fields(kind)} for kind in pair)
    for name in of_one.keys() & of_other.keys():
        defaults = (of_one[name].default, of_other[name].default)
        if defaults[0] != defaults[1] and MISSING not in defaults:
            assert {type(default) for default in defaults} == {float}
