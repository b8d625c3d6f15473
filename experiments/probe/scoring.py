"""What the validations of `drrho probe` have in common: scores against realised gains."""

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from scipy.stats import spearmanr

from drrho.plotting.table import markdown_table

MOST_IN_A_ROW = 7  # panels


class Probe(NamedTuple):
    """One probe.

    Attributes:
        scores: by name, one number for each reference; large is good.
        flagged: references with an alarm of the plan.
        revised: references with the alarm that `drrho probe` now has.
    """

    scores: Mapping[str, Sequence[float]]
    flagged: set[str]
    revised: set[str]


def report(
    folder: Path,
    names: Sequence[str],
    probes: Sequence[Probe],
    rows: Sequence[Mapping],
    *,
    title: str,
) -> None:
    """Writes `results.json`, `results.md` and `figure.png`, and prints the tables.

    Args:
        rows: of each replicate, `plain`, the risk of the plain target, and lists over the
            references of gains: `gain`, which counts, and others.
    """
    kinds = [kind for kind in rows[0] if kind != "plain"]
    gains = {
        kind: [statistics.fmean(row[kind][k] for row in rows) for k in range(len(names))]
        for kind in kinds
    }
    scored = {
        (score, alarm): _judge(names, probes, score, gains["gain"], alarm=alarm)
        for alarm in ("planned", "revised", "none")
        for score in probes[0].scores
    }
    header = ["alarm", "score", "Spearman, median", "smallest", "largest", "top-1 regret"]
    table = [
        [
            alarm,
            score,
            *(f"{judged[key]:.2f}" for key in ("median", "smallest", "largest")),
            f"{100 * judged['regret']:.1f} %",
        ]
        for (score, alarm), judged in scored.items()
    ]
    base = statistics.fmean(row["plain"] for row in rows)
    each = [
        [
            name,
            *(
                f"{statistics.fmean(probe.scores[score][k] for probe in probes):.3f}"
                for score in probes[0].scores
            ),
            f"{sum(name in probe.flagged for probe in probes)}/{len(probes)}",
            f"{sum(name in probe.revised for probe in probes)}/{len(probes)}",
            *(f"{100 * gains[kind][k] / base:.1f} %" for kind in kinds),
        ]
        for k, name in enumerate(names)
    ]
    each.sort(key=lambda row: -gains["gain"][names.index(row[0])])
    columns = [
        "reference",
        *probes[0].scores,
        "alarms",
        "revised",
        *(f"{kind}, of plain" for kind in kinds),
    ]
    text = f"{markdown_table(header, table)}\n\n{markdown_table(columns, each)}\n"
    folder.mkdir(parents=True, exist_ok=True)
    document = {
        "references": list(names),
        "plain": base,
        "gains": gains,
        "judged": {f"{s}, alarm {a}": v for (s, a), v in scored.items()},
        "probes": [
            {
                "scores": dict(probe.scores),
                "flagged": sorted(probe.flagged),
                "revised": sorted(probe.revised),
            }
            for probe in probes
        ],
        "rows": list(rows),
    }
    (folder / "results.json").write_text(json.dumps(document) + "\n")
    (folder / "results.md").write_text(text, encoding="utf-8")
    _draw(folder / "figure.png", names, probes, [g / base for g in gains["gain"]], title=title)
    print(text)


def regret(scores: Sequence[float], gains: Sequence[float]) -> float:
    """`1 - gain(first choice) / largest gain`; NaN where no reference gains anything."""
    best = max(gains)
    chosen = max(range(len(scores)), key=scores.__getitem__)
    return 1 - gains[chosen] / best if best > 0 else math.nan


def put_last(scores: Mapping[str, float], flagged: set[str]) -> dict[str, float]:
    """The same scores, with those of flagged references below all others."""
    floor = min(scores.values()) - max(1.0, max(scores.values()) - min(scores.values()))
    return {name: floor if name in flagged else score for name, score in scores.items()}


def _judge(names, probes, score, gains, *, alarm):
    correlations, regrets = [], []
    for probe in probes:
        scores = dict(zip(names, probe.scores[score], strict=True))
        flagged = {"planned": probe.flagged, "revised": probe.revised, "none": set()}[alarm]
        if flagged:
            scores = put_last(scores, flagged)
        values = [scores[name] for name in names]
        correlations.append(float(spearmanr(values, gains).statistic))
        regrets.append(regret(values, gains))
    return {
        "median": statistics.median(correlations),
        "smallest": min(correlations),
        "largest": max(correlations),
        "regret": statistics.fmean(regrets),
    }


def _draw(path, names, probes, gains, *, title):
    """Mean of every score against the gain, a panel for each score."""
    scores = list(probes[0].scores)
    rows = -(-len(scores) // MOST_IN_A_ROW)
    columns = -(-len(scores) // rows)
    figure = Figure(figsize=(3.2 * columns, 3.6 * rows), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(rows, columns, squeeze=False).flatten()
    for unused in panels[len(scores) :]:
        unused.set_visible(False)
    for ax, score in zip(panels[: len(scores)], scores, strict=True):
        for k, (name, gain) in enumerate(zip(names, gains, strict=True)):
            x = statistics.fmean(probe.scores[score][k] for probe in probes)
            flagged = sum(name in probe.flagged for probe in probes) * 2 > len(probes)
            ax.plot(x, gain, "x" if flagged else "o", color="#D55E00" if flagged else "#0072B2")
            ax.annotate(name, (x, gain), fontsize=6, xytext=(3, 3), textcoords="offset points")
        ax.set_xlabel(score)
        ax.grid(alpha=0.3)
    figure.axes[0].set_ylabel("realised gain, share of plain")
    figure.suptitle(f"{title} (crosses: alarm)", fontsize=10)
    figure.savefig(path, dpi=100)
