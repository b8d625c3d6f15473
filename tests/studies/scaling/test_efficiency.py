"""Sample ratios are read off a monotone curve, and never from beyond it."""

import math
from pathlib import Path

import pytest
import torch

from drrho.runtime.records import read_record
from drrho.studies.scaling.efficiency import sample_ratios, samples_at_equal_score
from drrho.studies.scaling.results import EfficiencyResults
from drrho.studies.scaling.tables import efficiency_in_words

SAMPLES = (1000, 2000, 4000, 8000)


def generator():
    return torch.Generator().manual_seed(0)


def curve(gain, *, factor=1.0, noise=0.0, seeds=3):
    """Scores 0.1 log2(n factor) + noise by seed."""
    source = torch.Generator().manual_seed(7)
    return {
        n: {
            seed: gain * math.log2(n * factor) + noise * float(torch.randn((), generator=source))
            for seed in range(seeds)
        }
        for n in SAMPLES
    }


def test_a_known_ratio_is_found_where_it_was_measured():
    ratios = sample_ratios(curve(0.1, factor=2.5), curve(0.1), generator=generator(), resamples=100)
    assert [r.bound for r in ratios] == ["exact", "exact", "at_least", "at_least"]
    assert [r.ratio for r in ratios] == pytest.approx([2.5, 2.5, 2.0, 1.0])
    assert (ratios[0].low, ratios[0].high) == pytest.approx((2.5, 2.5))
    assert math.isinf(ratios[2].low)
    assert math.isinf(ratios[3].high)


def test_a_worse_method_has_a_ratio_below_one():
    ratios = sample_ratios(curve(0.1, factor=0.5), curve(0.1), generator=generator(), resamples=100)
    assert [r.bound for r in ratios] == ["at_most", "exact", "exact", "exact"]
    assert [r.ratio for r in ratios] == pytest.approx([1.0, 0.5, 0.5, 0.5])
    assert ratios[0].low == 0


def test_more_noise_makes_wider_intervals_around_the_ratio():
    widths = []
    for noise in (0.005, 0.02):
        ratio = sample_ratios(
            curve(0.1, factor=2, noise=noise),
            curve(0.1, noise=noise / 2),
            generator=generator(),
            resamples=100,
        )[0]
        assert ratio.low <= ratio.ratio <= ratio.high
        widths.append(ratio.high - ratio.low)
    assert widths[0] < widths[1]


def test_a_fall_in_the_curve_is_levelled():
    """0.3, 0.2 become 0.25: the fewest samples that reach the level count."""
    assert samples_at_equal_score((10, 20, 40), (0.3, 0.2, 0.5), 0.25) == (10.0, "exact")
    number, bound = samples_at_equal_score((10, 20, 40), (0.3, 0.2, 0.5), 0.375)
    assert number == pytest.approx(20 * math.sqrt(2))
    assert bound == "exact"


def test_runs_that_cannot_be_paired_are_refused():
    one = curve(0.1)
    with pytest.raises(ValueError, match="same seeds"):
        sample_ratios(one, curve(0.1, seeds=2), generator=generator())
    with pytest.raises(ValueError, match="two or more"):
        sample_ratios(curve(0.1, seeds=1), curve(0.1, seeds=1), generator=generator())


@pytest.mark.parametrize(
    ("samples", "scores", "named"),
    [
        ((10,), (0.1,), "two numbers"),
        ((20, 10), (0.1, 0.2), "increase"),
        ((1, 2), (0.1, math.nan), "finite"),
    ],
)
def test_a_curve_needs_points_in_order(samples, scores, named):
    with pytest.raises(ValueError, match=named):
        samples_at_equal_score(samples, scores, 0.1)


def test_an_end_beyond_what_was_measured_is_read_as_it_was_written():
    """JSON has no infinity: a file has null there."""
    folder = Path(__file__).parents[3] / "docs" / "results" / "efficiency-scenes"
    results = read_record(folder / "efficiency.json", EfficiencyResults)
    assert [row.high for row in results.ratios] == [math.inf] * 4
    assert [row.low == math.inf for row in results.ratios] == [False, True, True, True]
    table = efficiency_in_words(results).split("\n\n")[0]
    assert table == (folder / "efficiency.md").read_text().split("\n\n")[0]
