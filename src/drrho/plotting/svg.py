"""Charts as SVG whose colours are the page's: light, dark, or what the reader's system asks for.

matplotlib draws them with a colour of its own for every role, which is then the name of a CSS
variable. Text stays text, so that it scales, is found, and takes the page's font.
"""

import io
import re
from html import escape
from typing import Any

from matplotlib import rc_context
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from drrho.plotting.axes import Look, draw_axes
from drrho.plotting.chart import Chart
from drrho.plotting.palette import COLOURS

# Not black or white, which matplotlib leaves out as defaults.
INK, MUTED, GRID = "#010203", "#040506", "#070809"
SERIES = tuple(f"#0a0b{number:02x}" for number in range(1, len(COLOURS) + 1))
VARIABLES = {INK: "ink", MUTED: "muted", GRID: "grid"} | {
    colour: f"series-{number}" for number, colour in enumerate(SERIES, start=1)
}
SIZE = (4.2, 2.7)  # inches: a phone's width, or half a desktop's page
LOOK = Look(colours=SERIES, muted=MUTED, ink=INK, line=1.8, marker=3.5)


def draw_svg(chart: Chart, *, name: str, description: str) -> str:
    """Draws a chart as an `<svg>` element of a page.

    Args:
        chart: chart to draw.
        name: name in the page, for ids: letters, digits and hyphens.
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
        draw_axes(axes, chart, LOOK)
        axes.grid(linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    return _for_page(buffer.getvalue(), name=name, title=chart.title, description=description)


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
        f'<title id="{name}-title">{escape(title)}</title>'
        f'<desc id="{name}-description">{escape(description)}</desc>'
    )
    return re.sub(r"<svg[^>]*>", lambda _: opening, svg, count=1)


def _view_box(svg: str) -> str:
    found = re.search(r'viewBox="([^"]+)"', svg)
    assert found is not None
    return found.group(1)
