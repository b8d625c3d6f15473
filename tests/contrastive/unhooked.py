"""Run by tests/test_unhooked.py without the suite's type checks, as users run it."""

import pytest
import torch

import drrho
from drrho.contrastive.objectives.global_risk import GlobalContrastiveLoss
from drrho.recipe.published import named_recipe


def test_an_unknown_algorithm_is_told_the_known_ones():
    with pytest.raises(ValueError, match="'clip'; there are openclip, .*drrho_clip"):
        named_recipe("clip")


def test_an_unknown_implementation_is_told_the_known_ones():
    with pytest.raises(ValueError, match="impl must be one of auto, exact, tiles, triton, got 'c'"):
        GlobalContrastiveLoss(5, epsilon=1e-4, impl="c")  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("ids", [[0, 1], torch.tensor([0.0, 1.0]), torch.tensor([True, False])])
def test_sample_ids_are_whole_numbers(ids):
    loss = drrho.FastCLIPLoss(10)
    with pytest.raises(ValueError, match="sample_ids must be a tensor of int64 or int32"):
        loss(torch.eye(2), torch.eye(2), sample_ids=ids, gamma=0.5)


@pytest.mark.parametrize("wrong", ["0.01", torch.tensor(0.01), None])
def test_a_temperature_is_a_number_or_one_of_three_classes(wrong):
    with pytest.raises(TypeError, match="temperature must be a number, Constant, Learned or"):
        drrho.DRRhoCLIPLoss(temperature=wrong)


@pytest.mark.parametrize("wrong", [drrho.DRRhoCLIP, drrho.CLIPLoss(), "clip"])
def test_an_objective_is_one_of_five(wrong):
    with pytest.raises(TypeError, match=r"objective must be one of CLIP\(...\)"):
        drrho.Recipe(output="runs/mine", data="data", model=drrho.Model("small"), objective=wrong)


@pytest.mark.parametrize("wrong", [drrho.CVaR, 0.25])
def test_a_risk_is_made_before_it_is_used(wrong):
    with pytest.raises(TypeError, match="risk must be a risk such as CVaR"):
        drrho.DRRhoLoss(wrong)
