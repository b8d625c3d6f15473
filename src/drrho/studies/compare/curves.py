"""Curves of training runs: metrics of their logs against the samples seen, as charts."""

from collections.abc import Mapping, Sequence

from drrho.contrastive.objectives.algorithms import method_title
from drrho.plotting.chart import Chart, Series
from drrho.plotting.palette import line_marker, places
from drrho.training.metrics import Metric, Panel

Row = Mapping[str, float | None]
Runs = Mapping[str, Sequence[Sequence[Row]]]  # name -> for each of its runs the rows of its log
STYLES = ("-", "--", ":", "-.")
STYLE_NAMES = ("solid", "dashed", "dotted", "dash-dotted")


def curve_chart(
    panel: Panel,
    metrics: Sequence[Metric],
    runs: Runs,
    *,
    labelled: bool = False,
    levels: Mapping[str, float] | None = None,
    colours: Mapping[str, int] | None = None,
) -> Chart:
    """Charts some metrics, a colour per name and a line style per metric.

    Where a name has several runs the line is their mean and the band reaches from the lowest to
    the highest, at the numbers of samples that all have logged.

    Args:
        panel: panel to draw.
        metrics: metrics of the panel; a run without one has no line for it.
        runs: logs by name.
        labelled: whether the name of a line says its metric too.
        levels: name -> height of a horizontal line, such as the reference's own score.
        colours: name -> place in the palette; None takes the names' own places.
    """
    colours = places(runs) if colours is None else colours
    series = []
    for name, logs in runs.items():
        title = method_title(name)
        for metric, style in zip(metrics, STYLES, strict=False):
            shared = _shared(logs, metric.name)
            if not shared:
                continue
            several = len(logs) > 1
            series.append(
                Series(
                    name=f"{title}, {metric.label}" if labelled and metric.label else title,
                    x=list(shared),
                    y=[sum(values) / len(values) for values in shared.values()],
                    low=[min(values) for values in shared.values()] if several else (),
                    high=[max(values) for values in shared.values()] if several else (),
                    interval="band",
                    style=style,
                    mark=line_marker(colours[name]),
                    colour=colours[name],
                )
            )
    positive = all(min(line.y) > 0 for line in series)
    return Chart(
        title=panel.title,
        x_label="samples seen",
        y_label=panel.unit,
        series=series,
        y_scale="log" if panel.logarithmic and positive else "linear",
        levels=levels or {},
        legend=False,
    )


def styles_in_words(metrics: Sequence[Metric]) -> str:
    """The line styles of several metrics in one chart; empty for one metric."""
    named = zip(STYLE_NAMES, metrics, strict=False)
    words = ", ".join(f"{style}: {metric.label}" for style, metric in named if metric.label)
    return words[:1].upper() + words[1:]


def _shared(logs: Sequence[Sequence[Row]], metric: str) -> dict[float, list[float]]:
    """Values by samples seen, where every run has logged one."""
    by_samples: dict[float, list[float]] = {}
    for row in (row for rows in logs for row in rows):
        samples, value = row["samples"], row.get(metric)
        if samples is not None and value is not None:
            by_samples.setdefault(samples, []).append(value)
    return {x: values for x, values in sorted(by_samples.items()) if len(values) == len(logs)}
