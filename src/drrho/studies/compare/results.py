"""The results of a comparison as typed data, and `results.json`, its file."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

from drrho.runtime.files import write_json
from drrho.runtime.records import (
    FORMAT,
    OPTIONAL,
    from_json,
    read_json_object,
    read_versioned,
    to_json,
)
from drrho.studies.compare.spec import GapConfig, Primary, TuningConfig

FILE_NAME = "results.json"
Metrics = Mapping[str, float]  # metric -> value
Interval = tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class Gflop:
    """Forward GFLOP of one sample, by tower."""

    image: float
    text: float

    @property
    def total(self) -> float:
        return self.image + self.text


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Cost of training.

    Attributes:
        samples_seen: samples with a forward and a backward pass.
        forward_only: forward passes of the target without a backward pass (scoring a super-batch,
            or the first pass of micro-batches).
        seconds: wall time, evaluations included.
        skipped: samples that could not be read.
        training_gflop: GFLOP of all passes of the target; None where the towers were not counted.
        live_pairs: pairs that live references and teachers embedded; None without any.
        live_seconds: seconds of `seconds` that they took.
    """

    samples_seen: float
    forward_only: float = 0
    seconds: float = 0.0
    skipped: float = 0
    training_gflop: float | None = field(default=None, metadata=OPTIONAL)
    live_pairs: float | None = field(default=None, metadata=OPTIONAL)
    live_seconds: float | None = field(default=None, metadata=OPTIONAL)


@dataclass(frozen=True, kw_only=True)
class PrecomputeCost:
    """Seconds spent on a store, model building included, and the samples of one that is whole."""

    seconds: float = 0.0
    samples: int | None = None


@dataclass(frozen=True, kw_only=True)
class ReferenceCost:
    """Cost of a method's reference beyond the method's own runs; None where it is not known."""

    precompute: PrecomputeCost | None = None
    training: Cost | None = None


@dataclass(frozen=True, kw_only=True)
class SeedResults:
    """One run of a method or of a reference; `tests` maps a test set to metrics."""

    seed: int
    tests: Mapping[str, Metrics] = field(default_factory=dict)
    cost: Cost | None = None
    versions: Mapping[str, str | None] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class ReferenceResults:
    """Scores and cost of a reference.

    Attributes:
        tests: test set -> metrics.
        model: its name, as `drrho reference precompute` takes it.
        data, cost: its training data and the cost of training; None for an existing model.
        gflop: None without captions.
        steered_by: names of the references that it was trained with.
        runs: one for each replicate; `tests` is their mean. None where one serves all seeds.
    """

    tests: Mapping[str, Metrics]
    model: str = ""
    data: str | None = None
    cost: Cost | None = None
    gflop: Gflop | None = None
    steered_by: tuple[str, ...] = ()
    runs: tuple[SeedResults, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Choice:
    """Choice between the settings of a method.

    Attributes:
        settings: differences of each setting from the first, a line per value.
        chosen: place of the chosen one; None before all are judged.
        scores: score of each setting; None for one that failed.
    """

    settings: tuple[tuple[str, ...], ...]
    chosen: int | None
    scores: tuple[float | None, ...] | None


@dataclass(frozen=True, kw_only=True)
class MethodResults:
    """Scores and cost of a method, over its seeds.

    Attributes:
        runs: finished runs, in the order of the seeds.
        tests: test set -> means of the metrics over the runs.
        intervals: test set -> 95 % interval of its mean reciprocal rank, where it has one.
        cost: mean over the runs; None without runs.
        gflop: None without captions.
        reference_cost: reference -> cost beyond the runs.
        choice: None where the method has one setting.
        missing: seeds that are not finished.
        failed: seed -> reason.
    """

    runs: tuple[SeedResults, ...]
    tests: Mapping[str, Metrics] = field(default_factory=dict)
    intervals: Mapping[str, Interval] = field(default_factory=dict)
    cost: Cost | None = None
    gflop: Gflop | None = None
    reference_cost: Mapping[str, ReferenceCost] = field(default_factory=dict)
    choice: Choice | None = None
    missing: tuple[int, ...] = ()
    failed: Mapping[int, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class PairedTest:
    """Student's t-test of paired differences over seeds or replicates.

    Attributes:
        interval: 95 % interval of the mean difference.
        p: two-sided p value.
        holm: the same adjusted over the comparison's family; None for what is not in it.
    """

    interval: Interval
    p: float
    holm: float | None = None


@dataclass(frozen=True, kw_only=True)
class Difference:
    """The paired difference of two models in mean reciprocal rank on a test set.

    Attributes:
        mrr: mean of `method` minus mean of `minus`, over the common `seeds`.
        interval: 95 % interval of it by a bootstrap over the test images and, where there are
            several, the seeds; None where none was computed.
        won: number of seeds with a positive difference.
        paired: test over the seeds; None with one seed.
    """

    test: str
    method: str
    minus: str
    mrr: float
    interval: Interval | None
    won: int
    seeds: tuple[int, ...]
    paired: PairedTest | None = field(default=None, metadata=OPTIONAL)

    @property
    def shown_interval(self) -> Interval | None:
        """The interval over seeds or, where there is one seed, over the test images."""
        return self.interval if self.paired is None else self.paired.interval

    @property
    def excludes_zero(self) -> bool:
        """Whether the shown interval excludes zero."""
        ends = self.shown_interval
        return ends is not None and (ends[0] > 0 or ends[1] < 0)

    @property
    def is_clear(self) -> bool:
        """Whether the difference is told from zero: after Holm's correction, where there is one."""
        if self.paired is not None and self.paired.holm is not None:
            return self.paired.holm < 0.05
        return self.excludes_zero


@dataclass(frozen=True, kw_only=True)
class RecoveredGap:
    """The share of the performance gap that a method recovers on a test set.

    `recovered` is None where there is no gap; its 95 % `interval`, where that has no ends.
    """

    test: str
    method: str
    recovered: float | None
    interval: Interval | None
    seeds: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Setup:
    """Setup of a comparison; seeds, tuning, gap and primaries are as in the `Comparison`.

    Attributes:
        train: method -> training data.
        test: name -> test set.
        test_pairs: test set -> number of its pairs.
        batch_size: method -> pairs in a step.
        steps: method -> optimiser steps; None where the recipe says epochs.
        threads: number of the processor's threads.
        interval: how the intervals of single test sets were computed, in words.
        replicated: whether each seed is a replicate, with data and references of its own.
        chance: test set -> metric -> what guessing reaches; empty in files of earlier versions.
    """

    seeds: tuple[int, ...] = ()
    train: Mapping[str, str] = field(default_factory=dict)
    test: Mapping[str, str] = field(default_factory=dict)
    test_pairs: Mapping[str, int] = field(default_factory=dict)
    batch_size: Mapping[str, int] = field(default_factory=dict)
    steps: Mapping[str, int | None] = field(default_factory=dict)
    tuning: TuningConfig | None = None
    gap: GapConfig | None = None
    threads: int | None = None
    interval: str = ""
    primaries: tuple[Primary, ...] = ()
    replicated: bool = False
    chance: Mapping[str, Metrics] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Results:
    """Results of the finished runs of a comparison. Printing them gives tables and an explanation.

    Attributes:
        setup: what was compared.
        methods: name -> results, in the order of the comparison.
        references: name -> results.
        differences: paired, of each method from each one before it, on their common seeds.
        from_references: paired, of each method from the references that it reads.
        gap: shares of the performance gap, where the comparison names one.
        versions: library -> version.
        folder: folder of the comparison; it is not written into the file.
    """

    version: ClassVar = 1
    methods: Mapping[str, MethodResults]
    setup: Setup = field(default_factory=Setup)
    references: Mapping[str, ReferenceResults] = field(default_factory=dict)
    differences: tuple[Difference, ...] = ()
    from_references: tuple[Difference, ...] = ()
    gap: tuple[RecoveredGap, ...] = ()
    versions: Mapping[str, str | None] = field(default_factory=dict)
    folder: str | None = field(default=None, metadata=OPTIONAL, compare=False)

    def __str__(self) -> str:
        # The tables are of this module's types.
        from drrho.studies.compare.tables import comparison_table, explain  # noqa: PLC0415

        return f"{comparison_table(self)}\n\n{explain(self)}"


def write_results(path: Path, results: Results) -> None:
    """Writes `results.json`; there the interval of a test set is among its metrics."""
    content = to_json(replace(results, folder=None))
    # Absent where there is nothing to say, as in the files of older versions.
    places = [(content, "from_references"), (content["setup"], "primaries")]
    places += [(content["setup"], "replicated"), (content["setup"], "chance")]
    places += [(reference, "runs") for reference in content["references"].values()]
    for place, name in places:
        if not place[name]:
            del place[name]
    for method in content["methods"].values():
        for test, interval in method.pop("intervals").items():
            method["tests"][test]["mrr_interval"] = interval
        method["cost"] = method["cost"] or {}
    write_json(path, {FORMAT: results.version, **content})


def read_results(path: Path) -> Results:
    """Reads a comparison's `results.json`, of this version or an earlier one.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged, or no comparison's.
    """
    content = read_versioned(path, Results)
    if not isinstance(content.get("methods"), dict):
        raise ValueError(f"{path} has no methods; give results.json of `drrho compare`")
    if any("mrr" in method for method in content["methods"].values()):
        content = _with_named_test(content)
    methods = {}
    for name, method in content["methods"].items():
        tests = {test: dict(metrics) for test, metrics in method.get("tests", {}).items()}
        intervals = {test: metrics.pop("mrr_interval", None) for test, metrics in tests.items()}
        intervals = {test: ends for test, ends in intervals.items() if ends is not None}
        cost = method.get("cost") or None
        methods[name] = method | {"cost": cost, "tests": tests, "intervals": intervals}
    return from_json(Results, content | {"methods": methods}, where=str(path))


def find_results(folder: Path) -> Results | None:
    """The results of a comparison's folder; None if it holds none, or results of a single run.

    Raises:
        ValueError: the file is damaged.
    """
    path = folder / FILE_NAME
    if not path.is_file() or "methods" not in read_json_object(path):
        return None
    return read_results(path)


def _with_named_test(content: Mapping[str, Any]) -> dict[str, Any]:
    """Translates the first layout: one test set, whose metrics are beside what is known of runs."""
    setup, methods = content.get("setup", {}), content["methods"]
    test, seeds = "test", setup.get("seeds", [])

    def scores(found: Mapping[str, Any]) -> dict[str, Any]:
        names = [name for name in found if "mrr" in name or "/" in name]
        return {test: {name: found[name] for name in names}}

    def cost(found: Mapping[str, Any]) -> dict[str, Any] | None:
        names = [name for name in ("samples_seen", "seconds") if name in found]
        return {name: found[name] for name in names} if "samples_seen" in names else None

    def described(found: Mapping[str, Any]) -> dict[str, Any]:
        runs = [
            {"seed": run["seed"], "tests": scores(run), "cost": cost(run)}
            for run in found.get("runs", ())
        ]
        return {"runs": runs, "tests": scores(found), "cost": cost(found)}

    def difference(row: Mapping[str, Any]) -> dict[str, Any]:
        runs = [methods[row[name]].get("runs", ()) for name in ("method", "minus")]
        won = sum(one["mrr"] > other["mrr"] for one, other in zip(*runs, strict=True))
        return {"test": test, "won": won, "seeds": seeds, **row}

    def of_each(name: str) -> dict[str, Any]:
        return dict.fromkeys(methods, setup[name]) if name in setup else {}

    named = {name: of_each(name) for name in ("train", "batch_size", "steps")}
    tests = {name: {test: setup[name]} for name in ("test", "test_pairs") if name in setup}
    references = {}
    if content.get("reference") is not None:
        data = {"data": setup.get("reference_data")}
        references = {"reference": described(content["reference"]) | data}
    return {
        "setup": setup | named | tests,
        "references": references,
        "methods": {name: described(found) for name, found in methods.items()},
        "differences": [difference(row) for row in content.get("differences", ())],
        "versions": content.get("versions", {}),
    }
