"""Races replayed on whole trainings, and their regret; called by scenes.py."""

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from scenes import LENGTHS, WRONG, arms, file_name, references, run_path
from torch import Tensor

from drrho.plotting.table import markdown_table
from drrho.studies.advise.halving import Budget, Rung, choose, race

Run = dict[str, Any]  # what scenes.py keeps of a run
RESULTS = Path("docs/results/advise")
BUDGETS = (0.25, 0.5, 1.0, 2.0)
# Kept aside until the rule is frozen: docs/results/advise_plan.md.
ASIDE = {
    *(("weak", 0.3, steps) for steps in LENGTHS),
    *(("biased", 0.0, steps) for steps in LENGTHS),
    ("strong", 0.0, LENGTHS[-1]),
}
FEW = ("plain", "start", "filter-0.75", "steer-0.5", "distil-1", "steer-0.5-distil-1")
BASELINES = {
    "always plain": "plain",
    "always start": "start",
    "always steer-1, the paper's setting": "steer-1",
    "always steer-0.5": "steer-0.5",
    "always distil-1": "distil-1",
    "always both": "steer-0.5-distil-1",
}
SMALL_GAIN = 0.01
FEWEST_TESTED = 3  # replicates; a paired test of fewer tells nothing apart


@dataclass(frozen=True, kw_only=True)
class Cell:
    """A cell with its finished replicates: arm -> run of each."""

    reference: str
    wrong: float
    steps: int
    runs: list[dict[str, Run]]

    @property
    def key(self) -> tuple[str, float, int]:
        return (self.reference, self.wrong, self.steps)

    def value(self, arm: str) -> float:
        """Mean test MRR over the replicates."""
        return mean(float(run[arm]["test"].mean()) for run in self.runs)

    def gains(self, arm: str) -> list[float]:
        """Test MRR less plain's, by replicate."""
        return [float(run[arm]["test"].mean() - run["plain"]["test"].mean()) for run in self.runs]

    @property
    def best(self) -> str:
        return max(self.arms, key=self.value)

    @property
    def arms(self) -> list[str]:
        """Arms that were trained to the end, the simplest first."""
        return list(self.runs[0])


def cells(replicates: int) -> Iterator[Cell]:
    """Read the cells of which a replicate is finished."""
    for reference in references(0):
        for wrong in WRONG:
            for steps in LENGTHS:
                runs = []
                for replicate in range(replicates):
                    paths = {
                        arm: run_path(
                            replicate,
                            wrong,
                            steps,
                            file_name(None if arm == "plain" else reference, arm),
                        )
                        for arm in arms()
                    }
                    if all(path.exists() for path in paths.values()):
                        runs.append(
                            {arm: torch.load(p, weights_only=True) for arm, p in paths.items()}
                        )
                if runs:
                    yield Cell(reference=reference, wrong=wrong, steps=steps, runs=runs)


def scores_at(run: Mapping[str, Run], arm: str, step: int) -> Tensor:
    """Reciprocal ranks of the held-out queries at the last look up to a step, or at the first."""
    kept = run[arm]["held_out"]
    return kept[max((it for it in kept if it <= step), default=min(kept))].double()


def replay(
    run, names: tuple[str, ...], *, share: float, steps: int, divisor: int = 2
) -> list[Rung] | None:
    """Race the beginnings of finished runs; None where the budget has no step for each."""
    budget = Budget(steps=max(1, round(share * steps)), length=steps, divisor=divisor)
    try:
        return list(
            race(
                names,
                control="plain",
                ahead={"start"},
                budget=budget,
                advance=lambda arm, step: scores_at(run, arm, step),
            )
        )
    except ValueError:
        return None


def simplest(run, rungs: list[Rung], names: list[str], *, steps: int) -> str:
    """The simplest arm of some within one standard error of the best at the last rung."""
    del steps
    return choose({name: scores_at(run, name, rungs[-1].step) for name in names})[0]


def highest(run, rungs: list[Rung], names: list[str], *, steps: int) -> str:
    """The arm of some with the highest mean at the last rung."""
    del run, steps
    return max(names, key=lambda name: rungs[-1].mrr[name].mean)


def with_fading_start(pick: Callable[..., str]) -> Callable[..., str]:
    """Leave start out where its lead, drawn on against log steps, is gone at the end."""

    def picked(run, rungs: list[Rung], names: list[str], *, steps: int) -> str:
        found = pick(run, rungs, names, steps=steps)
        others = [name for name in names if name != "start"]
        if found != "start" or not others:
            return found
        rival = max(others, key=lambda name: rungs[-1].mrr[name].mean)
        both = [rung for rung in rungs if rival in rung.mrr and "start" in rung.mrr][-2:]
        leads = [rung.mrr["start"].mean - rung.mrr[rival].mean for rung in both]
        if len(both) == 2 and both[1].step > both[0].step:
            slope = (leads[1] - leads[0]) / math.log(both[1].step / both[0].step)
            if leads[1] + slope * math.log(steps / both[1].step) <= 0:
                return pick(run, rungs, others, steps=steps)
        return found

    return picked


def without_start(run, rungs: list[Rung], names: list[str], *, steps: int) -> str:
    """As `simplest`, and never start."""
    return simplest(run, rungs, [name for name in names if name != "start"], steps=steps)


RULES: dict[str, tuple[tuple[str, ...], Callable[..., str]]] = {
    "A": (tuple(arms()), simplest),
    "B": (tuple(arms()), with_fading_start(simplest)),
    "C": (tuple(arms()), without_start),
    "D": (tuple(arms()), highest),
    "E": (tuple(arms()), with_fading_start(highest)),
    "F": (FEW, simplest),
    "G": (tuple(arms()), simplest),
}
DIVISORS = {"G": 4}  # the others keep one of two


@dataclass(frozen=True, kw_only=True)
class Choices:
    """What a rule chose in a cell, one arm for each replicate's race."""

    cell: Cell
    chosen: list[str]
    spent: list[float]

    @property
    def regret(self) -> float:
        """Value of the best arm less the mean value of the chosen ones."""
        return self.cell.value(self.cell.best) - mean(map(self.cell.value, self.chosen))

    @property
    def best_gain(self) -> float:
        return self.cell.value(self.cell.best) - self.cell.value("plain")

    @property
    def gain(self) -> float:
        return mean(map(self.cell.value, self.chosen)) - self.cell.value("plain")

    @property
    def share_right(self) -> float:
        return mean(self._alike(name) for name in self.chosen)

    def _alike(self, name: str) -> bool:
        """Whether an arm is the best, or a paired t-test does not tell it from the best."""
        cell, best = self.cell, self.cell.best
        if name == best:
            return True
        pairs = zip(cell.gains(best), cell.gains(name), strict=True)
        return p_value([a - b for a, b in pairs]) >= 0.05

    @property
    def clear_harm(self) -> bool:
        """Whether an arm that was chosen is behind plain training, by a paired t-test."""
        worse = [name for name in self.chosen if mean(self.cell.gains(name)) < 0]
        return any(p_value(self.cell.gains(name)) < 0.05 for name in worse)


def p_value(differences: list[float]) -> float:
    """Two-sided paired t-test; 1 with fewer than two replicates."""
    from scipy.stats import ttest_1samp  # noqa: PLC0415

    if len(differences) < 2 or len(set(differences)) == 1:
        return 1.0
    found: Any = ttest_1samp(differences, 0.0)
    return float(found.pvalue)


def choices_of(cell: Cell, rule: str, share: float) -> Choices | None:
    """Replay the races of a cell by a rule; None where the budget is too small."""
    names, pick = RULES[rule]
    names = tuple(name for name in names if name in cell.arms)
    chosen, spent = [], []
    for run in cell.runs:
        divisor = DIVISORS.get(rule, 2)
        rungs = replay(run, names, share=share, steps=cell.steps, divisor=divisor)
        if rungs is None:
            return None
        chosen.append(pick(run, rungs, list(rungs[-1].mrr), steps=cell.steps))
        reached = {name: rung.step for rung in rungs for name in rung.mrr}
        spent.append(sum(reached.values()) / cell.steps)
    return Choices(cell=cell, chosen=chosen, spent=spent)


def always(cell: Cell, arm: str) -> Choices:
    """A fixed choice."""
    return Choices(cell=cell, chosen=[arm] * len(cell.runs), spent=[0.0])


def judged(cell: Cell) -> Choices:
    """Distil at weight 1, or train plainly where the reference is near guessing."""
    chosen = []
    for run in cell.runs:
        ranks = run["start"]["judged"]
        guessing = mean(1 / k for k in range(1, len(ranks) + 1))
        chosen.append("distil-1" if float(ranks.mean()) > 2 * guessing else "plain")
    return Choices(cell=cell, chosen=chosen, spent=[0.0])


def summary_row(name: str, found: list[Choices]) -> list[str]:
    """The measures of the plan over some cells."""
    shares = [it.regret / it.best_gain for it in found if it.best_gain >= SMALL_GAIN]
    tested = min(len(it.cell.runs) for it in found) >= FEWEST_TESTED
    return [
        name,
        str(len(found)),
        f"{mean(it.share_right for it in found):.0%}" if tested else "",
        f"{mean(it.regret for it in found):.4f}",
        f"{mean(shares):.0%}" if shares else "",
        f"{max(shares):.0%}" if shares else "",
        str(sum(it.gain < 0 for it in found)),
        str(sum(it.clear_harm for it in found)) if tested else "",
        f"{mean(mean(it.spent) for it in found):.0%}",
    ]


HEADER = [
    "choice",
    "cells",
    "best or not told apart",
    "regret, MRR",
    "regret, of best gain",
    "worst cell",
    "cells with harm",
    "clear harm",
    "spent, of a run",
]


def summary(found: list[Cell], rules: Iterable[str]) -> str:
    """A row for each budget and rule, and for each baseline whose arm is raced."""
    rows = []
    for share in BUDGETS:
        for rule in rules:
            raced = [it for cell in found if (it := choices_of(cell, rule, share)) is not None]
            if raced:
                rows.append(summary_row(f"rule {rule}, budget {share:.0%}", raced))
    rows += [
        summary_row(name, [always(cell, arm) for cell in found])
        for name, arm in BASELINES.items()
        if arm in arms()
    ]
    if "start" in arms():  # with whose runs the judgement of the reference is kept
        rows.append(summary_row("judgement alone", [judged(cell) for cell in found]))
    return markdown_table(HEADER, rows)


def values_table(found: list[Cell]) -> str:
    """The value of each arm in each cell, which all have the same arms; the best is bold."""
    rows = []
    for cell in found:
        values = {arm: cell.value(arm) for arm in cell.arms}
        rows.append(
            [
                f"{cell.reference}, {cell.wrong:.0%} wrong, {cell.steps}",
                str(len(cell.runs)),
                *(f"**{v:.3f}**" if arm == cell.best else f"{v:.3f}" for arm, v in values.items()),
            ]
        )
    return markdown_table(["cell", "replicates", *found[0].arms], rows)


def correlations(found: list[Cell]) -> str:
    """Rank correlation of held-out MRR after a share of the steps with the arms' values."""
    from scipy.stats import spearmanr  # noqa: PLC0415

    own = found[0].arms
    different = [own, [name for name in own if name != "start"]][: 1 + ("start" in own)]
    rows = []
    for share in (0.025, 0.05, 0.1, 0.25, 0.5, 1.0):
        row = [f"{share:.1%} of the steps"]
        for names in different:
            each = []
            for cell in found:
                for run in cell.runs:
                    step = max(1, round(share * cell.steps))
                    early = [float(scores_at(run, n, step).mean()) for n in names]
                    correlation: Any = spearmanr(early, [cell.value(n) for n in names])
                    each.append(float(correlation.statistic))
            row.append(f"{mean(each):.2f} ({min(each):.2f} to {max(each):.2f})")
        rows.append(row)
    header = ["", "all arms: mean (extremes)", "without start"]
    return markdown_table(header[: 1 + len(different)], rows)


def drops(found: list[Cell], share: float) -> str:
    """How often the best arm was dropped, and why."""
    counts = {"behind": 0, "outranked": 0, "reached the last rung": 0}
    for cell in found:
        for run in cell.runs:
            rungs = replay(run, tuple(arms()), share=share, steps=cell.steps)
            if rungs is None:
                continue
            why = next((it.dropped[cell.best] for it in rungs if cell.best in it.dropped), None)
            counts[why or "reached the last rung"] += 1
    total = sum(counts.values())
    told = ", ".join(f"{name} {count} of {total}" for name, count in counts.items())
    return f"The best arm at a budget of {share:.0%}: {told}."


def write_report(replicates: int) -> None:
    """Write the tables of the first group, and of the second where a rule is frozen."""
    found = list(cells(replicates))
    first = [cell for cell in found if cell.key not in ASIDE]
    if not first:
        print("no cell is finished")
        return
    RESULTS.mkdir(parents=True, exist_ok=True)
    parts = {
        "values.md": values_table(first),
        "rules.md": summary(first, RULES),
        "correlations.md": correlations(first),
        "drops.md": "\n\n".join(drops(first, share) for share in BUDGETS),
    }
    frozen = RESULTS / "frozen.json"
    if frozen.exists():
        rule = json.loads(frozen.read_text())["rule"]
        aside = [cell for cell in found if cell.key in ASIDE]
        parts["aside-values.md"] = values_table(aside)
        parts["aside.md"] = summary(aside, [rule])
    for name, text in parts.items():
        (RESULTS / name).write_text(f"{text}\n")
        print(f"{text}\n")
