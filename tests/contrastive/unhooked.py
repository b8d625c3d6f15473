"""Run by tests/test_unhooked.py without the suite's type checks, which refuse an unknown name
before our own error, which users see, can."""

import pytest

from drrho.contrastive.objectives.config import named_objective
from drrho.contrastive.objectives.global_risk import GlobalContrastiveLoss


def test_an_unknown_algorithm_is_told_the_known_ones():
    with pytest.raises(ValueError, match="'clip'; there are openclip, .*drrho_clip"):
        named_objective("clip")


def test_an_unknown_implementation_is_told_the_known_ones():
    with pytest.raises(ValueError, match="impl must be one of auto, exact, tiles, triton, got 'c'"):
        GlobalContrastiveLoss(5, epsilon=1e-4, impl="c")  # pyright: ignore[reportArgumentType]
