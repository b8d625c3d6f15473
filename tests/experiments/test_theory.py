"""The studies of experiments/theory, shortened: each asserts its claim, with its interval.

The laws hold to leading order, so beside the interval they are given the share by which full
runs differ from them.
"""

import argparse
import itertools
import json
import sys
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

from drrho.risk import KL, ChiSquareBall, CVaR, KLCVaR, Mean

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "experiments" / "theory"))
import chi_square_identity  # noqa: E402
import estimators  # noqa: E402
import finite_class  # noqa: E402
import linear_regression  # noqa: E402
import logistic_regression  # noqa: E402
import newton  # noqa: E402
import rivals  # noqa: E402

STUDIES = {
    "chi_square_identity": chi_square_identity,
    "estimators": estimators,
    "finite_class": finite_class,
    "linear_regression": linear_regression,
    "logistic_regression": logistic_regression,
    "rivals": rivals,
}


def options(replicates, seed=0):
    return argparse.Namespace(replicates=replicates, seed=seed, output=None)


def test_e1_the_identity_holds_and_its_slack_is_never_exceeded(tmp_path, capsys):
    found = chi_square_identity.main(["--replicates", "180", "--output", str(tmp_path)])
    for numbers in found.values():
        assert numbers["above the upper bound"] == numbers["below the lower bound"] == 0
        assert numbers["identity broken"] == 0
        assert 0 < numbers["all weights positive"] < numbers["vectors"]  # both cases occur
    for _, slack, predicted in chi_square_identity.worst_family((3, 30, 300)):
        assert slack == pytest.approx(predicted, rel=1e-6)
    # What is printed is what is written.
    text = (tmp_path / "chi_square_identity.md").read_text()
    assert capsys.readouterr().out == text + "\n"
    assert json.loads((tmp_path / "chi_square_identity.json").read_text())["found"] == {
        kind: {name: float(f"{v:.6g}") for name, v in numbers.items()}
        for kind, numbers in found.items()
    }
    assert (tmp_path / "chi_square_identity.png").stat().st_size > 10_000


def test_e2_only_a_reference_separates_and_more_so_as_its_variance_falls(monkeypatch):
    monkeypatch.setattr(finite_class, "SIZES", (256,))
    excess, failures = finite_class.measure(options(200))
    (erm,), (dro,) = excess["ERM"], excess["DRO, no reference"]
    assert abs(dro.value - erm.value) < dro.half_width + erm.half_width
    risks = [excess[f"DRRho, v = {v:g}"][0] for v in (1.0, 0.1, 0.01)]
    for more, less in itertools.pairwise(risks):
        assert less.value + less.half_width < more.value - more.half_width
    assert not any(map(sum, failures.values()))


@pytest.fixture(scope="module")
def growing():
    return {row["n"]: row for row in linear_regression.compare_sizes(options(60), sizes=(40, 640))}


def test_e3_the_parallel_sum_law_holds_at_many_samples_for_each_dimension(growing):
    row = growing[640]
    assert row["gap"] < 1e-9
    for name in ("DRRho, chi-square", "DRRho, KL"):
        assert row["over the law"][name].covers(1.0, relative_error=0.05)
        assert row["over the law"][name].half_width < 0.1
        better = min(row["ERM"].value, row["reference"].value)
        assert row[name].value + row[name].half_width < better


def test_e3_the_law_fails_at_few_and_the_reference_would_have_been_better(growing):
    row = growing[40]
    assert row["gap"] < 1e-9
    for name in ("DRRho, chi-square", "DRRho, KL"):
        for ratio in (row["over the law"][name], row["over the reference"][name]):
            assert ratio.value - ratio.half_width > 1.5


def test_e3_exact_minimisers_follow_the_soft_threshold():
    rows = linear_regression.compare_strengths(options(30), kappas=(0.25, 4.0), strengths=(0.5,))
    for row in rows:
        assert row["gap"] < 1e-9
        assert row["DRRho"].value == pytest.approx(row["soft threshold"].value, rel=0.05)
        assert row["DRRho"].covers(row["law"], relative_error=0.07)


def test_e4_a_weak_reference_makes_a_stronger_target_than_either():
    (row,) = logistic_regression.weak_to_strong(options(40), references=(logistic_regression.WEAK,))
    assert row["duality gap"] < 1e-9
    assert row["over the better"].value + row["over the better"].half_width < 0.9
    assert row["DRRho, KL"].covers(row["law"], relative_error=0.1)
    assert row["gap recovered"].value - row["gap recovered"].half_width > 0.1


@pytest.mark.parametrize("flips", [0.0, 0.2])
def test_e4_the_best_temperature_is_kappa(flips):
    sweep = logistic_regression.sweep_temperature(
        options(40), flips=flips, factors=(0.1, 1.0, 10.0)
    )
    cold, best, hot = sweep["ratios"]
    assert best.value + best.half_width < min(cold.value, hot.value)
    for ratio, law in zip(sweep["ratios"], sweep["law"], strict=True):
        assert ratio.covers(law, relative_error=0.1)


def test_e4_a_reference_that_has_memorised_the_samples_gives_nothing():
    found = {
        row["reference"]: row["over ERM"] for row in logistic_regression.memorised(options(20))
    }
    assert found["logistic regression, other samples"].value < 0.8
    assert found["logistic regression, the same samples"].value == pytest.approx(1, abs=1e-6)
    memory, none = found["interpolation, the same samples"], found["none"]
    assert memory.value == pytest.approx(none.value, rel=1e-3)
    assert memory.value - memory.half_width > 1


def test_e4_adversaries_that_do_not_weaken_return_the_reference():
    for row in logistic_regression.fixed_adversaries(options(6), sizes=(500, 2000)):
        assert row["CVaR 0.3 gap"] < 1e-4
        for name in ("CVaR 0.3", "chi-square r = 0.5"):
            assert row[name].value == pytest.approx(1, abs=1e-3)
        assert row["KL, kappa"].value + row["KL, kappa"].half_width < 1


def test_e6_steering_averages_log_odds_and_distillation_probabilities():
    """One input, so that the models are all functions: P(y = 1) is 3/4 of the labels, 0.95 of the
    reference's.
    """
    labels = torch.tensor([[0.0, 1.0, 1.0, 1.0]], dtype=torch.float64)
    problem = newton.Problem(x=torch.ones(1, 4, 1).double(), y=labels, loss="logistic")
    reference, erm, share = torch.logit(torch.tensor([[0.95]]).double()), problem.zeros, 0.3
    steered = rivals.steer(problem, reference, share, erm=erm)
    log_odds = (1 - share) * torch.tensor(3.0).log() + share * reference
    assert_close(steered, log_odds, rtol=1e-6, atol=0)
    taught = rivals.distil(problem, reference, share, erm=erm)
    assert_close(taught.sigmoid().item(), (1 - share) * 0.75 + share * 0.95)


def test_e6_steering_is_the_best_combination_where_noise_is_unequal(monkeypatch):
    """The law: shares of 1/2 and 16/17 for the halves, where distillation has one for both."""
    monkeypatch.setattr(rivals, "SHARES", (0.5, 0.9))
    case = rivals.study_case("unequal noise", options(40))
    found = rivals.primary(case)
    erm, reference = 1 + rivals.NOISY, 2.0
    best = 1 / 2 + 16 / 17
    ratio = best / (erm * reference / (erm + reference))
    assert found["ratio"].covers(ratio, relative_error=0.1)
    assert found["ratio"].value + found["ratio"].half_width < 1
    averaged, distilled = (
        case["risks"][way]["best share"] for way in ("weight averaging", "distillation")
    )
    assert_close(averaged, distilled)  # of least squares they are the same


def test_e5_biases_of_batches_are_those_of_the_expansion():
    names = ("CVaR 0.1", "KL 1", "chi-square 0.1")
    found = estimators.bias_of_batches(options(8000), risks=names, sizes=(64,))
    for name in names:
        (bias,) = found[name]
        predicted = estimators.predicted_bias(estimators.RISKS[name], 64)
        assert bias.covers(predicted, relative_error=0.25)
        assert bias.half_width < 0.5 * abs(predicted)


def test_e5_a_moving_average_trades_bias_for_variance():
    """(That of the learned dual is measured in tests/steering/test_bias.py.)"""
    names = ("batch", "moving average 0.1")
    found = estimators.compare_estimators(options(1000), names=names)
    batch, average = (found[name] for name in names)
    assert batch["mean"].value + batch["mean"].half_width < estimators.TRUTH - 0.3
    gain = average["mean"].value - batch["mean"].value
    assert gain > average["mean"].half_width + batch["mean"].half_width
    assert average["deviation"] > 2 * batch["deviation"]


def test_e5_falling_losses_leave_the_average_behind_as_predicted():
    for row in estimators.drift(falls=(1e-2,), steps=500):
        assert row["sum"] == pytest.approx(row["predicted"], abs=5e-3)
        assert row["normalised"] == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize(
    "risk",
    [
        Mean(),
        KL(temperature=0.7),
        KLCVaR(temperature=0.5, fraction=0.4),
        ChiSquareBall(radius=0.05),
        ChiSquareBall(radius=1.0),
    ],
    ids=repr,
)
def test_the_solvers_curvature_is_the_derivative_of_the_weights(risk):
    f = torch.randn(3, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    curvature = newton.risk_curvature(risk, f)
    expected = torch.diag_embed(curvature.diagonal)
    for u in curvature.vectors:
        expected = expected - u[..., None] * u[..., None, :]
    step = 1e-6
    measured = torch.stack(
        [
            (risk(f + step * e).weights - risk(f - step * e).weights) / (2 * step)
            for e in torch.eye(8, dtype=f.dtype)
        ],
        dim=-1,
    )
    assert_close(measured, expected, atol=1e-6, rtol=1e-5)


def test_the_solver_refuses_what_it_cannot_differentiate():
    with pytest.raises(ValueError, match="not known"):
        newton.risk_curvature(CVaR(fraction=0.5), torch.zeros(1, 3))


def test_the_duality_gap_shows_a_minimum_that_was_missed():
    generator = torch.Generator().manual_seed(0)
    problem = logistic_regression.draw(2, 200, generator)
    risk = KL(temperature=1.0)
    right = newton.minimise(risk, problem)
    assert right.gap.max() < 1e-10
    wrong = right.w + 0.1
    f = problem.excess(wrong)
    value, weights, _ = risk(f)
    gap = newton._gap(problem, wrong, value=value, weights=weights, risk=risk)
    assert (gap >= value - right.value - 1e-12).all()
    assert (gap > 1e-3).all()


def test_every_study_is_on_the_page_with_its_command():
    page = (ROOT / "docs" / "results" / "theory" / "index.md").read_text()
    for name in STUDIES:
        assert f"python experiments/theory/{name}.py --output docs/results/theory" in page
        assert f"{name}.md" in page
        assert f"{name}.png" in page
