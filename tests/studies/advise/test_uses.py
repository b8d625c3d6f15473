"""Statements of docs/mathematics.md, "Uses of a reference", each in a problem where it is exact."""

import pytest
import torch
from torch.nn.functional import cross_entropy

from drrho.risk import KL


def draw(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def test_the_strength_of_least_variance_is_a_regression_and_safe_against_noise():
    loss, noise = draw(1000), draw(1000, seed=1)
    for own, scale in ((0.7 * loss + 0.3 * draw(1000, seed=2), 1), (noise, 0)):
        best = float(torch.cov(torch.stack([loss, own]))[0, 1] / own.var())
        left = float((loss - best * own).var() / loss.var())
        correlation = float(torch.corrcoef(torch.stack([loss, own]))[0, 1])
        assert left == pytest.approx(1 - correlation**2)
        assert left <= 1
        assert all(float((loss - s * own).var()) >= left * float(loss.var()) for s in (0, 0.5, 1))
        assert abs(best - scale) < 0.4
    assert abs(best) < 0.1, "a placebo's strength is about zero"


def test_steering_is_the_mean_loss_and_a_penalty_on_the_variance_of_the_excess():
    losses, reference, temperature = draw(200).abs(), draw(200, seed=1).abs(), 1e3
    for strength in (0.0, 0.3, 1.0):
        excess = losses - strength * reference
        value = KL(temperature=temperature)(excess).value
        expected = excess.mean() + excess.var(correction=0) / (2 * temperature)
        assert float(value) == pytest.approx(float(expected), abs=1e-5)


def test_distillation_is_training_on_soft_labels():
    logits, weight = draw(8, 5), 0.7
    labels = torch.eye(5, dtype=torch.float64)[torch.arange(8) % 5]
    teacher = draw(8, 5, seed=1).softmax(dim=1)
    both = cross_entropy(logits, labels) + weight * cross_entropy(logits, teacher)
    soft = cross_entropy(logits, (labels + weight * teacher) / (1 + weight))
    assert float(both) == pytest.approx((1 + weight) * float(soft))


def test_the_best_weight_of_distillation_adds_errors_like_parallel_resistors():
    variance, error = 0.3, 0.1

    def risk(weight):
        return (variance + weight**2 * error) / (1 + weight) ** 2

    best = variance / error
    assert risk(best) == pytest.approx(variance * error / (variance + error))
    assert risk(best) < min(risk(best * 0.9), risk(best * 1.1))
    drawn = draw(200_000, seed=3) * variance**0.5  # of labels whose mean is 0
    estimate = (drawn + 0.7 * error**0.5) / 1.7
    assert float((estimate**2).mean()) == pytest.approx(risk(0.7), rel=0.02)


def test_a_head_start_decays_by_the_curvature():
    curvature, start, rate = torch.tensor([2.0, 0.01]).double(), draw(2), 1e-4
    place = start.clone()
    for _ in range(10_000):  # gradient flow until time 1
        place -= rate * curvature * place
    expected = (-curvature).exp() * start
    assert torch.allclose(place, expected, rtol=1e-3)


def test_early_on_every_reference_is_ahead_and_its_best_weight_too_large():
    variance, error = 0.3, 4.0  # a reference that is far behind the end of plain training

    def risk(weight, share):
        return (variance / share + weight**2 * error) / (1 + weight) ** 2

    for weight in (0.2, 1.0, 5.0):
        turn = (2 + weight) * variance / (weight * error)
        assert risk(weight, 0.9 * turn) < variance / (0.9 * turn), "ahead of plain"
        assert risk(weight, 1.1 * turn) > variance / (1.1 * turn), "behind it"
    for share in (0.25, 1.0):
        best = variance / (share * error)
        assert risk(best, share) < min(risk(best * 0.95, share), risk(best * 1.05, share))
    early = variance / (0.25 * error)
    assert risk(early, 0.25) < risk(0, 0.25)
    assert risk(early, 1.0) > risk(0, 1.0), "what was best at a quarter does harm at the end"
