"""The race as a picture: scores against steps, one line for each arm."""

from collections.abc import Mapping
from pathlib import Path

from drrho.plotting.chart import Chart, Series
from drrho.plotting.palette import COLOURS
from drrho.plotting.png import draw_png
from drrho.studies.advise.config import Use
from drrho.studies.advise.results import AdviceResults

# The methods' places in the palette, so that a use has the colour of its objective elsewhere.
PLACES: Mapping[Use, int] = {
    "plain": 1,
    "steer": 2,
    "distil": 5,
    "start": 3,
    "union": 4,
    "filter": 6,
    "both": 7,
}


def race_chart(results: AdviceResults) -> Chart:
    """Draw the mean reciprocal rank of each arm at the steps where it was compared."""
    series = []
    for name, arm in results.arms.items():
        rungs = [rung for rung in results.rungs if name in rung.mrr]
        if not rungs:
            continue
        ends = [rung.mrr[name] for rung in rungs]
        series.append(
            Series(
                name=f"{name}, recommended" if name == results.recommended else name,
                x=[rung.step for rung in rungs],
                y=[end.mean for end in ends],
                low=[end.low for end in ends],
                high=[end.high for end in ends],
                style="o-" if name == results.recommended else "o--",
                colour=PLACES[arm.use] % len(COLOURS),
                hollow=name != results.recommended,
            )
        )
    return Chart(
        title="",
        x_label=f"optimiser steps, of {results.planned_steps:,}",
        y_label="MRR on held-out pairs, with 95 % interval",
        series=series,
        levels={"guessing": results.guessing},
    )


def draw_race(results: AdviceResults, path: Path) -> None:
    """Draw the race into a PNG; OSError if it cannot be written."""
    draw_png([race_chart(results)], path, size=(8, 4.6))
