"""Measurements beside predictions: panels of points with intervals, lines and bands, as a PNG."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

from drrho.plotting.curves import COLOURS

Scale = Literal["linear", "log"]
# Ratio of the ends of a logarithmic axis below which it is labelled at 1, 2 and 5.
SHORT_AXIS = 200


@dataclass(frozen=True, kw_only=True)
class Series:
    """One line or one set of points.

    Attributes:
        name: for the legend; series of one name share an entry. Empty: none.
        x: positions.
        y: heights, as many.
        half_width: of each point's interval; empty for what has none, such as a prediction.
        style: matplotlib's, of marker and line: "o" measured, "-" predicted, "o-", "--", ".".
        colour: a number, so that what belongs together looks alike; taken modulo the palette.
    """

    name: str
    x: Sequence[float]
    y: Sequence[float]
    half_width: Sequence[float] = ()
    style: str = "o-"
    colour: int = 0


@dataclass(frozen=True, kw_only=True)
class Chart:
    """One set of axes.

    Attributes:
        title: above the axes.
        x_label: of the horizontal axis, with its unit.
        y_label: of the vertical axis, with its unit.
        series: what is drawn.
        x_scale: of the horizontal axis.
        y_scale: of the vertical axis.
        level: the height of a thin line across; None for none.
    """

    title: str
    x_label: str
    y_label: str
    series: Sequence[Series] = field(default_factory=tuple)
    x_scale: Scale = "linear"
    y_scale: Scale = "linear"
    level: float | None = None


def draw_charts(charts: Sequence[Chart], path: Path, *, columns: int = 2) -> None:
    """Draws the charts side by side, each with its legend, and writes a PNG of page width.

    Raises:
        ValueError: there is no chart, or the lengths within a series differ.
    """
    if not charts:
        raise ValueError("draw_charts needs at least one chart")
    columns = min(columns, len(charts))
    lines = -(-len(charts) // columns)
    figure = Figure(figsize=(9.6, 3.9 * lines), layout="constrained")
    FigureCanvasAgg(figure)  # no window system, whatever the environment says
    axes = figure.subplots(lines, columns, squeeze=False).flatten()
    for chart, ax in zip(charts, axes, strict=False):
        _draw(chart, ax)
    for unused in axes[len(charts) :]:
        unused.set_visible(False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def _draw(chart: Chart, ax: Axes) -> None:
    for series in chart.series:
        lengths = {len(series.x), len(series.y), len(series.half_width) or len(series.x)}
        if len(lengths) > 1:
            raise ValueError(f"series {series.name!r} of {chart.title!r} has lengths {lengths}")
        ax.errorbar(
            series.x,
            series.y,
            yerr=list(series.half_width) or None,
            fmt=series.style,
            color=COLOURS[series.colour % len(COLOURS)],
            label=series.name or "_nolegend_",
            markersize=2 if "." in series.style else 4.5,
            linewidth=1.4,
            capsize=2,
        )
    if chart.level is not None:
        ax.axhline(chart.level, color="#888888", linewidth=0.8, zorder=0)
    ax.set_xscale(chart.x_scale)
    ax.set_yscale(chart.y_scale)
    for axis, scale, (low, high) in (
        (ax.xaxis, chart.x_scale, ax.get_xlim()),
        (ax.yaxis, chart.y_scale, ax.get_ylim()),
    ):
        if scale == "log" and high < SHORT_AXIS * low:
            # Powers of ten are too few here, and matplotlib's choice of more overlaps.
            axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axis.set_major_formatter(StrMethodFormatter("{x:g}"))
            axis.set_minor_formatter(NullFormatter())
    ax.set_title(chart.title, fontsize=10)
    ax.set_xlabel(chart.x_label)
    ax.set_ylabel(chart.y_label)
    ax.grid(alpha=0.3)
    handles, names = ax.get_legend_handles_labels()
    if names:
        entries = dict(zip(names, handles, strict=True))
        ax.legend(entries.values(), entries.keys(), fontsize=8, framealpha=0.8)
