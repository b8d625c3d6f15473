"""Reads finished comparisons, and tables of other runs, as points."""

import csv
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from drrho.runtime.files import parse_json
from drrho.studies.compare.results import (
    MethodResults,
    Results,
    SeedResults,
    read_results,
)

# Names among a run's metrics.
GFLOP, SAMPLES_SEEN = "forward_gflop", "samples_seen"
REFERENCE_COMPUTE = "reference_compute"
PASSES = 3  # of a step on a sample, in forward passes: this is the unit of compute


@dataclass(frozen=True, kw_only=True)
class Run:
    """One finished run, read from the file `source`.

    Attributes:
        setting: name of what it shares with runs of other methods (model, data, samples).
        seed: None where a table does not say.
        metrics: name -> value on the first test set, TEST/name -> value on any, and what
            training recorded.
        amount: amount of training data, in pairs or in the unit that the setting is named by.
    """

    method: str
    setting: str
    seed: int | None
    metrics: Mapping[str, float]
    amount: int | None
    source: Path

    def value(self, name: str) -> float:
        """The value of a metric.

        Raises:
            ValueError: the run has none of this name, or it is not finite.
        """
        if name not in self.metrics:
            raise ValueError(
                f"{self.source}: {self.method} of seed {self.seed} has no {name!r}; it has "
                f"{', '.join(sorted(self.metrics))}"
            )
        if not math.isfinite(self.metrics[name]):
            raise ValueError(
                f"{self.source}: {name} of {self.method} is {self.metrics[name]}; leave the run out"
            )
        return self.metrics[name]

    def compute(self) -> float:
        """Forward GFLOP per sample times samples seen, or what a table calls `compute`."""
        if "compute" in self.metrics:
            return self.value("compute")
        if GFLOP not in self.metrics:
            raise ValueError(
                f"{self.source} does not say the forward GFLOP of {self.method}: it is counted on "
                "test sets with captions; give a table with the compute"
            )
        return self.value(GFLOP) * self.value(SAMPLES_SEEN)

    def total_compute(self) -> float:
        """The compute of the run and of its references: their training and stored embeddings.

        Raises:
            ValueError: the cost of a reference is not known.
        """
        of_references = self.metrics.get(REFERENCE_COMPUTE, 0.0)
        if not math.isfinite(of_references):
            raise ValueError(
                f"{self.source} does not say what the references of {self.method} cost; give "
                "compute = 'target', which counts the runs alone"
            )
        return self.compute() + of_references

    def error(self, metric: str) -> float:
        """`1 - metric`, or what a table calls `error`.

        Raises:
            ValueError: the metric is not a fraction, or there is none.
        """
        if "error" in self.metrics:
            return self.value("error")
        score = self.value(metric)
        if not 0 <= score < 1:
            raise ValueError(
                f"{self.source}: {metric} of {self.method} is {score}; errors are of scores that "
                "are fractions below 1"
            )
        return 1 - score


def read_runs(paths: Sequence[str]) -> list[Run]:
    """Reads all runs of several files, in order.

    A file is the `results.json` of `drrho compare` (or the folder that holds it), or a table: csv
    with a header, or a json list of objects, with `method`, `compute` and `error`, and perhaps
    `setting` (by default the compute), `seed` and `reference_compute`. A method of a
    comparison may be called
    METHOD+SETTING ("clip+wide-200"); its setting is that and the folder of the file. A setting
    that is a number ("clip+2000") is the amount of data.

    Raises:
        FileNotFoundError: one is not there.
        ValueError: one is neither, or there is no run in any.
    """
    runs = [run for path in paths for run in _read(Path(path).expanduser())]
    if not runs:
        raise ValueError(f"there is no run in {', '.join(map(str, paths)) or 'no files'}")
    return runs


def by_method(runs: Iterable[Run]) -> dict[str, list[Run]]:
    """Groups runs by method, in the order of the files."""
    methods: dict[str, list[Run]] = {}
    for run in runs:
        methods.setdefault(run.method, []).append(run)
    return methods


def _read(path: Path) -> list[Run]:
    path = path / "results.json" if path.is_dir() else path
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} does not exist; give results.json of a finished `drrho compare`, or a table "
            "of points (csv or json)"
        )
    if path.suffix == ".csv":
        with path.open(newline="", encoding="utf-8") as file:
            lines = (line for line in file if not line.startswith("#"))
            return _of_table(list(csv.DictReader(lines)), path)
    try:
        content = parse_json(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path} is neither csv nor JSON: {error}") from error
    if isinstance(content, list):
        return _of_table(content, path)
    return _of_comparison(read_results(path), path)


def _of_comparison(results: Results, path: Path) -> list[Run]:
    runs = []
    for name, found in results.methods.items():
        method, _, setting = name.partition("+")
        forward = {} if found.gflop is None else {GFLOP: found.gflop.total}
        forward |= {REFERENCE_COMPUTE: _compute_of_references(results, found)}
        runs += [
            Run(
                method=method,
                setting=f"{path.parent} {setting}".strip(),
                seed=run.seed,
                metrics=_metrics(run) | forward,
                amount=int(setting) if setting.isdecimal() else None,
                source=path,
            )
            for run in found.runs
        ]
    return runs


def _metrics(run: SeedResults) -> dict[str, float]:
    named = {f"{test}/{name}": v for test, found in run.tests.items() for name, v in found.items()}
    first = next(iter(run.tests.values()), {})
    costs = {} if run.cost is None else asdict(run.cost)
    found = {**named, **first, **costs}
    return {name: float(value) for name, value in found.items() if value is not None}


def _compute_of_references(results: Results, method: MethodResults) -> float:
    """Compute of a method's references, in the unit of `Run.compute`; not finite if not known."""
    total = 0.0
    for name, cost in method.reference_cost.items():
        reference = results.references.get(name)
        if reference is None or reference.gflop is None or cost.training is None:
            return math.nan
        passes = 0 if cost.precompute is None else cost.precompute.samples or 0
        total += reference.gflop.total * (cost.training.samples_seen + passes / PASSES)
    return total


def _of_table(rows: Sequence[Any], path: Path) -> list[Run]:
    runs = []
    for number, row in enumerate(rows, start=1):
        try:
            if None in row:
                raise ValueError("it has more cells than the header")
            metrics = {name: float(row[name]) for name in ("compute", "error")}
            if (of_references := row.get(REFERENCE_COMPUTE)) not in (None, ""):
                metrics[REFERENCE_COMPUTE] = float(of_references)
            seed = row.get("seed")
            runs.append(
                Run(
                    method=str(row["method"]),
                    setting=str(row.get("setting") or f"{metrics['compute']:.6g}"),
                    seed=int(seed) if seed not in (None, "") else None,
                    metrics=metrics,
                    amount=None,
                    source=path,
                )
            )
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"{path}, row {number}: {row!r:.200} needs method, compute and error, and numbers "
                f"for all but the first ({type(error).__name__}: {error})"
            ) from error
    return runs
