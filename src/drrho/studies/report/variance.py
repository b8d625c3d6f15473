"""Variances on held-out pairs along training: a table and a plot."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from tyro.conf import Positional

from drrho.plotting.png import draw_png
from drrho.plotting.table import markdown_table
from drrho.runtime.files import expand_paths
from drrho.studies.compare.curves import Row, curve_chart
from drrho.training.log import read_metrics
from drrho.training.metrics import VARIANCE, Metric

LOSS = "evaluation/loss_variance"
EXCESS = "evaluation/excess_loss_variance/"


def variance_table(runs: Mapping[str, Sequence[Row]]) -> str:
    """First and last values, a row for each run and loss or reference.

    Raises:
        ValueError: a run has none.
    """
    rows = []
    for run, log in runs.items():
        for metric in _metrics(run, log):
            values = [(row["samples"], row[metric]) for row in log if row.get(metric) is not None]
            ends = [f"{value:.4g}" for _, value in (values[0], values[-1])]
            rows.append([run, _name(metric, "excess"), *ends, f"{values[-1][0]:,.0f}"])
    return markdown_table(["run", "variance of", "first", "last", "samples"], rows)


def draw_variances(runs: Mapping[str, Sequence[Row]], path: Path) -> None:
    """Writes a PNG with a panel for the loss and each reference, a colour per run.

    Raises:
        ValueError: there is no run, or one has no variances.
    """
    metrics = dict.fromkeys(metric for run, log in runs.items() for metric in _metrics(run, log))
    logs = {name: [rows] for name, rows in runs.items()}
    charts = []
    for metric in metrics:
        title = f"Held-out variance of the {_name(metric, 'excess loss')}"
        charts.append(curve_chart(replace(VARIANCE, title=title), [Metric(name=metric)], logs))
    draw_png(charts, path, size=(11, 3.6))


def _name(metric: str, excess: str) -> str:
    return "loss" if metric == LOSS else f"{excess} over {metric.removeprefix(EXCESS)}"


def _metrics(run: str, log: Sequence[Row]) -> list[str]:
    logged = [name for row in log for name, value in row.items() if value is not None]
    found = dict.fromkeys(n for n in logged if n == LOSS or n.startswith(EXCESS))
    if not found:
        raise ValueError(
            f"run {run!r} has logged no variances on held-out pairs; train it with "
            "evaluation.references"
        )
    return list(found)


@dataclass(frozen=True, kw_only=True)
class VarianceConfig:
    """Plot the variance of loss and excess losses on held-out pairs along training.

    Attributes:
        runs: folders of runs that were trained with `evaluation.references`.
        output: PNG file to write.
    """

    runs: Positional[tuple[str, ...]]
    output: str = "variance.png"

    def __post_init__(self) -> None:
        expand_paths(self, "runs")


def run_variance(config: VarianceConfig) -> str:
    """Plot the variance of losses and excess losses on held-out pairs."""
    logs = {Path(run).name: read_metrics(Path(run)) for run in config.runs}
    table = variance_table(logs)
    draw_variances(logs, Path(config.output))
    return f"{table}\n\nThe plot is {config.output}."
