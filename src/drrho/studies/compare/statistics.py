"""Paired tests of differences over the seeds or replicates of a comparison, with Holm's correction.

They need no more than the scores of the runs, so that tables of finished comparisons have them too.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from drrho.studies.compare.results import (
    Difference,
    Interval,
    MethodResults,
    PairedTest,
    ReferenceResults,
    Results,
    SeedResults,
)

# With more methods than this, only differences from the first method are shown.
MOST_IN_PAIRS = 5
Scores = Mapping[int, float]  # seed -> mean reciprocal rank


def mean_interval(values: Sequence[float], *, level: float = 0.95) -> Interval:
    """Student's t interval of a mean: `m -+ t_(n-1) s / sqrt(n)`; ValueError below two values."""
    from scipy.stats import t as student  # noqa: PLC0415  slow to import; with drrho[report]

    if len(values) < 2:
        raise ValueError(f"an interval needs two values or more, got {len(values)}")
    mean, error = _mean_and_error(values)
    half = float(student.ppf((1 + level) / 2, len(values) - 1)) * error
    return mean - half, mean + half


def paired_test(differences: Sequence[float]) -> PairedTest | None:
    """The t-test of paired differences against zero, two-sided; None with fewer than two."""
    from scipy.stats import t as student  # noqa: PLC0415

    if len(differences) < 2:
        return None
    mean, error = _mean_and_error(differences)
    if error == 0:
        p = 1.0 if mean == 0 else 0.0
    else:
        p = float(2 * student.sf(abs(mean / error), len(differences) - 1))
    return PairedTest(interval=mean_interval(differences), p=p)


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjusts the p values of a family so that all are right together, by Holm's step-down rule.

    The k-th smallest of m becomes `max_(j <= k) min(1, (m - j + 1) p_j)`.

    Source: S. Holm, "A simple sequentially rejective multiple test procedure", 1979.
    """
    order = sorted(range(len(p_values)), key=lambda place: p_values[place])
    adjusted, largest = [0.0] * len(p_values), 0.0
    for rank, place in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[place]))
        adjusted[place] = largest
    return adjusted


def with_tests(results: Results) -> Results:
    """The results with a paired test of every difference, and Holm's p over the family.

    The family is the primaries of the comparison, or, where none are named, all differences that
    the table shows. Differences of methods from their references are added where they are missing.
    """
    from_references = results.from_references or _from_references(results)
    results = replace(
        results,
        differences=tuple(_with_test(results, row) for row in results.differences),
        from_references=tuple(
            _with_test(results, row, from_reference=True) for row in from_references
        ),
    )
    family = _family(results)
    named = [row for row in family if row.paired is not None]
    p_values = [row.paired.p for row in named if row.paired is not None]
    # Primaries that are not finished yet count as if nothing were found.
    absent = len(results.setup.primaries) * len(results.setup.test) - len(named)
    adjusted = holm(p_values + [1.0] * absent)[: len(named)]
    found = {_key(row): p for row, p in zip(named, adjusted, strict=True)}

    def corrected(rows: Iterable[Difference]) -> tuple[Difference, ...]:
        return tuple(
            row
            if row.paired is None
            else replace(row, paired=replace(row.paired, holm=found.get(_key(row))))
            for row in rows
        )

    return replace(
        results,
        differences=corrected(results.differences),
        from_references=corrected(results.from_references),
    )


def shown_differences(results: Results, test: str) -> list[Difference]:
    """The differences of methods on a test set to show: the primaries among them, all pairs, or
    only those from the first finished method.
    """
    rows = [row for row in results.differences if row.test == test]
    finished = [name for name, method in results.methods.items() if method.runs]
    if len(finished) <= MOST_IN_PAIRS:
        return rows
    primaries = {frozenset(pair) for pair in results.setup.primaries}
    return [
        row
        for row in rows
        if row.minus == finished[0] or frozenset((row.method, row.minus)) in primaries
    ]


def mrr_interval(results: Results, method: MethodResults, test: str) -> Interval | None:
    """The interval of a method's MRR that tables and plots show: over seeds where it has several,
    over the test images where there is one seed.
    """
    if len(results.setup.seeds) <= 1:
        return method.intervals.get(test)
    scores = list(_scores(method.runs, test).values())
    return mean_interval(scores) if len(scores) > 1 else None


def difference(test: str, names: tuple[str, str], one: Scores, other: Scores) -> Difference | None:
    """The paired difference of two named models over their common seeds; None without any."""
    seeds = tuple(seed for seed in one if seed in other)
    if not seeds:
        return None
    values = [one[seed] - other[seed] for seed in seeds]
    return Difference(
        test=test,
        method=names[0],
        minus=names[1],
        mrr=sum(values) / len(values),
        interval=None,
        won=sum(value > 0 for value in values),
        seeds=seeds,
    )


def method_differences(results: Results) -> tuple[Difference, ...]:
    """The differences of each method from each one before it, from the runs' scores alone."""
    names = list(results.methods)
    return tuple(
        row
        for test in results.setup.test
        for place, name in enumerate(names)
        for other in names[:place]
        if (
            row := difference(
                test,
                (name, other),
                *(_scores(results.methods[it].runs, test) for it in (name, other)),
            )
        )
        is not None
    )


def reference_scores(reference: ReferenceResults, test: str, seeds: Sequence[int]) -> Scores:
    """MRR of a reference by seed: of the replicate's own reference, or of the one for all seeds."""
    if reference.runs:
        return _scores(reference.runs, test)
    mrr = reference.tests.get(test, {}).get("mrr")
    return {} if mrr is None else dict.fromkeys(seeds, mrr)


def _from_references(results: Results) -> tuple[Difference, ...]:
    rows = []
    for test in results.setup.test:
        for name, method in results.methods.items():
            own = _scores(method.runs, test)
            wanted = [other for one, other in results.setup.primaries if one == name]
            for other in dict.fromkeys([*method.reference_cost, *wanted]):
                if other not in results.references:
                    continue
                scores = reference_scores(results.references[other], test, results.setup.seeds)
                rows.append(difference(test, (name, other), own, scores))
    return tuple(row for row in rows if row is not None)


def _family(results: Results) -> list[Difference]:
    rows = [row for test in results.setup.test for row in shown_differences(results, test)]
    rows += results.from_references
    if not results.setup.primaries:
        return rows
    primaries = {frozenset(pair) for pair in results.setup.primaries}
    return [row for row in rows if frozenset((row.method, row.minus)) in primaries]


def _with_test(results: Results, row: Difference, *, from_reference: bool = False) -> Difference:
    """Adds the test over the seeds; none where a file has a difference without its runs."""
    own, other = (
        _scores(results.methods[name].runs, row.test) if name in results.methods else {}
        for name in (row.method, row.minus)
    )
    if from_reference:
        other = reference_scores(results.references[row.minus], row.test, row.seeds)
    seeds = [seed for seed in row.seeds if seed in own and seed in other]
    return replace(row, paired=paired_test([own[seed] - other[seed] for seed in seeds]))


def _scores(runs: Iterable[SeedResults], test: str) -> dict[int, float]:
    found = {run.seed: run.tests.get(test, {}).get("mrr") for run in runs}
    return {seed: mrr for seed, mrr in found.items() if mrr is not None}


def _key(row: Difference) -> tuple[str, str, str]:
    return row.test, row.method, row.minus


def _mean_and_error(values: Sequence[float]) -> tuple[float, float]:
    mean = sum(values) / len(values)
    variance = sum((value - mean) ** 2 for value in values) / (len(values) - 1)
    return mean, math.sqrt(variance / len(values))
