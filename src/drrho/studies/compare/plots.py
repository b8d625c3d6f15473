"""Pictures of a comparison: paired differences with their intervals, and quality against cost."""

from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from drrho.plotting.curves import COLOURS
from drrho.plotting.table import method_title
from drrho.studies.compare.results import Difference, Results
from drrho.studies.compare.tables import shown_differences

MARKERS = "osD^vPX*"  # with seven colours: methods beyond the seventh differ in their mark


def draw_differences(results: Results, path: Path) -> None:
    """A forest plot for each test set: a row per pair, its difference of MRR and the interval."""
    tests = [test for test in results.setup.test if shown_differences(results, test)]
    if not tests:
        return
    rows = max(len(shown_differences(results, test)) for test in tests)
    figure = Figure(figsize=(8, len(tests) * (1.3 + 0.36 * rows)), layout="constrained")
    FigureCanvasAgg(figure)
    for ax, test in zip(figure.subplots(len(tests), squeeze=False)[:, 0], tests, strict=True):
        _forest(ax, shown_differences(results, test))
        ax.set_title(f"Differences of MRR on {test}, 95 % intervals", fontsize=10)
    figure.savefig(path, dpi=120)


def draw_costs(results: Results, path: Path) -> None:
    """MRR against training compute and against wall time, a mark per method, intervals upright.

    Drawn for the first test set that has an MRR. The references' own training is not in the cost;
    a hollow mark says that there is a reference.
    """
    test = next(iter(results.setup.test))
    methods = {
        name: method
        for name, method in results.methods.items()
        if test in method.intervals
        and method.cost is not None
        and method.cost.training_gflop is not None
    }
    if not methods:
        return
    figure = Figure(figsize=(11, 4.6), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, 2, sharey=True)
    for ax, (cost, scale, unit) in zip(
        axes,
        (("training_gflop", 1e-3, "TFLOP of a run"), ("seconds", 1.0, "seconds of a run")),
        strict=True,
    ):
        for i, (name, method) in enumerate(methods.items()):
            mrr, (low, high) = method.tests[test]["mrr"], method.intervals[test]
            ax.errorbar(
                getattr(method.cost, cost) * scale,
                mrr,
                yerr=[[max(0.0, mrr - low)], [max(0.0, high - mrr)]],
                fmt=MARKERS[(i // len(COLOURS)) % len(MARKERS)],
                color=COLOURS[i % len(COLOURS)],
                markerfacecolor="white" if method.reference_cost else None,
                capsize=2,
                label=method_title(name),
            )
        ax.set_xlabel(f"{unit}, references not counted")
        ax.set_xlim(left=0)
        ax.grid(alpha=0.3)
    axes[0].set_ylabel(f"MRR on {test}, 95 % interval")
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4)
    figure.suptitle("Quality against cost (hollow: steered by a reference)", fontsize=10)
    figure.savefig(path, dpi=120)


def _forest(ax: Axes, rows: list[Difference]) -> None:
    for place, row in enumerate(rows):
        low, high = row.interval
        ax.plot(
            [low, high], [place, place], color="#0072B2" if row.is_clear else "#888888", linewidth=2
        )
        ax.plot(row.mrr, place, "o", color="#0072B2" if row.is_clear else "#888888")
        won = f"{row.won}/{len(row.seeds)}"
        ax.annotate(won, (1.01, place), xycoords=("axes fraction", "data"), va="center", fontsize=8)
    titles = [f"{method_title(r.method)} - {method_title(r.minus)}" for r in rows]
    ax.set_yticks(range(len(rows)), titles, fontsize=8)
    ax.set_ylim(len(rows) - 0.5, -0.5)
    ax.axvline(0, color="black", linewidth=1)
    ax.set_xlabel("difference of MRR; to the right of the axes: seeds won", fontsize=8)
    ax.grid(axis="x", alpha=0.3)
