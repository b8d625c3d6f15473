"""What the crossed bootstrap of seeds and queries promises."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from drrho.evaluation.metrics.bootstrap import bootstrap_interval
from drrho.evaluation.metrics.hierarchical import (
    first_minus_second,
    hierarchical_interval,
    mean_of_first,
    recovered_gap,
    resampled_means,
)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def table(seeds, queries, seed=0):
    return torch.rand(seeds, queries, generator=generator(seed), dtype=torch.float64)


def test_one_seed_is_the_bootstrap_over_queries():
    values = table(1, 50)
    expected = bootstrap_interval(values[0], generator=generator(), resamples=999)
    found = hierarchical_interval([values], mean_of_first, generator=generator(), resamples=999)
    assert found == pytest.approx(expected, abs=2e-3)  # quantiles without interpolation


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 5), st.integers(1, 20), st.floats(-3, 3))
def test_a_constant_difference_has_an_interval_of_no_length(seeds, queries, shift):
    values = table(seeds, queries)
    low, high = hierarchical_interval(
        [values + shift, values], first_minus_second, generator=generator(), resamples=50
    )
    assert low == pytest.approx(shift, abs=1e-12)
    assert high == pytest.approx(shift, abs=1e-12)


def test_its_variance_is_that_of_seeds_and_queries_together():
    """Of effects that add up, the sum of what each gives alone."""
    seed_effect = torch.randn(8, 1, generator=generator(1), dtype=torch.float64)
    query_effect = torch.randn(1, 400, generator=generator(2), dtype=torch.float64)
    means = resampled_means([seed_effect + query_effect], generator=generator(), resamples=4000)
    expected = seed_effect.var(correction=0) / 8 + query_effect.var(correction=0) / 400
    assert float(means.var()) == pytest.approx(float(expected), rel=0.1)


def test_the_gap_is_0_for_the_weak_and_1_for_the_ceiling():
    weak, ceiling = table(1, 30), 1 + table(3, 30, 1)
    for method, share in ((weak.expand(3, -1), 0.0), (ceiling, 1.0)):
        low, high = hierarchical_interval(
            [method, weak, ceiling], recovered_gap, generator=generator(), resamples=50
        )
        assert (low, high) == pytest.approx((share, share))
    assert recovered_gap(torch.tensor([[0.5, 0.6, 0.6]])).isnan().all()


@pytest.mark.parametrize(
    "tables", [[], [table(2, 3), table(3, 3)], [table(2, 3), table(2, 4)], [table(2, 3) / 0]]
)
def test_what_does_not_fit_is_refused(tables):
    with pytest.raises(ValueError, match=r"table|finite"):
        resampled_means(tables, generator=generator())
