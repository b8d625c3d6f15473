"""The global generators: captured and restored, and left as they were."""

import random

import numpy as np
import pytest
import torch

from drrho.runtime.randomness import capture_generators, preserved_generators, restore_generators


def draw():
    return torch.rand(3).tolist(), np.random.rand(3).tolist(), random.random(), random.gauss()


def test_generators_continue_where_they_were_captured():
    draw()
    states = capture_generators()
    expected = [draw(), draw()]
    restore_generators(states)
    assert [draw(), draw()] == expected


def test_draws_in_a_preserved_part_leave_no_trace():
    states = capture_generators()
    expected = draw()
    restore_generators(states)
    with pytest.raises(KeyError), preserved_generators():
        draw()
        raise KeyError
    assert draw() == expected
