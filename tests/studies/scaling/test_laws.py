"""Known laws are recovered, intervals cover them, published numbers fit together."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from drrho.studies.scaling.laws import (
    PowerLaw,
    RunPoints,
    bootstrap_laws,
    curvature_test,
    fit_power_law,
    fit_runs,
    interval_of,
    log_compute_ratio,
    near_chance,
    pareto_front,
)

COMPUTE = torch.logspace(3, 8, 12, dtype=torch.float64)
# Where the published laws are fractions.
LARGE = torch.logspace(8, 13, 12, dtype=torch.float64)
OPENCLIP = PowerLaw(scale=5.77, exponent=0.116)
DRRHO_CLIP = PowerLaw(scale=7.15, exponent=0.127)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def errors(law, compute=COMPUTE, *, noise=0.0, source=None):
    exact = torch.tensor([law.error(c) for c in compute.tolist()], dtype=torch.float64)
    return exact * torch.exp(noise * torch.randn(len(exact), generator=source, dtype=exact.dtype))


def runs(error, compute=COMPUTE):
    return RunPoints(compute=compute, error=error, setting=tuple(map(str, range(len(error)))))


@pytest.mark.parametrize(
    "law", [PowerLaw(scale=0.9, exponent=0.05), PowerLaw(scale=2, exponent=0.3)]
)
@pytest.mark.parametrize("with_floor", [False, True])
def test_a_line_is_recovered(law, with_floor):
    found = fit_power_law(COMPUTE, errors(law), with_floor=with_floor)
    assert found.scale == pytest.approx(law.scale, rel=1e-4)
    assert found.exponent == pytest.approx(law.exponent, rel=1e-4)
    assert found.floor == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize("floor", [0.02, 0.1, 0.3])
def test_a_floor_is_recovered_where_there_is_one(floor):
    law = PowerLaw(scale=2, exponent=0.25, floor=floor)
    found = fit_power_law(COMPUTE, errors(law), with_floor=True)
    assert found.floor == pytest.approx(floor, rel=1e-4)
    assert found.exponent == pytest.approx(0.25, rel=1e-4)
    assert fit_power_law(COMPUTE, errors(law)).exponent < 0.25  # a line through a bend is flatter


def test_the_floor_does_not_pass_the_smallest_error():
    error = torch.tensor([0.5, 0.4, 0.4, 0.4], dtype=torch.float64)
    assert fit_power_law(COMPUTE[:4], error, with_floor=True).floor <= 0.4


def test_the_unit_of_compute_changes_the_scale_alone():
    error = errors(DRRHO_CLIP, LARGE, noise=0.05, source=generator())
    one, other = fit_power_law(LARGE, error), fit_power_law(1000 * LARGE, error)
    assert other.exponent == pytest.approx(one.exponent)
    assert other.error(1e13) == pytest.approx(one.error(1e10))


def test_the_front_is_what_nothing_beats():
    compute = torch.tensor([1.0, 2.0, 2.0, 3.0, 4.0, 4.0])
    error = torch.tensor([0.5, 0.4, 0.45, 0.42, 0.3, 0.3])
    assert pareto_front(compute, error).tolist() == [True, True, False, False, True, True]


def test_the_rule_decides_which_runs_enter():
    bad = torch.tensor([0.9], dtype=torch.float64)
    error = torch.cat([errors(DRRHO_CLIP, LARGE), bad])
    points = runs(error, torch.cat([LARGE, LARGE[-1:]]))
    law = fit_runs(points, rule="pareto")
    assert law.exponent == pytest.approx(DRRHO_CLIP.exponent)
    assert fit_runs(points, rule="all").exponent < DRRHO_CLIP.exponent


def test_intervals_cover_the_law_about_as_often_as_they_say():
    source, covered, trials = generator(1), 0, 40
    for _ in range(trials):
        points = runs(errors(OPENCLIP, LARGE, noise=0.05, source=source), LARGE)
        laws = bootstrap_laws({"clip": points}, generator=source, resamples=100)["clip"]
        low, high = interval_of([law.exponent for law in laws])
        covered += low <= OPENCLIP.exponent <= high
    assert 0.75 <= covered / trials <= 1  # percentiles of 12 points are a little narrow


def test_pairing_removes_what_settings_share():
    """Luck of a setting that moves both methods alike moves no difference."""
    luck = torch.randn(12, generator=generator(), dtype=torch.float64)
    methods = {
        name: runs(errors(law, LARGE) * torch.exp(0.1 * luck), LARGE)
        for name, law in (("clip", OPENCLIP), ("drrho_clip", DRRHO_CLIP))
    }
    laws = bootstrap_laws(methods, generator=generator(), resamples=100)
    differences = [
        b.exponent - a.exponent for a, b in zip(laws["clip"], laws["drrho_clip"], strict=True)
    ]
    assert interval_of(differences) == pytest.approx((0.011, 0.011), abs=1e-9)
    low, high = interval_of([law.exponent for law in laws["clip"]])
    assert high - low > 0.005


def test_seeds_of_a_setting_are_drawn_together():
    points = RunPoints(
        compute=COMPUTE[[0, 0, 5]],
        error=torch.tensor([0.5, 0.6, 0.2]),
        setting=("a", "a", "b"),
    )
    assert points.rows_of(["b", "a"]).error.tolist() == pytest.approx([0.2, 0.5, 0.6])


def test_compute_at_equal_error():
    ratio = math.exp(log_compute_ratio(DRRHO_CLIP, OPENCLIP, error=0.31))
    assert ratio < 1
    at = {law: math.exp(law.log_compute(0.31)) for law in (DRRHO_CLIP, OPENCLIP)}
    assert at[DRRHO_CLIP] / at[OPENCLIP] == pytest.approx(ratio)
    assert DRRHO_CLIP.error(at[DRRHO_CLIP]) == pytest.approx(0.31)
    never = PowerLaw(scale=1, exponent=0.1, floor=0.4)
    assert log_compute_ratio(never, OPENCLIP, error=0.31) == math.inf


def test_the_published_line_meets_the_published_run():
    """arXiv 2505.06699: ViT-B/16, 1.28e9 samples: 5.52 points above its reference's 63.33 %."""
    compute = 2 * 20.57 * 1.28e9
    rounding = 0.0005 * math.log(compute)  # of the exponent
    assert math.log(DRRHO_CLIP.error(compute) / (1 - 0.6333 - 0.0552)) == pytest.approx(
        0, abs=rounding
    )


def test_published_points_of_open_clip_fall_with_compute():
    path = Path(__file__).parents[3] / "docs/results/scaling-openclip/points.csv"
    lines = [
        line.split(",") for line in path.read_text().splitlines() if line.startswith("openclip")
    ]
    points = runs(*(torch.tensor([float(line[i]) for line in lines]).double() for i in (3, 2)))
    assert len(lines) == 29
    law = fit_runs(points, rule="pareto")
    assert law.exponent == pytest.approx(0.121, abs=0.001)


def test_infinite_values_have_their_place():
    assert interval_of([0.0] * 50 + [math.inf] * 50) == (0.0, math.inf)
    assert interval_of([1.0, math.nan]) == (-math.inf, math.inf)


@pytest.mark.parametrize(
    ("compute", "error", "named"),
    [
        ([1.0, 1.0], [0.1, 0.2], "different computes"),
        ([1.0, -1.0], [0.1, 0.2], "compute must be positive"),
        ([1.0, 2.0], [0.1, 20.0], "error must be a fraction"),
        ([1.0, 2.0], [0.1, math.nan], "error must be a fraction"),
    ],
)
def test_what_cannot_be_fitted_is_refused(compute, error, named):
    with pytest.raises(ValueError, match=named):
        fit_power_law(torch.tensor(compute), torch.tensor(error))


def test_too_few_settings_are_refused():
    points = RunPoints(
        compute=COMPUTE[[0, 0]], error=torch.tensor([0.5, 0.6]).double(), setting=("a", "b")
    )
    with pytest.raises(ValueError, match="too few for a bootstrap"):
        bootstrap_laws({"clip": points}, generator=generator(), resamples=2)


def test_a_bend_is_found_and_a_line_is_not_called_one():
    bent = curvature_test(COMPUTE, errors(PowerLaw(scale=2, exponent=0.25, floor=0.1), noise=0.0))
    straight = curvature_test(COMPUTE, errors(OPENCLIP, LARGE, noise=0.02, source=generator()))
    assert bent is not None
    assert straight is not None
    assert bent.quadratic > 0
    assert bent.p < 1e-3 < 0.05 < straight.p
    assert curvature_test(COMPUTE[:3], errors(OPENCLIP, LARGE)[:3]) is None


def test_the_statistic_of_a_bend_is_that_of_least_squares():
    """Against the textbook's formula on five points, worked with numpy's polynomial fit."""
    compute = torch.tensor([1.0, 10, 100, 1000, 1000], dtype=torch.float64)
    error = torch.tensor([0.9, 0.7, 0.4, 0.3, 0.32], dtype=torch.float64)
    x, y = compute.log().numpy(), error.log().numpy()
    fitted, covariance = np.polyfit(x, y, 2, cov="unscaled")
    residuals = y - np.polyval(fitted, x)
    expected = fitted[0] / np.sqrt(covariance[0, 0] * (residuals**2).sum() / 2)
    found = curvature_test(compute, error)
    assert found is not None
    assert found.t == pytest.approx(expected)
    assert found.quadratic == pytest.approx(fitted[0])


def test_a_setting_near_chance_for_one_method_is_left_out_of_all():
    def points(*scores):
        values = torch.tensor(scores, dtype=torch.float64)
        return RunPoints(
            compute=torch.ones(4, dtype=torch.float64),
            error=1 - values,
            setting=("few", "few", "many", "many"),
        )

    methods = {"plain": points(0.05, 0.13, 0.3, 0.3), "steered": points(0.3, 0.3, 0.09, 0.12)}
    assert near_chance(methods, chance=0.01) == {"few"}  # on average over the seeds
    assert near_chance(methods, chance=0.02) == {"few", "many"}
    assert not near_chance(methods, chance=0)
