"""Halving spends no more than its budget, keeps leader and control, and its intervals cover."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from drrho.studies.advise.halving import (
    Budget,
    Field,
    choose,
    decide,
    field_of,
    paired_interval,
    race,
)
from drrho.studies.advise.sentences import note_on_early_ranks, notes_of


def raced(means, budget, *, queries=50, noise=0.1, ahead=()):
    """Race arms whose scores are their means and noise; returns rungs and steps of each arm."""
    taken = dict.fromkeys(means, 0)

    def advance(name, step):
        assert step > taken[name], "an arm only goes forward"
        taken[name] = step
        generator = torch.Generator().manual_seed(step)
        shared = torch.randn(queries, generator=generator, dtype=torch.float64)
        own = torch.randn(
            queries, generator=generator.manual_seed(1000 + len(taken) + int(name[4:]))
        )
        return means[name] + noise * (shared + own.double())

    return list(
        race(list(means), control="arm-0", ahead=ahead, budget=budget, advance=advance)
    ), taken


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.floats(0, 1), min_size=2, max_size=14),
    st.integers(90, 3000),
    st.integers(5, 900),
    st.integers(0, 3),
    st.integers(2, 4),
)
def test_a_race_keeps_its_promises(values, steps, length, num_ahead, divisor):
    means = {f"arm-{k}": value for k, value in enumerate(values)}
    ahead = [name for name in means if name != "arm-0"][:num_ahead]
    budget = Budget(steps=steps, length=length, divisor=divisor)
    rungs, taken = raced(means, budget, ahead=ahead)
    assert sum(taken.values()) <= steps
    assert max(taken.values()) <= length
    for rung, following in zip(rungs, [*rungs[1:], None], strict=True):
        assert rung.leader in rung.kept
        assert "arm-0" in rung.kept
        assert all(
            rung.behind[name].low > 0 for name, why in rung.dropped.items() if why == "behind"
        )
        assert not ahead or set(ahead) & set(rung.kept), "one with a head start stays"
        fair = [name for name in rung.mrr if name not in ahead]
        if len(fair) > 2:
            assert len(set(rung.kept) - set(ahead)) <= max(2, -(-len(fair) // divisor))
        if following is not None:
            assert set(following.mrr) == set(rung.kept)
            assert following.step > rung.step
    assert {rung.step for rung in rungs} <= {
        step for step, _ in budget.stops(field_of(means, ahead))
    } or any("behind" in rung.dropped.values() for rung in rungs), (
        "without early drops the rungs are those that a dry run says"
    )


def test_what_nobody_behind_leaves_goes_to_the_survivors():
    clear = {"arm-0": 0.5, "arm-1": 0.9, **{f"arm-{k}": 0.1 for k in range(2, 8)}}
    budget = Budget(steps=800, length=10_000)
    rungs, taken = raced(clear, budget, noise=0.01)
    assert set(rungs[0].dropped.values()) == {"behind"}
    assert rungs[-1].kept == ("arm-0", "arm-1")
    assert taken["arm-1"] > budget.stops(Field(8))[-1][0], "more than halving alone would give it"
    assert sum(taken.values()) > 750


def test_a_race_ends_where_the_control_alone_is_left():
    rungs, taken = raced({"arm-0": 0.9, "arm-1": 0.1, "arm-2": 0.1}, Budget(steps=300, length=900))
    assert len(rungs) == 1
    assert rungs[0].kept == ("arm-0",)
    assert sum(taken.values()) < 200, "what is left of the budget is not spent"


def test_a_head_start_drops_nobody():
    means = {"arm-0": 0.1, "arm-1": 0.9, "arm-2": 0.1, "arm-3": 0.12, "arm-4": 0.13}
    rungs, _ = raced(means, Budget(steps=300, length=900), noise=0.01, ahead=["arm-1"])
    assert rungs[0].leader == "arm-4"
    assert "arm-1" in rungs[-1].mrr
    assert set(rungs[-1].mrr) >= {"arm-0", "arm-1", "arm-4"}


def test_impossible_races_are_refused():
    with pytest.raises(ValueError, match="none for each of 8 arms in every rung, which takes 24"):
        Budget(steps=20, length=100).stops(Field(8))
    with pytest.raises(ValueError, match="plain training and another arm, got 1"):
        Budget(steps=20, length=100).stops(Field(1))
    with pytest.raises(ValueError, match="two finite values or more"):
        paired_interval(torch.tensor([1.0], dtype=torch.float64))


@pytest.mark.parametrize("comparisons", [1, 5])
def test_paired_intervals_cover_as_often_as_they_say(comparisons):
    """Of 400 races of arms that are equal, all intervals hold the zero in 95 % or more."""
    generator, held = torch.Generator().manual_seed(0), 0
    for _ in range(400):
        differences = torch.rand(comparisons, 200, generator=generator, dtype=torch.float64) - 0.5
        found = [paired_interval(row, comparisons=comparisons) for row in differences]
        held += all(one.low <= 0 <= one.high for one in found)
    assert 0.92 <= held / 400 <= 0.98  # 2.7 standard errors about 0.95


def test_the_simplest_arm_within_a_standard_error_is_chosen():
    noise = torch.randn(100, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    noise -= noise.mean()
    base = torch.zeros(100, dtype=torch.float64)
    error = float(noise.std()) / 10
    scores = {"plain": base, "start": base + noise + 0.9 * error, "steer": base + 5 * error}
    assert choose(scores)[0] == "steer", "start is beyond one standard error of the leader"
    scores = {"plain": base, "steer": base + noise + 0.9 * error}
    assert choose(scores) == ("plain", ("steer",))
    scores = {"plain": base, "steer": base + noise + 1.1 * error}
    assert choose(scores) == ("steer", ("plain",)), "chosen, and said not to be told apart"
    scores = {"plain": base, "steer": base + noise + 5 * error}
    assert choose(scores) == ("steer", ())


def test_equal_arms_keep_the_simpler():
    same = {name: torch.full((30,), 0.3, dtype=torch.float64) for name in ("plain", "a", "b", "c")}
    rung = decide(same, step=1, control="plain")
    assert rung.leader == "plain"
    assert rung.kept == ("plain", "a")
    assert choose(same) == ("plain", ("a", "b", "c"))


def test_a_race_without_a_head_start_says_which_runs_to_finish():
    (note,) = note_on_early_ranks(["plain", "steer-1"], step=100, length=400)
    assert "continue the runs of plain and steer-1" in note
    assert not list(note_on_early_ranks(["plain", "steer-1"], step=400, length=400))


def test_arms_that_were_dropped_by_chance_are_named():
    generator = torch.Generator().manual_seed(0)
    near = {
        name: 0.02 + 0.1 * torch.randn(50, generator=generator, dtype=torch.float64)
        for name in ("plain", "arm-a", "arm-b", "arm-c")
    }
    blind = decide(near, step=3, control="plain")
    seeing = decide({name: values + 1 for name, values in near.items()}, step=6, control="plain")
    assert blind.dropped == {"arm-b": "behind", "arm-c": "outranked"}
    (note,) = notes_of([blind, seeing], guessing=0.04)
    assert note.startswith("at step 3 the leader could not be told from guessing (0.040)")
    assert "chance that dropped arm-c:" in note, "the other was told from the leader"
