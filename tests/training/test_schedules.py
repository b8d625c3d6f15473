"""Schedules are exact at their ends, bounded and monotone between."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drrho.training.schedules import constant, cosine, warmup_cosine

values = st.floats(-1e6, 1e6)
lengths = st.integers(1, 60)
examples = settings(max_examples=40)


@examples
@given(values, values, lengths)
def test_cosine_goes_from_start_to_end_and_stays(start, end, steps):
    schedule = cosine(start, end, steps=steps)
    assert schedule(0) == start
    assert schedule(steps) == schedule(steps + 1) == schedule(10 * steps) == end


@examples
@given(values, values, lengths)
def test_cosine_is_monotone_and_within_its_ends(start, end, steps):
    path = [cosine(start, end, steps=steps)(step) for step in range(steps + 2)]
    assert path == sorted(path, reverse=start > end)
    assert min(path) >= min(start, end)
    assert max(path) <= max(start, end)


@examples
@given(lengths)
def test_cosine_is_symmetric_about_its_middle(half):
    schedule = cosine(1.0, 0.0, steps=2 * half)
    assert schedule(half) == pytest.approx(0.5)
    for step in range(half):
        assert schedule(step) + schedule(2 * half - step) == pytest.approx(1.0)


@examples
@given(st.floats(1e-6, 1.0), st.integers(0, 20), st.integers(0, 60), st.floats(0, 1e-7))
def test_warmup_rises_linearly_then_decays_to_the_final_value(peak, warmup, decay, final):
    total = warmup + decay
    if total == 0:
        return
    schedule = warmup_cosine(peak, warmup_steps=warmup, total_steps=total, final=final)
    for step in range(warmup):
        assert schedule(step) == pytest.approx(peak * (step + 1) / warmup)
    if warmup:
        assert schedule(warmup - 1) == peak
    if decay:
        assert schedule(warmup) == peak
    assert schedule(total) == schedule(total + 5) == final
    decaying = [schedule(step) for step in range(warmup, total + 1)]
    assert decaying == sorted(decaying, reverse=True)


def test_no_step_of_a_run_is_spent_at_rate_zero():
    schedule = warmup_cosine(1.0, warmup_steps=10, total_steps=100)
    assert all(schedule(step) > 0 for step in range(100))


def test_constant():
    assert {constant(0.3)(step) for step in (0, 1, 10**9)} == {0.3}


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: constant(math.nan), "value must be finite, got nan"),
        (lambda: cosine(math.inf, 0.0, steps=1), "start must be finite"),
        (lambda: cosine(1.0, math.nan, steps=1), "end must be finite"),
        (lambda: cosine(1.0, 0.0, steps=0), "steps must be at least 1, got 0"),
        (lambda: warmup_cosine(1.0, warmup_steps=0, total_steps=0), "total_steps"),
        (lambda: warmup_cosine(1.0, warmup_steps=-1, total_steps=9), "warmup_steps .* got -1"),
        (lambda: warmup_cosine(1.0, warmup_steps=10, total_steps=9), "warmup_steps .* got 10"),
        (lambda: warmup_cosine(math.nan, warmup_steps=0, total_steps=9), "peak must be finite"),
        (lambda: constant(1.0)(-1), "got -1"),
        (lambda: cosine(1.0, 0.0, steps=3)(-1), "got -1"),
        (lambda: warmup_cosine(1.0, warmup_steps=1, total_steps=3)(-1), "got -1"),
    ],
)
def test_arguments_out_of_range_are_named(build, message):
    with pytest.raises(ValueError, match=message):
        build()
