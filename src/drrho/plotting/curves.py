"""Curves of training runs, side by side, as a PNG."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

Row = Mapping[str, float | None]
# Okabe and Ito's colours, distinguishable with the common colour vision deficiencies.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#000000")


@dataclass(frozen=True, kw_only=True)
class Panel:
    """One set of axes: metrics of every run against the samples seen.

    Attributes:
        title: above the axes.
        unit: of the vertical axis.
        metrics: metric name -> line style; a run without a metric has no line for it.
        logarithmic: whether the vertical axis is.
    """

    title: str
    unit: str
    metrics: Mapping[str, str]
    logarithmic: bool = False


PANELS = (
    Panel(
        title="Retrieval on the evaluation set",
        unit="mean reciprocal rank",
        metrics={"evaluation/mrr": "-"},
    ),
    Panel(
        title="Variance over pairs: loss (dotted), excess loss (solid)",
        unit="squared cosine",
        metrics={"loss_variance": ":", "excess_loss_variance": "-"},
        logarithmic=True,
    ),
    Panel(
        title="Effective sample size of an anchor's negatives",
        unit="share of the negatives",
        metrics={"effective_sample_size": "-"},
    ),
    Panel(
        title="Divergence of the weights from uniform",
        unit="KL, nats",
        metrics={"weights_kl": "-"},
    ),
)


def draw_curves(
    runs: Mapping[str, Sequence[Sequence[Row]]],
    path: Path,
    *,
    levels: Mapping[str, float] | None = None,
    panels: Sequence[Panel] = PANELS,
) -> None:
    """Draws one panel per group of metrics, one colour per method, and writes a PNG.

    Where a method has several runs the line is their mean and the band reaches from the lowest to
    the highest, at the numbers of samples that all have logged.

    Args:
        runs: name -> for each of its runs the rows of the metrics log, each with `samples`.
        path: the PNG to write.
        levels: name -> value of a horizontal line in the first panel, such as the reference's
            own score.
        panels: what to draw.

    Raises:
        ValueError: there is no run.
    """
    if not runs:
        raise ValueError("draw_curves needs at least one run")
    columns = 2
    lines = -(-len(panels) // columns)
    figure = Figure(figsize=(11, 3.6 * lines), layout="constrained")
    FigureCanvasAgg(figure)  # no window system, whatever the environment says
    axes = figure.subplots(lines, columns, squeeze=False).flatten()
    colours = {name: COLOURS[i % len(COLOURS)] for i, name in enumerate(runs)}
    for panel, ax in zip(panels, axes, strict=False):
        for name, logs in runs.items():
            for metric, style in panel.metrics.items():
                _draw(ax, logs, metric, style=style, colour=colours[name], name=name)
        _finish(ax, panel)
    for unused in axes[len(panels) :]:
        unused.set_visible(False)
    for name, level in (levels or {}).items():
        axes[0].axhline(level, color="#666666", linestyle="--", linewidth=1)
        axes[0].annotate(name, (0.01, level), xycoords=("axes fraction", "data"), va="top")
    handles = {
        line.get_label(): line
        for ax in axes
        for line in ax.get_lines()
        if not str(line.get_label()).startswith("_")
    }
    figure.legend(
        handles.values(), handles.keys(), loc="outside lower center", ncols=min(len(handles), 6)
    )
    figure.savefig(path, dpi=120)


def _draw(
    ax: Axes, logs: Sequence[Sequence[Row]], metric: str, *, style: str, colour: str, name: str
) -> None:
    by_samples: dict[float, list[float]] = {}
    for rows in logs:
        for row in rows:
            samples, value = row["samples"], row.get(metric)
            if samples is not None and value is not None:
                by_samples.setdefault(samples, []).append(value)
    shared = {x: values for x, values in sorted(by_samples.items()) if len(values) == len(logs)}
    if not shared:
        return
    means = [sum(values) / len(values) for values in shared.values()]
    ax.plot(list(shared), means, style, color=colour, label=name)
    if len(logs) > 1:
        lowest, highest = map(min, shared.values()), map(max, shared.values())
        ax.fill_between(
            list(shared), list(lowest), list(highest), color=colour, alpha=0.15, linewidth=0
        )


def _finish(ax: Axes, panel: Panel) -> None:
    ax.set_title(panel.title, fontsize=10)
    ax.set_xlabel("samples seen")
    ax.set_ylabel(panel.unit)
    ax.grid(alpha=0.3)
    if panel.logarithmic:
        ax.set_yscale("log")
