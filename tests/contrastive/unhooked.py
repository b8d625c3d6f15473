"""Run by tests/test_unhooked.py without the suite's type checks, as users run it."""

import pytest

from drrho.contrastive.objectives.global_risk import GlobalContrastiveLoss
from drrho.recipe.published import named_recipe


def test_an_unknown_algorithm_is_told_the_known_ones():
    with pytest.raises(ValueError, match="'clip'; there are openclip, .*drrho_clip"):
        named_recipe("clip")


def test_an_unknown_implementation_is_told_the_known_ones():
    with pytest.raises(ValueError, match="impl must be one of auto, exact, tiles, triton, got 'c'"):
        GlobalContrastiveLoss(5, epsilon=1e-4, impl="c")  # pyright: ignore[reportArgumentType]
