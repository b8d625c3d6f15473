"""Run by tests/test_unhooked.py without the suite's type checks, which refuse an unknown name
before our own error, which users see, can."""

import pytest

from drrho.contrastive.objectives.config import named_objective


def test_an_unknown_algorithm_is_told_the_known_ones():
    with pytest.raises(ValueError, match="'clip'; there are openclip, .*drrho_clip"):
        named_objective("clip")
