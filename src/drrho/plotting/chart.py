"""Charts as plain data: `png` draws them into a file, `svg` for a page."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

Scale = Literal["linear", "log"]


@dataclass(frozen=True, kw_only=True)
class Series:
    """One line, set of points or histogram (`steps`).

    Attributes:
        name: entry of the legend, shared by series of one name; empty for none.
        x, y: positions and heights; of a histogram the edges, one more, and heights.
        half_width: half the width of each point's interval; empty for none.
        low, high: ends of each point's interval, in place of `half_width`.
        interval: how intervals are drawn: upright bars, bars along the horizontal axis, whose
            ends are positions, or a band around a line.
        style: matplotlib's marker and line: "o" measured, "-" predicted, "o-", "--", ".".
        mark: marker at some points of a line; empty for none.
        colour: place in the palette, which wraps around; None for grey.
        hollow: whether markers are hollow.
    """

    name: str
    x: Sequence[float]
    y: Sequence[float]
    half_width: Sequence[float] = ()
    low: Sequence[float] = ()
    high: Sequence[float] = ()
    interval: Literal["upright", "along", "band"] = "upright"
    style: str = "o-"
    mark: str = ""
    colour: int | None = 0
    hollow: bool = False
    steps: bool = False


def row_with_interval(
    place: int,
    value: float,
    low: float,
    high: float,
    *,
    colour: int | None,
    hollow: bool = False,
) -> Series:
    """A value with its interval in one row of a forest plot."""
    return Series(
        name="",
        x=[value],
        y=[place],
        low=[low],
        high=[high],
        interval="along",
        style="o",
        colour=colour,
        hollow=hollow,
    )


@dataclass(frozen=True, kw_only=True)
class Chart:
    """One set of axes; labels name the unit.

    Attributes:
        level: height of a thin line across; None for none.
        levels: name -> height of a dashed line with its name.
        upright: position of a line from bottom to top; None for none.
        rows: names in place of the numbers 0, 1, ... of the vertical axis, from the top.
        row_notes: text on the right of each row; empty for none.
        x_ticks: positions to name; empty leaves the choice to the axis.
        x_range: ends of the horizontal axis; None leaves an end to the data.
        legend: whether the axes have a legend of their own.
    """

    title: str
    x_label: str
    y_label: str
    series: Sequence[Series] = field(default_factory=tuple)
    x_scale: Scale = "linear"
    y_scale: Scale = "linear"
    level: float | None = None
    levels: Mapping[str, float] = field(default_factory=dict)
    upright: float | None = None
    rows: Sequence[str] = ()
    row_notes: Sequence[str] = ()
    x_ticks: Sequence[float] = ()
    x_range: tuple[float | None, float | None] = (None, None)
    legend: bool = True

    def __post_init__(self):
        for series in self.series:
            num_y = len(series.y)
            lengths = {len(series.x) - series.steps, num_y}
            lengths |= {len(ends) for ends in (series.half_width, series.low, series.high) if ends}
            if len(lengths) > 1:
                raise ValueError(f"series {series.name!r} of {self.title!r} has lengths {lengths}")
