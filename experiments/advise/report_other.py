"""Tables of other_architecture.py: criteria for arms that begin anew, by their regret."""

from collections.abc import Iterator, Mapping
from statistics import mean

import torch
from other_architecture import CELLS, RACED, SHARES, group_path
from report import (
    HEADER,
    RESULTS,
    Cell,
    Choices,
    Run,
    always,
    choices_of,
    correlations,
    scores_at,
    summary_row,
    values_table,
)

from drrho.plotting.chart import Chart, Series
from drrho.plotting.png import draw_png
from drrho.plotting.table import markdown_table
from drrho.studies.advise.lead import LEVELS, expected_lead, level_of

BOTH = "steer-0.5-distil-1"
OF_LEVEL = {"none": "plain", "a little": "steer-0.2", "half": "steer-0.5", "all": BOTH}
ORDER = list(OF_LEVEL.values())
PILOT = 0.25


def cells(replicates: int) -> Iterator[Cell]:
    """Read the cells whose replicates are all there; the reference's ranks are kept with plain."""
    for (wrong, steps), names in CELLS.items():
        paths = [group_path(replicate, wrong, steps) for replicate in range(replicates)]
        if not all(path.exists() for path in paths):
            continue
        groups = [torch.load(path, weights_only=True) for path in paths]
        for name in names:
            runs = []
            for found in groups:
                own = {arm: found["runs"][f"{arm}-{name}"] for arm in RACED}
                plain = found["runs"]["plain"] | {"judged": found["judged"][name]}
                runs.append({"plain": plain} | own)
            yield Cell(reference=name, wrong=wrong, steps=steps, runs=runs)


def leads(cell: Cell, pilot: float) -> list[float]:
    """The lead of the reference in each replicate, after a share of the steps."""
    return [_lead(run, round(pilot * cell.steps), cell.steps) for run in cell.runs]


def _lead(run: Mapping[str, Run], until: int, steps: int) -> float:
    step = max(it for it in run["plain"]["held_out"] if it <= until)
    return expected_lead(
        reference=float(run["plain"]["judged"].double().mean()),
        plain=float(scores_at(run, "plain", step).mean()),
        share=step / steps,
    )


def by_lead(cell: Cell, pilot: float, *, moved: int = 0) -> Choices:
    """The criterion P; moved up or down by so many levels."""
    places = [ORDER.index(OF_LEVEL[level_of(lead)]) + moved for lead in leads(cell, pilot)]
    chosen = [ORDER[min(max(place, 0), len(ORDER) - 1)] for place in places]
    return Choices(cell=cell, chosen=chosen, spent=[pilot])


def summary(found: list[Cell]) -> str:
    """A row for each criterion and baseline."""
    rows = [
        summary_row(f"P, a pilot of {share:.0%}", [by_lead(cell, share) for cell in found])
        for share in SHARES
    ]
    for moved, name in ((1, "up"), (-1, "down")):
        own = [by_lead(cell, PILOT, moved=moved) for cell in found]
        rows.append(summary_row(f"P, {PILOT:.0%}, one level {name}", own))
    for share in (0.25, 0.5, 1.0):
        raced = [it for cell in found if (it := choices_of(cell, "A", share)) is not None]
        rows.append(summary_row(f"rule A, budget {share:.0%}", raced))
    rows += [
        summary_row(f"always {arm}", [always(cell, arm) for cell in found])
        for arm in ("plain", *RACED)
    ]
    return markdown_table(HEADER, rows)


def leads_table(found: list[Cell]) -> str:
    """What was chosen in each cell, by P and by the race."""
    rows = []
    for cell in found:
        chosen, raced = by_lead(cell, PILOT), choices_of(cell, "A", PILOT)
        assert raced is not None
        gain = cell.value(cell.best) - cell.value("plain")
        rows.append(
            [
                f"{cell.reference}, {cell.wrong:.0%} wrong, {cell.steps}",
                f"{mean(float(run['plain']['judged'].double().mean()) for run in cell.runs):.3f}",
                ", ".join(f"{lead:.2f}" for lead in leads(cell, PILOT)),
                ", ".join(dict.fromkeys(chosen.chosen)),
                f"{chosen.gain:+.3f}",
                ", ".join(dict.fromkeys(raced.chosen)),
                f"{raced.gain:+.3f}",
                f"{cell.best} {gain:+.3f}",
            ]
        )
    header = ["cell", "its MRR", "lead", "P chose", "gain", "the race chose", "gain", "best, gain"]
    return markdown_table(header, rows)


def lead_chart(found: list[Cell]) -> Chart:
    """The gain of three uses, as a share of plain's value, against the lead."""
    series = []
    for colour, (arm, mark) in enumerate({"steer-0.2": "o", "steer-0.5": "s", BOTH: "D"}.items()):
        ordered = sorted(found, key=lambda cell: mean(leads(cell, PILOT)))
        series.append(
            Series(
                name=arm,
                x=[mean(leads(cell, PILOT)) for cell in ordered],
                y=[cell.value(arm) / cell.value("plain") - 1 for cell in ordered],
                style=mark,
                colour=colour,
            )
        )
    bounds = ", ".join(f"{least:g}" for least, _ in LEVELS)
    return Chart(
        title="",
        x_label=f"lead of the reference after a quarter of the steps (levels at {bounds})",
        y_label="gain, as a share of plain's MRR",
        series=series,
        x_scale="log",
        levels={"plain": 0.0},
    )


def write_report(replicates: int) -> None:
    """Write the tables and the figure of the cells whose replicates are there."""
    found = list(cells(replicates))
    if not found:
        print("no group of runs is finished")
        return
    parts = {
        "other.md": summary(found),
        "other-values.md": values_table(found),
        "other-leads.md": leads_table(found),
        "other-correlations.md": correlations(found),
    }
    for name, text in parts.items():
        (RESULTS / name).write_text(f"{text}\n")
        print(f"{text}\n")
    draw_png([lead_chart(found)], RESULTS / "other-leads.png", size=(7, 4.2))
