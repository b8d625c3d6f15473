"""The bounds hold on samples whose distribution is known, and shrink as they should."""

import pytest
import torch

from drrho.risk.theory.bounds import FiniteClassBound, chi_square_slack


def bound(**changed):
    return FiniteClassBound(**{"num_models": 10, "num_samples": 200, "loss_range": 2.0} | changed)


def test_certificates_fail_no_more_often_than_delta():
    """Also at a delta where failures could be seen: the bound is far from tight."""
    generator = torch.Generator().manual_seed(0)
    shares = torch.linspace(0.3, 0.7, 10, dtype=torch.float64)
    losses = 2 * torch.bernoulli(shares[None, :, None].expand(100, -1, 200), generator=generator)
    limits = bound(delta=0.5)
    risks = limits.adversary(losses).value
    failures = (2 * shares > risks + limits.certificate(0.0)).any(dim=1)
    assert failures.double().mean() <= 0.5
    # It says something: the means of some models are above their own samples' means.
    assert (2 * shares > losses.mean(dim=-1)).any(dim=1).double().mean() > 0.9


def test_the_oracle_bound_follows_the_deviation_and_its_rest_falls_as_one_over_n():
    rest = [bound(num_samples=n).oracle(0.0, 0.0) for n in (1001, 10_001)]
    assert rest[0] / rest[1] == pytest.approx(10)
    four = bound().oracle(0.0, 4.0) - bound().oracle(0.0, 0.0)
    assert four == pytest.approx(2 * (bound().oracle(0.0, 1.0) - bound().oracle(0.0, 0.0)))
    assert bound().oracle(0.3, 1.0) == pytest.approx(0.3 + bound().oracle(0.0, 1.0))


def test_the_certificates_of_all_risks_are_shifted_alike():
    assert bound().certificate(-0.5) == pytest.approx(bound().certificate(0.0) - 0.5)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"num_models": 0}, "num_models.*0"),
        ({"num_samples": 1}, "num_samples.*1"),
        ({"loss_range": float("inf")}, "loss_range.*inf"),
        ({"delta": 1.0}, "delta.*1"),
    ],
)
def test_errors_name_the_argument(changed, message):
    with pytest.raises(ValueError, match=message):
        bound(**changed)


def test_slack_is_refused_for_negative_numbers():
    with pytest.raises(ValueError, match="radius.*-1"):
        chi_square_slack(radius=-1.0, loss_range=1.0)


def test_the_constants_are_those_of_the_document():
    """Worked out by hand for N = 10, n = 200, M = 2, delta = 0.05: t = log 800 = 6.684612."""
    limits = bound()
    assert limits.confidence == pytest.approx(6.684612, abs=1e-6)
    assert limits.adversary.radius == pytest.approx(6.684612 / 199, abs=1e-8)
    assert limits.certificate(0.1) == pytest.approx(0.1 + 17 * 2 * 6.684612 / (6 * 199), abs=1e-6)
    assert limits.certificate(0.1) == pytest.approx(0.290349, abs=1e-6)
    # 0.1 + 2 * sqrt(2 * 6.684612 * 0.5 / 200) + 31 * 2 * 6.684612 / (6 * 199)
    assert limits.oracle(0.1, 0.5) == pytest.approx(0.812747, abs=1e-6)


def test_one_model_is_a_class():
    assert bound(num_models=1).confidence == pytest.approx(4.382027, abs=1e-6)
