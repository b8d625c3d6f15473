"""Charts on matplotlib's axes, for both back ends."""

from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.ticker import EngFormatter, LogLocator, NullFormatter, StrMethodFormatter

from drrho.plotting.chart import Chart, Series

# Ratio of the ends of a logarithmic axis below which more than powers of ten are labelled.
SHORT_AXIS = 200
MARK_ROOM = 0.05  # of an axis, beyond the outermost mark
MARKED = 8  # marks on a line that has them
LONG_NUMBER = 10_000  # from here on an axis says 50k, 2M: long numbers collide


@dataclass(frozen=True, kw_only=True)
class Look:
    """Colours of the palette, of lesser lines and of axes, and widths in points, of a back end."""

    colours: Sequence[str]
    muted: str = "#888888"
    ink: str = "#000000"
    line: float = 1.4
    marker: float = 4.5


def draw_axes(axes: Axes, chart: Chart, look: Look) -> None:
    """Draws a chart without title and legend."""
    for series in chart.series:
        _draw_series(axes, series, look)
    if chart.level is not None:
        axes.axhline(chart.level, color=look.muted, linewidth=0.8, zorder=0)
    for name, height in chart.levels.items():
        axes.axhline(height, color=look.muted, linestyle="--", linewidth=1)
        axes.annotate(
            name,
            (0.01, height),
            xytext=(0, -2 if _in_upper_half(height, chart) else 2),
            textcoords="offset points",
            xycoords=("axes fraction", "data"),
            va="top" if _in_upper_half(height, chart) else "bottom",
            fontsize=8,
            color=look.muted,
        )
    if chart.upright is not None:
        axes.axvline(chart.upright, color=look.ink, linewidth=1)
    axes.set_xscale(chart.x_scale)
    axes.set_yscale(chart.y_scale)
    axes.set_xlabel(chart.x_label)
    axes.set_ylabel(chart.y_label)
    axes.set_xlim(*_ends(axes, chart))
    _label_short_axes(axes, chart)
    longest = max((abs(x) for series in chart.series for x in series.x), default=0)
    if chart.x_scale == "linear" and longest >= LONG_NUMBER:
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    if chart.rows:
        axes.set_yticks(range(len(chart.rows)), chart.rows)
        axes.set_ylim(len(chart.rows) - 0.5, -0.5)
        for place, note in enumerate(chart.row_notes):
            where = (1.01, place)
            axes.annotate(note, where, xycoords=("axes fraction", "data"), va="center", fontsize=8)
    if chart.x_ticks:
        axes.set_xticks(chart.x_ticks, [f"{number:,}" for number in chart.x_ticks])
        axes.set_xticks([], minor=True)


def _ends(axes: Axes, chart: Chart) -> tuple[float | None, float | None]:
    """The ends of the horizontal axis, with room for the outermost mark at an end left open."""
    low, high = chart.x_range
    if chart.x_scale == "log" or (low is None) == (high is None):
        return low, high
    left, right = axes.dataLim.intervalx
    room = MARK_ROOM * (max(right, high or right) - min(left, low if low is not None else left))
    return (low, right + room) if high is None else (left - room, high)


def _in_upper_half(height: float, chart: Chart) -> bool:
    """Whether most of what is drawn is below a height, so that there is room for words."""
    drawn = [y for series in chart.series for y in series.y] or [height]
    return height >= (min(drawn) + max(drawn)) / 2


def _draw_series(axes: Axes, series: Series, look: Look) -> None:
    colour = look.muted
    if series.colour is not None:
        colour = look.colours[series.colour % len(look.colours)]
    if series.steps:
        axes.stairs(series.y, series.x, color=colour, linestyle=series.style, linewidth=look.line)
        return
    error = _error(series)
    lone = "o" if len(series.x) == 1 and series.style in ("-", "--", ":", "-.") else None
    axes.errorbar(
        series.x,
        series.y,
        yerr=error if series.interval == "upright" else None,
        xerr=error if series.interval == "along" else None,
        fmt=series.style,
        color=colour,
        label=series.name or "_nolegend_",
        marker=series.mark or lone,
        markersize=2 if "." in series.style and "-" not in series.style else look.marker,
        markerfacecolor="white" if series.hollow else None,
        linewidth=look.line,
        capsize=0 if series.interval == "along" else 2,
        markevery=max(1, len(series.x) // MARKED) if series.mark else 1,
    )
    if series.interval == "band" and series.low:
        axes.fill_between(series.x, series.low, series.high, color=colour, alpha=0.15, linewidth=0)


def _error(series: Series) -> list[list[float]] | list[float] | None:
    """Distances to the ends of the intervals, below and above, for matplotlib."""
    if series.half_width:
        return list(series.half_width)
    if not series.low or series.interval == "band":
        return None
    middle = series.x if series.interval == "along" else series.y
    below = [max(0.0, value - end) for value, end in zip(middle, series.low, strict=True)]
    above = [max(0.0, end - value) for value, end in zip(middle, series.high, strict=True)]
    return [below, above]


def _label_short_axes(axes: Axes, chart: Chart) -> None:
    """Powers of ten are too few on a short axis, and matplotlib's choice of more overlaps."""
    for axis, scale, (low, high) in (
        (axes.xaxis, chart.x_scale, axes.get_xlim()),
        (axes.yaxis, chart.y_scale, axes.get_ylim()),
    ):
        if scale == "log" and high < SHORT_AXIS * low:
            subs = (1, 2, 5) if high > 10 * low else range(1, 10)
            axis.set_major_locator(LogLocator(subs=subs))
            axis.set_major_formatter(StrMethodFormatter("{x:g}"))
            axis.set_minor_formatter(NullFormatter())
