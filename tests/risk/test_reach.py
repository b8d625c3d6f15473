"""Balls at the edge: the largest divergence that any distribution has."""

import math

import pytest
import torch

from drrho.risk import ChiSquareBall, CVaR, KLBall

pytestmark = pytest.mark.filterwarnings("ignore:radius .* is at least")


@pytest.mark.parametrize("large", [False, True], ids=["few", "many"])
@pytest.mark.parametrize("base", ["alike", "mask", "weights", "ties"])
@pytest.mark.parametrize("risk", ["kl", "chi_square", "cvar"])
@pytest.mark.parametrize("times", [1, 2])
def test_at_exactly_its_reach_and_beyond_a_ball_is_the_maximum(risk, base, large, times):
    """And not a rounding error beside it."""
    losses = torch.tensor([0.1, 0.1, -0.2, 0.3], dtype=torch.float64)
    measure, share = None, 1 / 4  # the largest loss's share of the base measure
    if large:
        losses = torch.cat([losses, torch.full((2**14 - 4,), -1.0).double()])
        share = 2**-14
    if base == "ties":
        losses[:2], share = 0.3, 3 * share
    if base == "mask":
        measure, share = torch.arange(len(losses)) != 2, 1 / (len(losses) - 1)
    if base == "weights":
        measure = torch.where(losses == 0.3, 2.0, 1.0).double()
        share = 2 / (len(losses) + 1)
    # Of a chi-square ball every threshold from the second largest loss on has these weights.
    ball, least, most = {
        "kl": (KLBall(radius=times * math.log(1 / share)), 0.0, 0.0),
        "chi_square": (ChiSquareBall(radius=times * (1 / share - 1) / 2), 0.1 - 1e-12, 0.3),
        "cvar": (CVaR(fraction=share / times), 0.3, 0.3),
    }[risk]
    value, weights, dual = ball(losses, base_measure=measure)
    assert value == 0.3
    assert not weights[losses < 0.3].any()
    assert least <= dual <= most
