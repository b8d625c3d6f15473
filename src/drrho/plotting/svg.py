"""Charts as SVG whose colours are the page's: light, dark, or what the reader's system asks for.

matplotlib draws them with a colour of its own for every role, which is then the name of a CSS
variable. Text stays text, so that it scales, is found, and takes the page's font.
"""

import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter

# Not black or white, which matplotlib leaves out as defaults.
INK, MUTED, GRID = "#010203", "#040506", "#070809"
SERIES = tuple(f"#0a0b{number:02x}" for number in range(1, 9))
VARIABLES = {INK: "ink", MUTED: "muted", GRID: "grid"} | {
    colour: f"series-{number}" for number, colour in enumerate(SERIES, start=1)
}
SIZE = (4.2, 2.7)  # inches: a phone's width, or half a desktop's page
DASHES = ("-", "--", ":", "-.")


@dataclass(frozen=True, kw_only=True)
class Series:
    """A line, or steps.

    Attributes:
        name: for the legend and the table.
        x, y: of equal length, but for steps, where x are the edges, one more.
        colour: number of the series' colour, from 0; wraps around.
        dash: number of the line's style, from 0; wraps around.
        marks: points in place of a line.
    """

    name: str
    x: Sequence[float]
    y: Sequence[float]
    colour: int = 0
    dash: int = 0
    marks: bool = False


@dataclass(frozen=True, kw_only=True)
class Chart:
    """One set of axes.

    Attributes:
        title: above it.
        x_label, y_label: of the axes.
        series: what is drawn.
        log_x, log_y: logarithmic axes.
        steps: whether the series are histograms.
    """

    title: str
    x_label: str
    y_label: str
    series: Sequence[Series]
    log_x: bool = False
    log_y: bool = False
    steps: bool = False


def draw_svg(chart: Chart, *, name: str, description: str) -> str:
    """The chart as an `<svg>` element to be set into a page.

    Args:
        chart: what to draw.
        name: of this chart in its page, for ids; letters, digits and hyphens.
        description: what it shows, in words, for those who do not see it.
    """
    settings: dict[Any, Any] = {  # matplotlib types the names of settings
        "svg.fonttype": "none",
        "svg.hashsalt": name,
        "font.family": "sans-serif",
        "font.size": 10,
        "text.color": INK,
        "axes.labelcolor": MUTED,
        "axes.edgecolor": MUTED,
        "xtick.color": MUTED,
        "ytick.color": MUTED,
        "grid.color": GRID,
    }
    with rc_context(settings):
        figure = Figure(figsize=SIZE, layout="constrained")
        axes = FigureCanvasSVG(figure).figure.subplots()
        _draw(axes, chart)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    return _for_page(buffer.getvalue(), name=name, title=chart.title, description=description)


def _draw(axes: Axes, chart: Chart) -> None:
    for series in chart.series:
        colour = SERIES[series.colour % len(SERIES)]
        dash = DASHES[series.dash % len(DASHES)]
        if chart.steps:
            axes.stairs(series.y, series.x, color=colour, linestyle=dash, linewidth=1.6)
        elif series.marks:
            axes.plot(series.x, series.y, "o", color=colour, markersize=3.5)
        else:
            single = "o" if len(series.x) == 1 else None
            axes.plot(
                series.x, series.y, dash, color=colour, linewidth=1.8, marker=single, markersize=3.5
            )
    axes.set_xlabel(chart.x_label)
    axes.set_ylabel(chart.y_label)
    if chart.log_y:
        axes.set_yscale("log")
    if chart.log_x:
        axes.set_xscale("log")
    elif max((max(map(abs, series.x)) for series in chart.series), default=0) >= 10_000:
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))  # 50k, 2M: long numbers collide
    axes.grid(linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)


def _for_page(svg: str, *, name: str, title: str, description: str) -> str:
    """The element alone, with ids of its own, the page's colours, and words for what it shows."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    for colour, variable in VARIABLES.items():
        svg = svg.replace(colour, f"var(--{variable})")
    svg = re.sub(r'\bid="([^"]+)"', rf'id="{name}-\1"', svg)
    svg = re.sub(r'(href="#|url\(#)', rf"\1{name}-", svg)
    svg = re.sub(r"font: ([\d.]+)px [^;\"]*", r"font-size: \1px", svg)
    opening = (
        f'<svg class="chart" role="img" aria-labelledby="{name}-title {name}-description" '
        f'viewBox="{_view_box(svg)}" xmlns="http://www.w3.org/2000/svg" '
        f'xmlns:xlink="http://www.w3.org/1999/xlink">'
        f'<title id="{name}-title">{_escaped(title)}</title>'
        f'<desc id="{name}-description">{_escaped(description)}</desc>'
    )
    return re.sub(r"<svg[^>]*>", lambda _: opening, svg, count=1)


def _view_box(svg: str) -> str:
    found = re.search(r'viewBox="([^"]+)"', svg)
    assert found is not None
    return found.group(1)


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
