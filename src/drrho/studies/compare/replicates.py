"""Studies in replicates: each redraws data, references and targets, and none chooses settings."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from drrho.runtime.locks import exclusive
from drrho.runtime.progress import StudyProgress
from drrho.studies.compare.collect import comparison_results, mean_cost, mean_metrics
from drrho.studies.compare.results import (
    MethodResults,
    Metrics,
    ReferenceResults,
    Results,
    SeedResults,
)
from drrho.studies.compare.runs import run_parts
from drrho.studies.compare.spec import Comparison, Part, Primary, TuningConfig
from drrho.studies.compare.statistics import method_differences, with_tests

PREPARED_FILE = "prepared"


@dataclass(frozen=True, kw_only=True)
class Replicates:
    """A comparison that is repeated with other data, other references and other targets.

    Settings are chosen once, on replicates of their own that are not reported: `tuning.runs` of
    them, whose numbers are `tuning.seed` and the next. What is reported is over the replicates:
    means, paired t intervals, and p values adjusted for the primaries.

    Attributes:
        output: folder of everything, with one of each replicate.
        comparison: number of a replicate -> its comparison, with the same methods and settings for
            every number. Its output, seeds and primaries are set here, the seed of a run being the
            number of its replicate; it draws from the number the seeds of its references, and
            names the number's data.
        replicates: numbers of the replicates; a number n means 0 to n - 1.
        primaries: pairs (a method, the method or reference that it is expected to be above), named
            before anything is run.
        prepare: draws the data of a replicate: called with its number once, before its first run;
            None where the data are there.
    """

    output: str
    comparison: Callable[[int], Comparison]
    replicates: int | tuple[int, ...] = 8
    primaries: tuple[Primary, ...] = ()
    prepare: Callable[[int], None] | None = field(default=None, repr=False)

    def __post_init__(self):
        numbers = self.numbers
        if not self.output:
            raise ValueError("replicates need output, the folder of everything")
        if not numbers or len(set(numbers)) < len(numbers) or min(numbers) < 0:
            raise ValueError(
                f"replicates must not be negative and differ from each other, got {self.replicates}"
            )
        first = self.of(numbers[0])
        if not first.tests:
            raise ValueError("the comparison of a replicate needs test, its test sets")
        if first.gap is not None:
            raise ValueError("gap has no effect on replicates; leave it out")

    @property
    def numbers(self) -> tuple[int, ...]:
        """The numbers of the replicates that are reported."""
        return (
            tuple(range(self.replicates)) if isinstance(self.replicates, int) else self.replicates
        )

    @property
    def parts(self) -> tuple[Part, ...]:
        """All runs: replicate after replicate, so that an interrupted study has whole ones."""
        return tuple(
            Part(method, number)
            for number in self.numbers
            for method in self.comparison(number).methods
        )

    def of(self, number: int) -> Comparison:
        """The comparison of one replicate, whose settings the tuning replicate chooses."""
        given = self.comparison(number)
        if given.tuning is None:
            return self._placed(given, number)
        if both := sorted({*given.tuning.seeds} & {*self.numbers}):
            raise ValueError(
                f"replicate {both[0]} would choose settings and be reported; tuning.seed and the "
                "next tuning.runs - 1 numbers must be none of the replicates"
            )
        judges = {number: self.comparison(number) for number in given.tuning.seeds}
        for judge_number, judge in judges.items():
            if list(judge.methods) != list(given.methods):
                raise ValueError(
                    f"replicate {number} must have the methods of {judge_number}, got "
                    f"{list(given.methods)} and {list(judge.methods)}"
                )
        metric = given.tuning.metric
        tuned_on = tuple(self._judging(judge, number, metric) for number, judge in judges.items())
        return replace(self._placed(given, number), tuned_on=tuned_on)

    def _placed(self, comparison: Comparison, number: int) -> Comparison:
        return replace(
            comparison,
            output=str(self.folder(number)),
            seeds=(number,),
            primaries=self.primaries,
        )

    def _judging(self, comparison: Comparison, number: int, metric: str) -> Comparison:
        # It makes tuning runs alone, with its own number as their seed; the seed that a comparison
        # must have besides is never trained.
        return replace(
            comparison,
            output=str(self.folder(number)),
            seeds=(number + 1,),
            tuning=TuningConfig(seed=number, metric=metric),
            primaries=self.primaries,
        )

    @property
    def begun(self) -> list[Comparison]:
        """The comparisons of the replicates whose data are there."""
        return [self.of(number) for number in self.numbers if self._has_begun(number)]

    def _has_begun(self, number: int) -> bool:
        return self.prepare is None or (self.folder(number) / PREPARED_FILE).is_file()

    def folder(self, number: int) -> Path:
        """The folder of a replicate."""
        return Path(self.output) / f"replicate-{number}"

    def ensure_prepared(self, number: int) -> None:
        """Draws the data of a replicate, and of those that choose settings, once."""
        tuning = self.comparison(number).tuning
        for one in (number,) if tuning is None else (*tuning.seeds, number):
            done = self.folder(one) / PREPARED_FILE
            if self.prepare is None or done.is_file():
                continue
            with exclusive(self.folder(one) / "claims" / "prepare", wait=True):
                if not done.is_file():
                    self.prepare(one)
                    done.touch()


def run_replicates(study: Replicates, parts: Sequence[Part]) -> None:
    """Trains and scores runs that are not finished; as `run_parts`, with each replicate's data."""
    progress = StudyProgress(len(parts))
    for part in parts:
        study.ensure_prepared(part.seed)
        run_parts(study.of(part.seed), [part], progress=progress)


def replicated_results(study: Replicates) -> Results:
    """Collects the results of the replicates that have begun; nothing is trained or evaluated."""
    found = {
        comparison.all_seeds[0]: comparison_results(comparison, with_intervals=False)
        for comparison in study.begun
    }
    if not found:
        raise ValueError(f"no replicate of {study.output} has begun; run `drrho compare` on it")
    first = next(iter(found.values()))
    absent = tuple(number for number in study.numbers if number not in found)
    results = Results(
        setup=replace(
            first.setup,
            seeds=study.numbers,
            primaries=study.primaries,
            replicated=True,
            interval="",
            chance=_chance([one.setup.chance for one in found.values() if one.setup.chance]),
        ),
        methods={
            name: _over_replicates([one.methods[name] for one in found.values()], absent)
            for name in first.methods
        },
        references={
            name: _reference(
                {k: one.references[name] for k, one in found.items() if name in one.references}
            )
            for name in dict.fromkeys(name for one in found.values() for name in one.references)
        },
        versions=first.versions,
    )
    return with_tests(replace(results, differences=method_differences(results)))


def _chance(found: Sequence[Mapping[str, Metrics]]) -> dict[str, Metrics]:
    """The mean of what guessing reaches on the test sets of each replicate."""
    return {test: mean_metrics([one[test] for one in found]) for test in (found or [{}])[0]}


def _over_replicates(found: Sequence[MethodResults], absent: tuple[int, ...]) -> MethodResults:
    runs = tuple(run for one in found for run in one.runs)
    costs = [run.cost for run in runs if run.cost is not None]
    whole = [one for one in found if one.runs]
    tests = {
        test: mean_metrics([run.tests[test] for run in runs])
        for test in (runs[0].tests if runs else ())
    }
    return MethodResults(
        runs=runs,
        tests=tests,
        cost=mean_cost(costs) if costs else None,
        gflop=whole[0].gflop if whole else None,
        reference_cost=(whole or found)[0].reference_cost,
        choice=found[0].choice,
        missing=tuple(seed for one in found for seed in one.missing) + absent,
        failed={seed: reason for one in found for seed, reason in one.failed.items()},
    )


def _reference(found: Mapping[int, ReferenceResults]) -> ReferenceResults:
    """The mean of a reference's runs, one of each replicate."""
    first = next(iter(found.values()))
    runs = tuple(
        SeedResults(seed=number, tests=one.tests, cost=one.cost) for number, one in found.items()
    )
    tests = {test: mean_metrics([run.tests[test] for run in runs]) for test in first.tests}
    return replace(first, tests=tests, runs=runs)
