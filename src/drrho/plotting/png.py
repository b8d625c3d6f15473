"""Charts side by side, as a PNG."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from drrho.plotting.axes import Look, draw_axes
from drrho.plotting.chart import Chart
from drrho.plotting.palette import COLOURS

LOOK = Look(colours=COLOURS)
LEGEND_LETTER, LEGEND_MARK = 0.09, 0.62  # inches of a letter of a legend, and of mark and gaps


def draw_png(
    charts: Sequence[Chart],
    path: Path,
    *,
    columns: int = 2,
    size: tuple[float, float] = (9.6, 3.9),
    title: str | None = None,
    share_y: bool = False,
) -> None:
    """Draws charts side by side and writes a PNG, whose folder is made.

    Charts without a legend of their own share one below all of them.

    Args:
        charts: charts to draw.
        path: PNG to write.
        columns: charts in a line.
        size: width of the picture and height of a line of charts, in inches.
        title: heading of the picture.
        share_y: whether all charts have the vertical axis of the first.

    Raises:
        ValueError: there is no chart.
    """
    if not charts:
        raise ValueError("draw_png needs at least one chart")
    columns = min(columns, len(charts))
    lines = -(-len(charts) // columns)
    figure = Figure(figsize=(size[0], size[1] * lines), layout="constrained")
    FigureCanvasAgg(figure)  # no window system, whatever the environment says
    axes = figure.subplots(lines, columns, squeeze=False, sharey=share_y).flatten()
    for number, (chart, ax) in enumerate(zip(charts, axes, strict=False)):
        draw_axes(ax, chart, LOOK)
        ax.set_title(chart.title, fontsize=10)
        ax.grid(alpha=0.3, axis="x" if chart.rows else "both")
        if share_y and number % columns:
            ax.set_ylabel("")
        entries = _legend([ax])
        if chart.legend and entries:
            ax.legend(entries.values(), entries.keys(), fontsize=8, framealpha=0.8)
    for unused in axes[len(charts) :]:
        unused.set_visible(False)
    shared = _legend([ax for chart, ax in zip(charts, axes, strict=False) if not chart.legend])
    if shared:
        columns = legend_columns(list(shared), width=size[0])
        figure.legend(shared.values(), shared.keys(), loc="outside lower center", ncols=columns)
    if title is not None:
        figure.suptitle(title, fontsize=10)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)


def legend_columns(names: Sequence[str], *, width: float) -> int:
    """The largest number of columns, filled downwards, in which all names fit on a picture.

    Args:
        names: entries of the legend.
        width: of the picture, in inches.
    """
    for columns in range(len(names), 1, -1):
        rows = -(-len(names) // columns)
        longest = [max(map(len, names[i : i + rows])) for i in range(0, len(names), rows)]
        if sum(LEGEND_LETTER * letters + LEGEND_MARK for letters in longest) <= width:
            return columns
    return 1


def _legend(axes: Sequence[Axes]) -> dict[str, Any]:
    """Name -> mark, each name once."""
    entries: dict[str, Any] = {}
    for ax in axes:
        for mark, name in zip(*ax.get_legend_handles_labels(), strict=True):
            entries[str(name)] = mark
    return entries
