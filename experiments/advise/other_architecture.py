"""Whole trainings beside references of another architecture: docs/results/advise_plan.md.

    python experiments/advise/other_architecture.py                  # what is planned
    python experiments/advise/other_architecture.py --replicates 1   # the first replicate alone
    python experiments/advise/other_architecture.py --report         # the tables of what is there

Finished groups of runs are kept in runs/advise/other-architecture. A kill loses the group that was
being trained.
"""

import argparse
import time
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

import torch
from scenes import (
    HELD_OUT,
    PAIRS,
    RUNS,
    TEST,
    Data,
    Towers,
    arms,
    pairs_of,
    reciprocal_ranks,
    save,
    take,
    towers,
)
from side_by_side import Run, train_together
from torch import Tensor

from drrho.data.scenes import ScenesConfig
from drrho.runtime.progress import announce

FOLDER = RUNS / "other-architecture"
LENGTHS, WRONG = (250, 750), (0.0, 0.3)
RACED = ("filter-0.5", "steer-0.2", "steer-0.5", "steer-1", "distil-1", "steer-0.5-distil-1")
SHARES = (1 / 16, 1 / 8, 1 / 4, 1 / 2, 1.0)  # of the steps, after which pilots are read
# References of each group of runs, a share of wrong captions and a length.
CELLS: dict[tuple[float, int], tuple[str, ...]] = {
    (0.0, 250): ("medium", "noisy", "weak", "placebo"),
    (0.3, 250): ("strong", "medium", "noisy", "biased"),
    (0.0, 750): ("strong", "medium", "noisy", "biased"),
    (0.3, 750): ("medium", "noisy", "weak", "placebo"),
}


@dataclass(frozen=True, kw_only=True)
class Other:
    """A reference whose architecture is not the target's, and what it is trained on."""

    width: int
    dim: int
    scenes: ScenesConfig
    steps: int


def others(seed: int) -> dict[str, Other]:
    """The references of a replicate; each has scenes of its own."""

    def drawn(number: int, samples: int, *, wrong: float = 0.0, short: float = 0.0) -> ScenesConfig:
        return ScenesConfig(
            num_samples=samples, seed=seed + number, mismatch_rate=wrong, omission_rate=short
        )

    return {
        "strong": Other(width=160, dim=48, scenes=drawn(11, 3000), steps=1000),
        "medium": Other(width=160, dim=48, scenes=drawn(12, 1000), steps=500),
        "noisy": Other(width=160, dim=48, scenes=drawn(13, 3000, wrong=0.5), steps=700),
        "weak": Other(width=48, dim=16, scenes=drawn(14, 300), steps=300),
        "biased": Other(width=48, dim=16, scenes=drawn(15, 1500, short=0.5), steps=500),
        "placebo": Other(width=48, dim=16, scenes=drawn(16, 1000, wrong=0.99), steps=200),
    }


def seed_of(replicate: int) -> int:
    """The seed of a replicate; none is one of scenes.py."""
    return 500_000 + 1_000 * replicate


def looked_at(steps: int) -> list[int]:
    """The steps after which held-out queries are ranked."""
    dense = {round(1.12**k) for k in range(10, 80)}
    return sorted(it for it in dense | {round(s * steps) for s in SHARES} if it <= steps)


def reference_of(replicate: int, name: str) -> Towers:
    """Train a reference, or load it."""
    seed, path = seed_of(replicate), FOLDER / f"replicate-{replicate}" / f"{name}.pt"
    other = others(seed)[name]
    model = towers(seed + len(name), width=other.width, dim=other.dim)
    if not path.exists():
        own = pairs_of(other.scenes)
        few = take(own, torch.arange(2))
        data = Data(train=own, held_out=few, test=few)
        run = Run(arm=arms()["plain"], data=data, model=model, reference=None, seed=seed + 7)
        *_, (trained,) = train_together([run], steps=other.steps, looks=[])
        save(path, trained.state_dict())
    model.load_state_dict(torch.load(path, weights_only=True))
    return model.requires_grad_(False)


def data_of(replicate: int, wrong: float) -> Data:
    """Draw the scenes of a replicate; images and right captions do not depend on the share."""
    scenes = ScenesConfig(num_samples=PAIRS, seed=seed_of(replicate), mismatch_rate=wrong)
    return Data(
        train=pairs_of(scenes),
        held_out=pairs_of(replace(scenes, num_samples=HELD_OUT, seed=scenes.seed + 1)),
        test=pairs_of(ScenesConfig(num_samples=TEST, seed=scenes.seed + 2)),
    )


def group_path(replicate: int, wrong: float, steps: int) -> Path:
    """The file of a group of runs."""
    return FOLDER / f"replicate-{replicate}" / f"wrong-{wrong:g}-steps-{steps}.pt"


def run_group(replicate: int, data: Data, wrong: float, steps: int) -> None:
    """Train plain and every arm of the references of a group, side by side."""
    seed, known = seed_of(replicate), arms()
    models = {name: reference_of(replicate, name) for name in CELLS[wrong, steps]}
    embedded = {name: model(data.train) for name, model in models.items()}
    names = [(None, "plain"), *((name, arm) for name in models for arm in RACED)]
    runs = [
        Run(
            arm=known[arm],
            data=data,
            model=towers(seed),
            reference=None if name is None else embedded[name],
            seed=seed + 5,
        )
        for name, arm in names
    ]
    held_out, test, _ = train_together(runs, steps=steps, looks=looked_at(steps))
    found: dict[str, dict[str, object]] = {}
    for (name, arm), curve, end in zip(names, held_out, test, strict=True):
        title = arm if name is None else f"{arm}-{name}"
        ranks = {step: values.half() for step, values in curve.items()}
        found[title] = {"held_out": ranks, "test": end}
    judged: dict[str, Tensor] = {
        name: reciprocal_ranks(model, data.held_out) for name, model in models.items()
    }
    save(group_path(replicate, wrong, steps), {"runs": found, "judged": judged})


def train_all(replicates: int) -> None:
    """Train the groups of runs that are not there yet."""
    began = time.monotonic()
    for replicate, wrong in product(range(replicates), WRONG):
        left = [it for it in LENGTHS if not group_path(replicate, wrong, it).exists()]
        data = data_of(replicate, wrong) if left else None
        for steps in left:
            assert data is not None
            run_group(replicate, data, wrong, steps)
            announce(
                f"replicate {replicate}, {wrong:.0%} wrong, {steps} steps: "
                f"{time.monotonic() - began:.0f} s"
            )


def main() -> None:
    """Train what is planned, or report on what is there."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--replicates", type=int, default=4)
    parser.add_argument("--report", action="store_true", help="train nothing")
    options = parser.parse_args()
    if not options.report:
        train_all(options.replicates)
    from report_other import write_report  # noqa: PLC0415

    write_report(options.replicates)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
