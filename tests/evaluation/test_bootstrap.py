"""The interval covers the true mean about as often as it says."""

import pytest
import torch

from drrho.evaluation.metrics.bootstrap import bootstrap_interval


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("level", [0.8, 0.95])
def test_interval_covers_the_true_mean_at_its_level(level):
    """Skewed values like reciprocal ranks; 200 data sets of 100 values with mean 1."""
    source = generator()
    covered = 0
    for _ in range(200):
        values = torch.empty(100).exponential_(generator=source)
        low, high = bootstrap_interval(values, generator=source, level=level, resamples=200)
        covered += low <= 1.0 <= high
    assert covered / 200 == pytest.approx(level, abs=0.07)


def test_width_is_that_of_the_normal_interval():
    values = torch.randn(400, generator=generator(), dtype=torch.float64)
    low, high = bootstrap_interval(values, generator=generator(), resamples=2000)
    assert high - low == pytest.approx(2 * 1.96 * values.std().item() / 20, rel=0.1)
    assert low < values.mean() < high


def test_wider_level_contains_the_narrower():
    values = torch.rand(50, generator=generator())
    low, high = bootstrap_interval(values, generator=generator(), level=0.5)
    wider_low, wider_high = bootstrap_interval(values, generator=generator(), level=0.99)
    assert wider_low < low < high < wider_high


def test_generator_decides_everything():
    values = torch.rand(50, generator=generator())
    first = bootstrap_interval(values, generator=generator(3))
    torch.rand(1)
    assert bootstrap_interval(values, generator=generator(3)) == first
    assert bootstrap_interval(values, generator=generator(4)) != first


def test_equal_values_have_no_width():
    assert bootstrap_interval(torch.full((9,), 0.25), generator=generator()) == (0.25, 0.25)


@pytest.mark.parametrize(
    ("values", "options", "message"),
    [
        ([], {}, "at least one"),
        ([1.0, float("nan")], {}, "finite"),
        ([1.0], {"level": 1.0}, "level .* got 1.0"),
        ([1.0], {"resamples": 0}, "resamples .* got 0"),
    ],
)
def test_arguments_out_of_range_are_named(values, options, message):
    with pytest.raises(ValueError, match=message):
        bootstrap_interval(torch.tensor(values), generator=generator(), **options)
