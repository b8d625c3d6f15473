"""The published runs: their numbers, and what follows from another scale."""

import pytest
import torch
from torch.testing import assert_close

from drrho.contrastive.objectives.algorithms import ALGORITHMS
from drrho.recipe.named.published import Scale, named_recipe
from drrho.recipe.train import gamma_schedule
from drrho.training.optimizer import ThresholdDecay


def test_every_recipe_is_listed_and_builds():
    for name in ALGORITHMS:
        recipe = named_recipe(name)
        assert recipe.trained_batch_size == 5120
        assert recipe.training.steps == 262_719
        assert recipe.training.optimizer.learning_rate == 3.125e-4


def test_the_published_run():
    recipe = named_recipe("drrho_clip")
    assert recipe.objective.temperature.initial == 0.01
    assert recipe.objective.epsilon == 1e-4
    # The published gamma is 1, which is what the rule gives for its 7 epochs.
    gamma = gamma_schedule(recipe, epochs=7)
    assert gamma(0) == gamma(recipe.training.steps) == 1
    assert gamma_schedule(recipe, epochs=30)(recipe.training.steps) < 0.5
    fastclip = named_recipe("fastclip_v3").training.optimizer
    assert isinstance(fastclip.temperature_schedule, ThresholdDecay)
    assert fastclip.temperature_lr_scale * fastclip.learning_rate == pytest.approx(7.8125e-5)


@pytest.mark.parametrize("name", ["drrho_clip", "fastclip_v3", "openclip", "fastclip_v1"])
def test_adamw_takes_the_published_steps(name):
    """The published loss is 2B / (B - 1) times ours, where the script is DRRho-CLIP's."""
    config = named_recipe(name, Scale(batch_size=64, samples_seen=6400)).training.optimizer
    factor = 128 / 63 if name in ("drrho_clip", "fastclip_v3") else 1.0
    parameters = [torch.nn.Parameter(torch.ones(5, 5, dtype=torch.float64)) for _ in range(2)]
    options = {"lr": 0.1, "betas": config.betas, "weight_decay": config.weight_decay}
    ours = torch.optim.AdamW(parameters[:1], eps=config.epsilon, **options)
    published = torch.optim.AdamW(parameters[1:], eps=1e-6, **options)
    generator = torch.Generator().manual_seed(0)
    for _ in range(4):
        gradient = 1e-6 * torch.randn(5, 5, generator=generator, dtype=torch.float64)
        parameters[0].grad, parameters[1].grad = gradient, factor * gradient
        ours.step()
        published.step()
    assert_close(*parameters, rtol=1e-12, atol=1e-12)


def test_what_follows_from_the_scale():
    scale = Scale(batch_size=100, samples_seen=20_050)
    recipe = named_recipe("jest", scale)
    assert recipe.training.steps == 200
    assert recipe.training.optimizer.warmup_steps == 10
    assert (recipe.loading.batch_size, recipe.trained_batch_size) == (500, 100)
    with pytest.raises(ValueError, match="less than one batch"):
        Scale(batch_size=100, samples_seen=99)
    with pytest.raises(ValueError, match="at least 2"):
        Scale(batch_size=1)
