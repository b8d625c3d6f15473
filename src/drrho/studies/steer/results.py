"""Results of `drrho steer`, and what they say in plain sentences."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
from jaxtyping import Float64
from torch import Tensor

from drrho.evaluation.metrics.bootstrap import bootstrap_interval
from drrho.evaluation.metrics.interval import Interval
from drrho.plotting.table import markdown_table
from drrho.reference.judgement import NEAR_GUESSING

TITLES = {
    "reference": "reference",
    "start": "target before training",
    "target": "target, steered",
    "plain": "target, without the reference",
}


@dataclass(frozen=True, kw_only=True)
class SteerResults:
    """What `drrho steer` found.

    Attributes:
        pairs: training pairs.
        held_out: held-out pairs.
        guessing: mean reciprocal rank of guessing among the held-out texts.
        mrr: mean reciprocal rank by model: "reference", "start", "target", and "plain" where there
            is one.
        first: share of the held-out images whose own text is first, by model.
        differences: paired difference of the target's reciprocal ranks from each other model's.
        sentences: what this says, and what it does not say.
        folder: folder of the run, its recipe and the report.
    """

    version: ClassVar[int] = 1
    pairs: int
    held_out: int
    guessing: float
    mrr: dict[str, Interval]
    first: dict[str, float]
    differences: dict[str, Interval]
    sentences: tuple[str, ...]
    folder: str

    def __str__(self) -> str:
        rows = [
            [
                TITLES[name],
                str(value),
                f"{self.first[name]:.3f}",
                "" if name not in self.differences else str(self.differences[name]),
            ]
            for name, value in self.mrr.items()
        ]
        rows.append(["guessing", f"{self.guessing:.3f}", f"{1 / self.held_out:.3f}", ""])
        header = ["", "MRR (95 % interval)", "own text first", "steered less this one"]
        table = markdown_table(header, rows)
        told = "\n".join(f"* {sentence}" for sentence in self.sentences)
        return (
            f"{self.held_out:,} held-out pairs; {self.pairs:,} were trained on\n\n{table}\n\n"
            f"{told}\n\nmodel: {Path(self.folder) / 'run' / 'model'}; page: "
            f"{(Path(self.folder) / 'report.html').resolve().as_uri()}"
        )


def interval_of(values: Float64[Tensor, " images"]) -> Interval:
    """Compute the mean and its interval, with the same resamples at every call."""
    low, high = bootstrap_interval(values, generator=torch.Generator().manual_seed(0))
    return Interval(mean=float(values.mean()), low=low, high=high)


def differences_from_target(
    ranks: Mapping[str, Float64[Tensor, " images"]],
) -> dict[str, Interval]:
    """Compute the target's paired differences; a model that could not read as many has none."""
    target = ranks["target"]
    return {
        name: interval_of(target - others)
        for name, others in ranks.items()
        if name != "target" and len(others) == len(target)
    }


def sentences_of(
    mrr: Mapping[str, Interval], differences: Mapping[str, Interval], *, guessing: float
) -> tuple[str, ...]:
    """Say what the results mean, the unwelcome first."""
    said = [*_near_guessing(mrr, guessing)]
    said += _against(differences.get("start"), "its own start", mrr.get("start"))
    said += _against(differences.get("reference"), "the reference", mrr["reference"])
    if "plain" not in mrr:
        said.append(
            "no plain run was made, so nothing here says what the reference brought; --with-plain "
            "makes one of as many steps beside it"
        )
    elif (found := differences.get("plain")) is not None:
        said.append(_of_plain(found))
    said.append("one seed: the intervals are over held-out images, not over training runs")
    return tuple(said)


def near_guessing(mrr: Interval, guessing: float) -> bool:
    """Tell whether a model cannot be told from guessing."""
    return mrr.low <= NEAR_GUESSING * guessing


def _near_guessing(mrr: Mapping[str, Interval], guessing: float) -> Iterator[str]:
    for name in ("reference", "target"):
        if near_guessing(mrr[name], guessing):
            yield (
                f"the {name} is near guessing on the held-out pairs: MRR {mrr[name]}, guessing "
                f"{guessing:.3f}"
                + ("; it can teach little, choose another" if name == "reference" else "")
            )


def _against(difference: Interval | None, what: str, of: Interval | None) -> Iterator[str]:
    if difference is None or of is None:
        return
    if difference.high < 0:
        yield f"the steered target is below {what}: the difference of the MRR is {difference}"
    elif difference.low <= 0:
        yield f"the steered target cannot be told from {what}: the difference is {difference}"
    else:
        yield f"the steered target is above {what}: the difference of the MRR is {difference}"


def _of_plain(found: Interval) -> str:
    where = "ahead of" if found.low > 0 else "behind" if found.high < 0 else "not told apart from"
    return (
        f"with the reference the target is {where} a plain run of as many steps: the paired "
        f"difference of the MRR is {found}"
    )
