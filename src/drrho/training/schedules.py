"""Schedules: pure functions from the number of steps already taken to a value.

Their position needs no state of its own, so a resumed run continues them exactly. All raise
ValueError for a value that is not finite, and when called with a negative step.
"""

import math
from collections.abc import Callable
from typing import Literal

from drrho.runtime.checks import require_at_least, require_finite, require_positive

Schedule = Callable[[int], float]
GAMMA_DECAY_SHARE = 0.5


def constant(value: float) -> Schedule:
    """Return a schedule that has the same value at every step."""
    require_finite(value=value)
    return _checked(lambda _step: value)


def cosine(start: float, end: float, *, steps: int) -> Schedule:
    """Half a cosine from exactly `start` at step 0 to exactly `end` at `steps`, then `end`.

    `end + (start - end) * (1 + cos(pi * step / steps)) / 2`, never outside the two values.

    Raises:
        ValueError: `steps` is not positive.
    """
    require_finite(start=start, end=end)
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}; use constant() for no decay")
    low, high = min(start, end), max(start, end)

    def schedule(step: int) -> float:
        if step == 0:
            return start
        if step >= steps:
            return end
        share = (1 + math.cos(math.pi * step / steps)) / 2
        # Rounding may exceed the interval by one unit in the last place, and gamma = 1 + 2e-16
        # would be rejected.
        return min(max(end + (start - end) * share, low), high)

    return _checked(schedule)


def averaging_rate(
    final: float,
    *,
    kind: Literal["cosine", "constant"],
    steps: int,
    decay_share: float | None = None,
) -> Schedule:
    """Return the schedule of gamma, the weight of the newest batch in averages.

    Args:
        final: value at the end, in (0, 1].
        kind: "cosine" falls from 1 over the first part of the run, as published; "constant" is
            `final` throughout.
        steps: optimiser steps of the whole run.
        decay_share: that part as a share of the run; None is the half that FastCLIP recommends.
    """
    if kind == "constant":
        return constant(final)
    share = GAMMA_DECAY_SHARE if decay_share is None else decay_share
    return cosine(1.0, final, steps=max(1, round(share * steps)))


def warmup_cosine(
    peak: float, *, warmup_steps: int, total_steps: int, final: float = 0.0
) -> Schedule:
    """Linear rise to `peak`, then half a cosine to `final`: the usual learning rate.

    Step s of the warm-up has `peak * (s + 1) / warmup_steps`: the first step already moves, and
    step `warmup_steps - 1` is the first with the whole peak. The cosine starts at `warmup_steps`
    and reaches `final` at `total_steps`, one past the last step of a run of that length, so that
    no step is spent at a rate of 0. The same convention as open_clip's.

    Raises:
        ValueError: `total_steps` is not positive, or `warmup_steps` is not between 0 and it.
    """
    require_finite(peak=peak, final=final)
    require_at_least(1, total_steps=total_steps)
    if not 0 <= warmup_steps <= total_steps:
        raise ValueError(
            f"warmup_steps must be between 0 and total_steps = {total_steps}, got {warmup_steps}"
        )
    decay_steps = total_steps - warmup_steps
    decay = cosine(peak, final, steps=decay_steps) if decay_steps else constant(final)
    return after_warmup(decay, peak, warmup_steps=warmup_steps)


def after_warmup(decay: Schedule, peak: float, *, warmup_steps: int) -> Schedule:
    """Linear rise to `peak`, then `decay`, whose step 0 is step `warmup_steps`."""

    def schedule(step: int) -> float:
        if step < warmup_steps:
            return peak * ((step + 1) / warmup_steps)
        return decay(step - warmup_steps)

    return _checked(schedule)


def after_rest(schedule: Schedule, *, steps: int) -> Schedule:
    """0 for some steps, then `schedule`, whose step 0 is the first after them."""
    return (
        _checked(lambda step: 0.0 if step < steps else schedule(step - steps))
        if steps
        else schedule
    )


def cooldown(peak: float, final: float, *, start: int, steps: int, power: float = 1.0) -> Schedule:
    """`peak` until step `start`, then a polynomial to `final`, reached `steps` later.

    `final + (peak - final) * (1 - (step - start) / steps)^power`, as open_clip's `const-cooldown`.

    Raises:
        ValueError: `start` is negative, or `steps` or `power` is not positive.
    """
    require_finite(peak=peak, final=final)
    require_at_least(0, start=start)
    require_at_least(1, steps=steps)
    require_positive(power=power)

    def schedule(step: int) -> float:
        left = min(1.0, max(0.0, 1 - (step - start) / steps))
        return peak if left == 1 else final + (peak - final) * left**power

    return _checked(schedule)


def _checked(schedule: Schedule) -> Schedule:
    def checked(step: int) -> float:
        if step < 0:
            raise ValueError(f"step counts the steps taken and is not negative, got {step}")
        return schedule(step)

    return checked
