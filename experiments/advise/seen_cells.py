"""Other criteria for arms that begin anew, on the cells of scenes.py. They had been seen before.

    python experiments/advise/seen_cells.py                 # two replicates, a minute of one core

Trains beginnings, short whole trainings and trainings on an eighth of the pairs, side by side, and
takes what whole trainings end at from the tables of docs/results/advise. Writes seen.md there.
"""

import argparse
import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from statistics import mean
from typing import Any

import torch
from report import RESULTS, SMALL_GAIN, replay, scores_at
from scenes import (
    LENGTHS,
    RUNS,
    WRONG,
    Data,
    arms,
    data_of,
    reciprocal_ranks,
    reference_of,
    references,
    save,
    take,
    towers,
)
from side_by_side import Run, train_together
from torch import Tensor

from drrho.plotting.table import markdown_table
from drrho.studies.advise.halving import choose
from drrho.studies.advise.lead import expected_lead, level_of

FOLDER = RUNS / "seen"
BOTH = "steer-0.5-distil-1"
RACED = ("steer-0.2", "steer-0.5", "steer-1", "distil-1", BOTH)
OF_LEVEL = {"none": "plain", "a little": "steer-0.2", "half": "steer-0.5", "all": BOTH}
BEGINNING, PART = 1 / 4, 1 / 8
PILOTS = (1 / 16, 1 / 8, 1 / 4, 1 / 2, 1.0)
Curves = Mapping[str, Mapping[int, Tensor]]


@dataclass(frozen=True, kw_only=True)
class Race:
    """What can be looked at in a cell's replicate, and what its arms end at.

    Attributes:
        values: mean test MRR of whole trainings over four replicates.
        reference: reciprocal ranks of the held-out queries by the reference.
        plain: those of plain training, by step, to its end.
        begun: those of all arms, by step, to a quarter of the schedule.
        short: those at the end of trainings of an eighth of the steps, decayed to zero.
        subset: those after all passes over an eighth of the pairs.
    """

    cell: tuple[str, float, int]
    values: Mapping[str, float]
    reference: Tensor
    plain: Mapping[int, Tensor]
    begun: Curves
    short: Mapping[str, Tensor]
    subset: Mapping[str, Tensor]

    @property
    def steps(self) -> int:
        return self.cell[2]


def table_values() -> dict[tuple[str, float, int], dict[str, float]]:
    """Read the values of the arms that begin anew from the tables of scenes.py."""
    found = {}
    for name in ("values.md", "aside-values.md"):
        header, _, *lines = (RESULTS / name).read_text().splitlines()
        titles = [cell.strip() for cell in header.strip("|").split("|")][2:]
        for line in lines:
            title, _, *cells = [cell.strip(" *") for cell in line.strip("|").split("|")]
            if match := re.fullmatch(r"(\w+), (\d+)% wrong, (\d+)", title):
                values = dict(zip(titles, map(float, cells), strict=True))
                del values["start"]
                found[match[1], int(match[2]) / 100, int(match[3])] = values
    return found


def looks_of(steps: int) -> list[int]:
    """The steps after which held-out queries are ranked."""
    dense = {round(1.12**k) for k in range(80)} | {round(share * steps) for share in PILOTS}
    return sorted(step for step in dense if 3 <= step <= steps)


def group(replicate: int, wrong: float, steps: int) -> dict[str, Any]:
    """Train what is looked at in a replicate at a share of wrong captions and a length."""
    path = FOLDER / f"replicate-{replicate}-wrong-{wrong:g}-steps-{steps}.pt"
    if not path.exists():
        data, seed = data_of(replicate, wrong), 100_000 + 1_000 * replicate
        models = {name: reference_of(replicate, name) for name in references(0)}
        names = [(None, "plain"), *((name, arm) for name in models for arm in RACED)]

        def runs(data: Data, names: list[tuple[str | None, str]]) -> list[Run]:
            embedded = {name: model(data.train) for name, model in models.items()}
            return [
                Run(
                    arm=arms()[arm],
                    data=data,
                    model=towers(seed),
                    reference=None if name is None else embedded[name],
                    seed=seed + 5,
                )
                for name, arm in names
            ]

        rows = torch.randperm(len(data.train), generator=torch.Generator().manual_seed(seed + 9))
        few = Data(
            train=take(data.train, rows[: round(PART * len(rows))]),
            held_out=data.held_out,
            test=data.test,
        )
        looks, part = looks_of(steps), round(PART * steps)
        plain, *_ = train_together(runs(data, names[:1]), steps=steps, looks=looks)
        begun, *_ = train_together(
            runs(data, names), steps=steps, looks=looks, until=round(BEGINNING * steps)
        )
        short, *_ = train_together(runs(data, names), steps=part, looks=[part])
        subset, *_ = train_together(runs(few, names), steps=part, looks=[part])
        save(
            path,
            {
                "judged": {n: reciprocal_ranks(it, data.held_out) for n, it in models.items()},
                "plain": plain[0],
                "begun": dict(zip(names, begun, strict=True)),
                "short": {n: it[part] for n, it in zip(names, short, strict=True)},
                "subset": {n: it[part] for n, it in zip(names, subset, strict=True)},
            },
        )
        print(f"trained: {path.name}", flush=True)
    return torch.load(path, weights_only=True)


def races(replicates: int) -> Iterator[Race]:
    """Every cell's replicates."""
    values = table_values()
    for replicate in range(replicates):
        for wrong in WRONG:
            for steps in LENGTHS:
                found = group(replicate, wrong, steps)
                for name in references(0):

                    def own(part: str, name: str = name, found=found) -> dict:
                        own = {arm: found[part][name, arm] for arm in RACED}
                        return {"plain": found[part][None, "plain"]} | own

                    yield Race(
                        cell=(name, wrong, steps),
                        values=values[name, wrong, steps],
                        reference=found["judged"][name],
                        plain=found["plain"],
                        begun=own("begun"),
                        short=own("short"),
                        subset=own("subset"),
                    )


def by_lead(race: Race, pilot: float) -> str:
    """The criterion of the amendment."""
    step = max(it for it in race.plain if it <= round(pilot * race.steps))
    lead = expected_lead(
        reference=float(race.reference.mean()),
        plain=float(race.plain[step].double().mean()),
        share=step / race.steps,
    )
    return OF_LEVEL[level_of(lead)]


def raced(race: Race, budget: float) -> str:
    """Rule A."""
    run = {arm: {"held_out": curve} for arm, curve in race.begun.items()}
    rungs = replay(run, tuple(run), share=budget, steps=race.steps)
    assert rungs is not None
    return choose({name: scores_at(run, name, rungs[-1].step) for name in rungs[-1].mrr})[0]


def drawn_on(race: Race) -> str:
    """The arm whose lead over plain, a line in the logarithm of the steps, is largest at the end.

    The line is that of least squares through the looks from 5 % of the steps on.
    """
    ends = {"plain": 0.0}
    looks = [it for it in race.begun["plain"] if it >= 0.05 * race.steps]
    places = torch.tensor([math.log(it / race.steps) for it in looks], dtype=torch.float64)
    matrix = torch.stack([torch.ones_like(places), places], dim=1)
    for arm in RACED:
        leads = [float((race.begun[arm][it] - race.begun["plain"][it]).mean()) for it in looks]
        target = torch.tensor(leads, dtype=torch.float64)[:, None]
        ends[arm] = float(torch.linalg.lstsq(matrix, target).solution[0])
    return max(ends, key=ends.__getitem__)


def criteria() -> dict[str, tuple[float, Callable[[Race], str]]]:
    """Name, cost in whole runs, and choice of each criterion."""
    arms_raced = 1 + len(RACED)
    found: dict[str, tuple[float, Callable[[Race], str]]] = {
        f"P, a pilot of {share:.0%}": (share, lambda race, share=share: by_lead(race, share))
        for share in PILOTS
    }
    found["rule A, budget 25%"] = (0.25, lambda race: raced(race, 0.25))
    found["the best after a quarter of the steps"] = (
        BEGINNING * arms_raced,
        lambda race: choose({arm: list(it.values())[-1] for arm, it in race.begun.items()})[0],
    )
    found["the largest lead, drawn on from there"] = (BEGINNING * arms_raced, drawn_on)
    found["the best of short whole trainings"] = (
        PART * arms_raced,
        lambda race: choose(race.short)[0],
    )
    found["the best of all passes over an eighth of the pairs"] = (
        PART * arms_raced,
        lambda race: choose(race.subset)[0],
    )
    for arm in ("plain", *RACED):
        found[f"always {arm}"] = (0.0, lambda _race, arm=arm: arm)
    return found


def report(found: list[Race]) -> str:
    """The regret of each criterion over the cells."""
    rows = []
    for name, (cost, pick) in criteria().items():
        of_cell: dict[tuple[str, float, int], list[float]] = {}
        for race in found:
            of_cell.setdefault(race.cell, []).append(race.values[pick(race)])
        regrets, shares, harm = [], [], 0
        for race in {it.cell: it for it in found}.values():
            best, plain = max(race.values.values()), race.values["plain"]
            chosen = mean(of_cell[race.cell])
            regrets.append(best - chosen)
            harm += chosen < plain
            if best - plain >= SMALL_GAIN:
                shares.append((best - chosen) / (best - plain))
        rows.append(
            [
                name,
                f"{mean(regrets):.4f}",
                f"{mean(shares):.0%}",
                f"{max(shares):.0%}",
                str(harm),
                f"{cost:.0%}",
            ]
        )
    header = ["choice", "regret, MRR", "regret, of best gain", "worst cell", "cells with harm"]
    return markdown_table([*header, "spent, of a run"], rows)


def main() -> None:
    """Write docs/results/advise/seen.md."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--replicates", type=int, default=2)
    text = report(list(races(parser.parse_args().replicates)))
    (RESULTS / "seen.md").write_text(f"{text}\n")
    print(text)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
