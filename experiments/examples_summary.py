r"""The primaries of the studies in examples/, tested together: R7 of docs/results/plan.md.

    python examples/classification.py --seeds 8 --output docs/results/examples/digits
    python examples/classification.py --seeds 8 --data EUROSAT \
        --output docs/results/examples/eurosat
    python experiments/examples_summary.py docs/results/examples

Paired t-tests over the seeds, two-sided, adjusted by Holm's rule for all six primaries; those that
are not run count as if nothing were found.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from drrho.plotting.table import markdown_table
from drrho.runtime.files import write_atomically
from drrho.studies.compare.results import PairedTest
from drrho.studies.compare.statistics import holm, paired_test

SEEDS = 8  # fewer give no verdict


class Study(NamedTuple):
    """What a study's results call its score, whether high or low is good, and its primaries."""

    score: str
    sign: int
    primaries: tuple[tuple[str, str], ...]


CLASSIFICATION = Study("accuracy", 1, (("DRRho, KL", "plain"), ("union, DRRho", "union")))
STUDIES = {
    "digits": CLASSIFICATION,
    "eurosat": CLASSIFICATION,
    "language_model": Study("loss", -1, (("KL weights", "plain"), ("union, KL weights", "union"))),
}


class Found(NamedTuple):
    """A primary: its differences by seed, positive where the first is better."""

    study: str
    pair: tuple[str, str]
    differences: tuple[float, ...] = ()

    @property
    def test(self) -> PairedTest | None:
        return paired_test(self.differences) if len(self.differences) >= SEEDS else None


def primaries(folder: Path) -> list[Found]:
    """The primaries of all studies, those without results too."""
    found = []
    for name, study in STUDIES.items():
        path = folder / name / "results.json"
        results = json.loads(path.read_text()) if path.is_file() else {}
        for one, other in study.primaries:
            pairs = zip(results.get(one, ()), results.get(other, ()), strict=True)
            values = [study.sign * (a[study.score] - b[study.score]) for a, b in pairs]
            found.append(Found(name, (one, other), tuple(values)))
    return found


def table(found: Sequence[Found]) -> str:
    """A row for each primary with its verdict."""
    tests = [primary.test for primary in found]
    adjusted = holm([1.0 if test is None else test.p for test in tests])
    rows = []
    for primary, test, p in zip(found, tests, adjusted, strict=True):
        row = [primary.study, " > ".join(primary.pair), "", "", "", "", "not yet run"]
        if test is not None:
            mean = sum(primary.differences) / len(primary.differences)
            sign = "holds" if mean > 0 else "refuted"
            low, high = test.interval
            row[2:] = (f"{mean:+.4f}", f"{low:+.4f} to {high:+.4f}", f"{test.p:.2g}", f"{p:.2g}",
                       sign if p < 0.05 else "not found")  # fmt: skip
        rows.append(row)
    header = ["study", "primary", "difference", "95 %", "p", "adjusted", "verdict"]
    return markdown_table(header, rows)


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints the table and writes it into the folder."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="folder with a folder of results for each study")
    folder = parser.parse_args(arguments).folder
    text = table(primaries(folder))
    print(text)
    write_atomically(folder / "summary.md", f"{text}\n".encode())


if __name__ == "__main__":
    main()
