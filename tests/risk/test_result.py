"""What weights say about themselves."""

import math

import torch
from torch.testing import assert_close

from drrho.risk import effective_sample_size, kl_divergence


def test_effective_sample_size_counts_equal_shares():
    weights = torch.tensor([[0.25, 0.25, 0.25, 0.25], [0.5, 0.5, 0, 0], [0, 0, 1, 0], [0, 0, 0, 0]])
    assert effective_sample_size(weights).tolist() == [4, 2, 1, 0]
    assert_close(effective_sample_size(1000 * weights), effective_sample_size(weights))


def test_divergence_of_equal_shares_is_the_logarithm_of_their_rarity():
    weights = torch.tensor([[0.25, 0.25, 0.25, 0.25], [0.5, 0.5, 0, 0], [0, 0, 1, 0], [0, 0, 0, 0]])
    uniform = torch.full((4, 4), 0.25)
    expected = torch.tensor([0, math.log(2), math.log(4), 0], dtype=torch.float64)
    assert_close(kl_divergence(weights, uniform), expected)


def test_divergence_of_nearly_equal_distributions_keeps_its_digits():
    step = 1e-6
    weights = torch.tensor([0.5 + step, 0.5 - step], dtype=torch.float64)
    divergence = kl_divergence(weights, torch.full_like(weights, 0.5))
    assert_close(divergence.item(), 2 * step**2, rtol=1e-9, atol=0)
    assert divergence > 0


def test_samples_that_the_base_measure_drops_do_not_count():
    weights, base = torch.tensor([0.9, 0.1, 0.0]), torch.tensor([0.5, 0.5, 0.0])
    assert_close(kl_divergence(weights, base), kl_divergence(weights[:2], base[:2]))
