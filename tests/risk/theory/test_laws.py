"""The laws are what their derivations say: minimisers, best strengths, limits."""

import pytest
import torch
from torch.testing import assert_close

from drrho.risk.theory.laws import (
    best_rho,
    chi_square_law,
    kl_law,
    parallel_sum,
    soft_threshold,
)

KAPPAS = [0.1, 1.0, 7.0]


@pytest.mark.parametrize("kappa", KAPPAS)
def test_both_laws_reach_the_parallel_sum_at_their_best_strength_and_nowhere_less(kappa):
    best = parallel_sum(1.0, kappa)
    d = 20
    assert kl_law(kappa, temperature=kappa) == pytest.approx(best)
    g = 2 * best_rho(kappa, num_parameters=d) / d
    assert chi_square_law(kappa, strength=g) == pytest.approx(best)
    for factor in (0.3, 0.9, 1.1, 3.0):
        assert kl_law(kappa, temperature=factor * kappa) > best
        assert chi_square_law(kappa, strength=factor * g) > best


@pytest.mark.parametrize("kappa", KAPPAS)
def test_limits_are_erm_and_the_reference(kappa):
    assert kl_law(kappa, temperature=1e9) == pytest.approx(1, abs=1e-8)
    assert kl_law(kappa, temperature=1e-9) == pytest.approx(kappa, rel=1e-6)
    assert chi_square_law(kappa, strength=0) == 1
    assert chi_square_law(kappa, strength=2 + kappa) == pytest.approx(kappa)


@pytest.mark.parametrize("kappa", [0.0, *KAPPAS, 1e6])
def test_a_bad_reference_costs_at_most_one_plus_the_strength(kappa):
    assert all(chi_square_law(kappa, strength=g) <= 1 + g for g in (0.01, 0.3, 1.0, 10.0))


def test_parallel_sum_is_symmetric_and_below_both():
    assert parallel_sum(2.0, 3.0) == parallel_sum(3.0, 2.0) == pytest.approx(1.2)
    assert parallel_sum(2.0, 0.0) == 0


def test_soft_threshold_minimises_distance_plus_deviation():
    generator = torch.Generator().manual_seed(0)
    erm, reference = torch.randn(2, 30, 4, generator=generator, dtype=torch.float64)
    root = torch.randn(30, 4, 4, generator=generator, dtype=torch.float64)
    hessian = root @ root.mT + torch.eye(4)
    radius = 0.6

    def norm(step):
        return (step[..., None, :] @ hessian @ step[..., None]).squeeze((-1, -2)).sqrt()

    def objective(w):
        return norm(w - erm).square() / 2 + (2 * radius) ** 0.5 * norm(w - reference)

    w = soft_threshold(erm, reference, radius=radius, hessian=hessian)
    for _ in range(20):
        nearby = w + 1e-3 * torch.randn(w.shape, generator=generator, dtype=w.dtype)
        assert (objective(nearby) > objective(w)).all()
    large = soft_threshold(erm, reference, radius=1e4, hessian=hessian)
    assert_close(large, reference)
    assert_close(soft_threshold(erm, reference, radius=0.0, hessian=hessian), erm)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: parallel_sum(-1.0, 1.0), "erm_risk.*-1"),
        (lambda: kl_law(float("nan"), temperature=1.0), "kappa.*nan"),
        (lambda: kl_law(1.0, temperature=0.0), "temperature.*0"),
        (lambda: chi_square_law(1.0, strength=-1.0), "strength.*-1"),
        (lambda: best_rho(1.0, num_parameters=0), "num_parameters.*0"),
    ],
)
def test_errors_name_the_argument(call, message):
    with pytest.raises(ValueError, match=message):
        call()
