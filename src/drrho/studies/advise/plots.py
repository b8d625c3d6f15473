"""The race as a picture: scores against steps, one line for each arm."""

from collections.abc import Mapping
from pathlib import Path

from drrho.plotting.chart import Chart, Series
from drrho.plotting.palette import marker, places
from drrho.plotting.png import draw_png
from drrho.studies.advise.config import Use
from drrho.studies.advise.results import AdviceResults

# The first arm of a use has the colour of its method elsewhere.
METHODS: Mapping[Use, str] = {
    "plain": "fastclip",
    "steer": "drrho_clip",
    "distil": "fastclip_distillation",
    "filter": "filter",
    "both": "drrho_clip_distillation",
}


def arm_places(results: AdviceResults) -> dict[str, int]:
    """Give each raced arm a place in the palette."""
    names: dict[str, str] = {}
    for name, arm in results.arms.items():
        method = METHODS.get(arm.use, name)
        if name in results.compared:
            names[name] = name if method in names.values() else method
    found = places(names.values())
    return {name: found[method] for name, method in names.items()}


def race_chart(results: AdviceResults) -> Chart:
    """Draw the mean reciprocal rank of each arm at the steps where it was compared."""
    series = []
    for name, place in arm_places(results).items():
        rungs = [rung for rung in results.rungs if name in rung.mrr]
        ends = [rung.mrr[name] for rung in rungs]
        chosen = name == results.recommended
        series.append(
            Series(
                name=f"{name}, recommended" if chosen else name,
                x=[rung.step for rung in rungs],
                y=[end.mean for end in ends],
                low=[end.low for end in ends],
                high=[end.high for end in ends],
                style=f"{marker(place)}{'-' if chosen else '--'}",
                colour=place,
                hollow=not chosen,
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
