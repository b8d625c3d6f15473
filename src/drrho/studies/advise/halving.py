"""Successive halving of arms over a budget of training steps: a pure function of their scores.

Arms share initial weights and the order of the data, and are scored on the same queries, so that
they are compared query by query.
"""

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float64
from torch import Tensor

from drrho.evaluation.metrics.interval import Interval
from drrho.runtime.checks import require_at_least

Scores = Mapping[str, Float64[Tensor, " queries"]]
Why = Literal["behind", "outranked"]
LEVEL = 0.95


@dataclass(frozen=True, kw_only=True)
class Rung:
    """A step at which arms were compared.

    Attributes:
        step: optimiser steps that each of them has taken.
        leader: arm with the largest mean of those without a head start.
        mrr: mean score by arm, with its 95 % interval over queries.
        behind: score of the leader, or of the best arm with a head start for the others of these,
            less the arm's, paired by query; the intervals of a group hold at 95 % together.
        dropped: arms that went no further: "behind" by the whole interval, or "outranked", where
            there was room for fewer.
    """

    step: int
    leader: str
    mrr: Mapping[str, Interval]
    behind: Mapping[str, Interval]
    dropped: Mapping[str, Why]

    @property
    def kept(self) -> tuple[str, ...]:
        """Arms that went on."""
        return tuple(name for name in self.mrr if name not in self.dropped)


class Field(NamedTuple):
    """Number of arms that begin alike, and of those with a head start."""

    fair: int
    ahead: int = 0

    @property
    def arms(self) -> int:
        return self.fair + self.ahead

    @property
    def is_last(self) -> bool:
        """Whether there is nothing to halve, so that all continue to the end of the budget."""
        return self.fair <= 2 and self.ahead <= 1

    def rungs(self, divisor: int) -> int:
        """Count the rungs that keeping one of so many at each leads to."""
        field, count = self, 1
        while not field.is_last:
            field, count = field.reduced(divisor), count + 1
        return count

    def reduced(self, divisor: int) -> "Field":
        """Return what is left where intervals drop nobody beforehand."""
        return Field(
            _room(self.fair, divisor, least=2), _room(self.ahead, divisor, least=min(1, self.ahead))
        )


@dataclass(frozen=True, kw_only=True)
class Budget:
    """What a race may take.

    Attributes:
        steps: optimiser steps of all arms together.
        length: steps of a whole run, beyond which no arm goes.
        divisor: one of so many arms goes on at a rung.
    """

    steps: int
    length: int
    divisor: int = 2

    def __post_init__(self) -> None:
        require_at_least(1, steps=self.steps, length=self.length)
        require_at_least(2, divisor=self.divisor)

    def next_stop(self, step: int, field: Field, *, left: int) -> int | None:
        """Return how far the arms go from a common step; None if not one step further.

        What is left is shared equally between the rungs that halving leads to, and in a rung
        between its arms.
        """
        stop = min(self.length, step + left // (field.rungs(self.divisor) * field.arms))
        return stop if stop > step else None

    def stops(self, field: Field) -> list[tuple[int, int]]:
        """List step and number of arms of every rung, where intervals drop nobody beforehand.

        Raises:
            ValueError: there are fewer than two arms, or not a step for each in every rung.
        """
        if field.arms < 2:
            raise ValueError(f"a race needs plain training and another arm, got {field.arms}")
        if self.next_stop(0, field, left=self.steps) is None:
            least = field.arms * field.rungs(self.divisor)
            raise ValueError(
                f"a budget of {self.steps:,} steps has none for each of {field.arms} arms in every "
                f"rung, which takes {least:,}: raise the budget, or race fewer uses"
            )
        found, step, left = [], 0, self.steps
        while (stop := self.next_stop(step, field, left=left)) is not None:
            found.append((stop, field.arms))
            left -= field.arms * (stop - step)
            step = stop
            if field.is_last:
                break
            field = field.reduced(self.divisor)
        return found


def race(
    arms: Sequence[str],
    *,
    control: str,
    ahead: Collection[str] = (),
    budget: Budget,
    advance: Callable[[str, int], Float64[Tensor, " queries"]],
) -> Iterator[Rung]:
    """Race arms by successive halving, and yield each rung when it is decided.

    Args:
        arms: names, the simplest first, which is kept where means are equal.
        control: arm that is never dropped, so that the last rung compares with it.
        ahead: arms with a head start, which begin with trained weights. They are compared with
            each other alone, and the best of them stays: what they lead by early is no reason to
            drop those that begin at random.
        advance: brings an arm to a step and returns its scores there, one for each query.

    Raises:
        ValueError: as `Budget.stops`.
    """
    standing, step, left = list(arms), 0, budget.steps
    budget.stops(field_of(standing, ahead))
    while True:
        field = field_of(standing, ahead)
        stop = budget.next_stop(step, field, left=left)
        if stop is None:
            return
        left -= field.arms * (stop - step)
        step = stop
        scores = {name: advance(name, step) for name in standing}
        rung = decide(scores, step=step, control=control, ahead=ahead, divisor=budget.divisor)
        yield rung
        if field.is_last or len(rung.kept) == 1:
            return
        standing = list(rung.kept)


def field_of(arms: Collection[str], ahead: Collection[str]) -> Field:
    """Count arms with and without a head start."""
    ahead_of_all = sum(name in ahead for name in arms)
    return Field(len(arms) - ahead_of_all, ahead_of_all)


def decide(
    scores: Scores, *, step: int, control: str, ahead: Collection[str] = (), divisor: int = 2
) -> Rung:
    """Compare arms at a step; drop those behind the leader of their group, and the worse of it.

    The control and the leaders stay. Of the last field nobody is dropped.
    """
    field = field_of(scores, ahead)
    room = field.reduced(divisor)
    fair = {name: values for name, values in scores.items() if name not in ahead}
    others = {name: values for name, values in scores.items() if name in ahead}
    behind, dropped = _dropped(fair, room=room.fair, control=control)
    behind_ahead, dropped_ahead = _dropped(others, room=room.ahead, control=None)
    return Rung(
        step=step,
        leader=_leader(fair),
        mrr={name: paired_interval(values) for name, values in scores.items()},
        behind=behind | behind_ahead,
        dropped={} if field.is_last else dropped | dropped_ahead,
    )


def _leader(scores: Scores) -> str:
    """Return the arm with the largest mean, the first of equals."""
    return max(scores, key=lambda name: float(scores[name].mean()))


def _dropped(
    scores: Scores, *, room: int, control: str | None
) -> tuple[dict[str, Interval], dict[str, Why]]:
    """Return how far each arm is behind the leader, and those for which there is no room."""
    if not scores:
        return {}, {}
    leader = _leader(scores)
    behind = {
        name: paired_interval(scores[leader] - values, comparisons=len(scores) - 1)
        for name, values in scores.items()
        if name != leader
    }
    dropped: dict[str, Why] = {
        name: "behind" for name in behind if behind[name].low > 0 and name != control
    }
    ranked = sorted(scores, key=lambda name: -float(scores[name].mean()))  # stable
    others = [name for name in ranked if name not in dropped and name != control]
    dropped |= dict.fromkeys(others[room - (control is not None) :], "outranked")
    return behind, dropped


def paired_interval(
    values: Float64[Tensor, " queries"], *, level: float = LEVEL, comparisons: int = 1
) -> Interval:
    """Compute the mean of values or of paired differences, with its normal interval.

    It says how the mean would differ with other queries, and nothing about other training runs.

    Args:
        comparisons: number of intervals that are to hold together at the level, by Bonferroni.

    Raises:
        ValueError: there are fewer than two values, or one is not finite.
    """
    error = standard_error(values)
    tail = torch.tensor((1 - level) / (2 * comparisons), dtype=torch.float64)
    half = -float(torch.special.ndtri(tail)) * error
    mean = float(values.mean())
    return Interval(mean=mean, low=mean - half, high=mean + half)


def standard_error(values: Float64[Tensor, " queries"]) -> float:
    """Compute the standard error of the mean of independent values; errors as `paired_interval`."""
    if len(values) < 2 or not bool(values.isfinite().all()):
        raise ValueError(f"an interval needs two finite values or more, got {values}")
    return float(values.std()) / math.sqrt(len(values))


def choose(scores: Scores) -> tuple[str, tuple[str, ...]]:
    """Choose the simplest arm within one standard error of the leader.

    Args:
        scores: scores of the arms at the same step, the simplest arm first.

    Returns:
        The arm, and those that cannot be told apart from it: zero is inside the 95 % interval of
        their paired difference.
    """
    leader = max(scores, key=lambda name: float(scores[name].mean()))
    chosen = leader
    for name, values in scores.items():
        lead = scores[leader] - values
        if name == leader or float(lead.mean()) <= standard_error(lead):
            chosen = name
            break
    alike = []
    for name, values in scores.items():
        if name != chosen:
            found = paired_interval(scores[chosen] - values)
            if found.low <= 0 <= found.high:
                alike.append(name)
    return chosen, tuple(alike)


def _room(arms: int, divisor: int, *, least: int) -> int:
    """Count the arms that go on of so many, rounded up."""
    return min(arms, max(least, -(-arms // divisor)))
