"""Several studies of `recipes/comparison.py` in one table and one picture.

python experiments/comparison_summary.py FOLDER [FOLDER ...] --output OUTPUT

Each folder holds the `results.json` of `drrho compare`. OUTPUT gets `summary.md` and `summary.png`.
"""

import argparse
from collections.abc import Mapping
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from drrho.contrastive.objectives.algorithms import method_title
from drrho.plotting.palette import COLOURS
from drrho.plotting.table import markdown_table
from drrho.runtime.files import write_atomically
from drrho.studies.compare.results import Difference, Results, read_results
from drrho.studies.compare.statistics import with_tests

BASELINE, TEST = "openclip", "test"
MARKS = {
    "above": COLOURS[0],
    "below": COLOURS[5],
    "not told from zero": "#888888",
}


def difference(results: Results, method: str) -> Difference | None:
    """The paired difference of a method from the baseline."""
    wanted = (TEST, method, BASELINE)
    rows = results.differences
    return next((it for it in rows if (it.test, it.method, it.minus) == wanted), None)


def cell(results: Results, method: str) -> str:
    """MRR, in bold where it is above the baseline's after Holm's correction; seeds won where the
    interval of the difference, not adjusted, is above 0.
    """
    if method not in results.methods:
        return ""
    mrr = f"{results.methods[method].tests[TEST]['mrr']:.3f}"
    row = difference(results, method)
    if row is None:
        return mrr
    mrr = f"**{mrr}**" if row.is_clear and row.mrr > 0 else mrr
    if row.excludes_zero and row.mrr > 0:
        return f"{mrr} ({row.won}/{len(row.seeds)})"
    return f"{mrr} (behind)" if row.is_clear and row.mrr < 0 else mrr


def table(studies: Mapping[str, Results], methods: list[str]) -> str:
    """Markdown; the references, and guessing, below the methods."""
    rows = [[method_title(it), *(cell(study, it) for study in studies.values())] for it in methods]
    for name in next(iter(studies.values())).references:
        scores = (it.references[name].tests[TEST]["mrr"] for it in studies.values())
        rows.append([f"*reference: {name}*", *(f"{score:.3f}" for score in scores)])
    guessed = [it.setup.chance.get(TEST, {}).get("mrr") for it in studies.values()]
    if any(guessed):
        shown = ("" if value is None else f"{value:.3f}" for value in guessed)
        rows.append(["*guessing*", *shown])
    return markdown_table(["", *studies], rows)


def draw(studies: Mapping[str, Results], methods: list[str], path: Path) -> None:
    """A panel for each study: the paired difference of each method from the baseline."""
    shown = [method for method in methods if method != BASELINE]
    figure = Figure(figsize=(3.1 * len(studies) + 1.5, 0.34 * len(shown) + 1.4))
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, len(studies), sharey=True, squeeze=False)[0]
    for ax, (name, results) in zip(axes, studies.items(), strict=True):
        for place, method in enumerate(shown):
            row = difference(results, method)
            if row is None or row.shown_interval is None:
                continue
            low, high = row.shown_interval
            colour = MARKS["not told from zero"]
            if row.is_clear:
                colour = MARKS["above" if row.mrr > 0 else "below"]
            ax.plot([low, high], [place, place], color=colour, linewidth=2)
            ax.plot(row.mrr, place, "o", color=colour)
        ax.axvline(0, color="black", linewidth=0.8)
        ax.set_title(name, fontsize=10)
        ax.grid(axis="x", alpha=0.3)
        ax.xaxis.set_major_locator(MaxNLocator(4))  # more of them collide
    axes[0].set_yticks(range(len(shown)), [method_title(method) for method in shown])
    axes[0].invert_yaxis()
    figure.supxlabel(f"MRR minus {method_title(BASELINE)}'s, 95 % over seeds", fontsize=10)
    entries = [
        Line2D([], [], color=colour, marker="o", label=name) for name, colour in MARKS.items()
    ]
    figure.legend(handles=entries, loc="outside upper right", ncols=len(entries), fontsize=9)
    figure.set_layout_engine("constrained")
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args()
    studies = {it.name: with_tests(read_results(it / "results.json")) for it in arguments.folders}
    methods = list(dict.fromkeys(name for it in studies.values() for name in it.methods))
    arguments.output.mkdir(parents=True, exist_ok=True)
    write_atomically(arguments.output / "summary.md", f"{table(studies, methods)}\n".encode())
    draw(studies, methods, arguments.output / "summary.png")


if __name__ == "__main__":
    main()
