"""CVaR: which samples are kept, and by how much."""

import pytest
import torch
from torch.testing import assert_close

from drrho.risk import CVaR


@pytest.mark.parametrize(("num_samples", "fraction"), [(100, 0.29), (100, 0.07), (7, 3 / 7)])
def test_a_whole_number_of_samples_is_a_plain_top_k_mean(num_samples, fraction):
    """Also when the product of the two is not that number in binary."""
    losses = torch.randn(5, num_samples, dtype=torch.float64)
    kept = round(num_samples * fraction)
    top = losses.topk(kept).values
    value, weights, threshold = CVaR(fraction=fraction)(losses)
    assert_close(value, top.mean(-1))
    assert torch.equal(threshold, top[:, -1])
    assert (weights > 0).sum(-1).tolist() == [kept] * 5
    assert_close(weights.amax(-1), torch.full((5,), 1 / kept, dtype=torch.float64))


def test_a_fractional_sample_has_its_fraction():
    losses = torch.tensor([5.0, 1.0, 4.0, 2.0, 3.0])
    value, weights, threshold = CVaR(fraction=0.5)(losses)  # two and a half samples
    assert_close(weights, torch.tensor([0.4, 0.0, 0.4, 0.0, 0.2]))
    assert_close(value, torch.tensor(0.4 * 5 + 0.4 * 4 + 0.2 * 3))
    assert threshold == 3


def test_ties_at_the_threshold_share_what_remains():
    losses = torch.tensor([7.0, 2.0, 2.0, 0.0, 2.0])
    _, weights, _ = CVaR(fraction=0.4)(losses)
    assert_close(weights, torch.tensor([1 / 2, 1 / 6, 1 / 6, 0, 1 / 6]))


def test_ties_share_in_proportion_to_their_sample_weights():
    losses, base = torch.tensor([1.0, 1.0, 0.0]), torch.tensor([1.0, 3.0, 4.0])
    _, weights, _ = CVaR(fraction=0.25)(losses, base_measure=base)
    assert_close(weights, torch.tensor([0.25, 0.75, 0.0]))


@pytest.mark.parametrize("fraction", [0.05, 0.1, 0.33, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("weighted", [False, True])
def test_value_is_the_minimum_over_thresholds(fraction, weighted):
    """Rockafellar and Uryasev's form: convex and piecewise linear, with its kinks at losses."""
    losses = torch.randn(11, dtype=torch.float64)
    base = torch.rand(11, dtype=torch.float64) if weighted else torch.ones_like(losses)
    value, _, threshold = CVaR(fraction=fraction)(losses, base_measure=base)

    def upper_bound(nu):
        return nu + (base / base.sum() * (losses - nu).relu()).sum() / fraction

    assert_close(value, torch.stack([upper_bound(nu) for nu in losses]).min())
    assert_close(upper_bound(threshold), value)


def test_batches_are_biased_down_as_the_duals_curvature_says():
    """Bias -(1 - a) / (2 B g), g the density at the quantile: 0.128 and 0.0256 to leading order
    for standard normal losses and the worst tenth, whose mean is 1.75498."""
    for batch_size, bias, margin in [(20, -0.118, 0.004), (100, -0.0256, 0.004)]:
        losses = torch.randn(40_000, batch_size)
        value = CVaR(fraction=0.1)(losses).value.mean().item()
        assert value - 1.75498 == pytest.approx(bias, abs=margin)


@pytest.mark.parametrize("fraction", [0.0, -0.1, 1.01, float("nan")])
def test_fraction_must_be_a_share(fraction):
    with pytest.raises(ValueError, match=rf"fraction .* got {fraction}"):
        CVaR(fraction=fraction)
