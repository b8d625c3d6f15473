"""Results of a comparison from its finished runs: means, intervals, differences and costs."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from drrho.evaluation.metrics.hierarchical import (
    first_minus_second,
    hierarchical_interval,
    mean_of_first,
    recovered_gap,
)
from drrho.recipe.document import RunResults
from drrho.recipe.recipe import Recipe
from drrho.runtime.provenance import config_differences, plain, versions
from drrho.runtime.records import from_json
from drrho.studies.compare.results import (
    Choice,
    Cost,
    Difference,
    Gflop,
    MethodResults,
    Metrics,
    PrecomputeCost,
    RecoveredGap,
    ReferenceCost,
    ReferenceResults,
    Results,
    SeedResults,
    Setup,
)
from drrho.studies.compare.runs import (
    Chosen,
    chosen_setting,
    finished,
    read_precompute_cost,
    reason_of_failure,
)
from drrho.studies.compare.scores import Scores, Tests, open_tests, read_scores
from drrho.studies.compare.spec import Comparison, Part, references_of, stored_of
from drrho.studies.compare.statistics import with_tests

INTERVAL = (
    "95 %, percentile bootstrap, 1000 draws: the test images are drawn again with replacement, "
    "and, where a method has several seeds, the seeds independently of them; the same draws for "
    "both methods of a difference"
)
NOT_SETTINGS = ("output", "seed")


class _Finished(NamedTuple):
    recipe: Recipe
    results: RunResults
    scores: Scores


Runs = Mapping[str, Mapping[int, _Finished]]  # method -> seed -> run


def comparison_results(comparison: Comparison, *, with_intervals: bool = True) -> Results:
    """Collects the results of what is finished; nothing is trained or evaluated.

    Without intervals there are no differences either, as a replicate alone has none of either.
    """
    tests = open_tests(comparison.tests)
    runs = {
        method: {
            seed: run
            for seed in comparison.all_seeds
            if (run := _finished(comparison, Part(method, seed), tests)) is not None
        }
        for method in comparison.methods
    }
    scores = {
        name: found
        for name in comparison.references
        if (found := read_scores(comparison.reference_folder(name), tests)) is not None
    }
    results = Results(
        setup=replace(_setup(comparison, tests), chance=_chance(runs, scores)),
        references={name: _reference(comparison, name, found) for name, found in scores.items()},
        methods={
            method: _method(comparison, method, runs[method], with_intervals=with_intervals)
            for method in runs
        },
        versions=versions(),
    )
    if not with_intervals:
        return results
    return with_tests(
        replace(
            results,
            differences=_differences(comparison, runs),
            from_references=_from_references(comparison, runs, scores),
            gap=_gap(comparison, runs, scores),
        )
    )


def _chance(runs: Runs, references: Mapping[str, Scores]) -> Mapping[str, Metrics]:
    """What guessing reaches on the test sets, which is the same for all models."""
    of_runs = (run.scores.chance for found in runs.values() for run in found.values())
    of_references = (scores.chance for scores in references.values())
    return next(filter(None, (*of_runs, *of_references)), {})


def _finished(comparison: Comparison, part: Part, tests: Tests) -> _Finished | None:
    choice = chosen_setting(comparison, part.method)
    if choice is None:
        return None
    recipe = comparison.run_recipe(part, setting=choice.setting)
    results, scores = finished(recipe), read_scores(Path(recipe.output), tests)
    return None if results is None or scores is None else _Finished(recipe, results, scores)


def _reference(comparison: Comparison, name: str, scores: Scores) -> ReferenceResults:
    recipe, given = comparison.reference_recipe(name), comparison.references[name]
    model = comparison.reference_model(name)
    return ReferenceResults(
        model="" if model is None else model.name,
        data=None if recipe is None else recipe.data,
        tests=scores.metrics,
        cost=_cost_of_training(recipe),
        gflop=scores.gflop,
        steered_by=references_of(given) if isinstance(given, Recipe) else (),
    )


def _cost_of_training(recipe: Recipe | None) -> Cost | None:
    """The cost of a finished run; None for an existing model, and for an unfinished run."""
    results = None if recipe is None else finished(recipe)
    return None if recipe is None or results is None else _cost(recipe, results)


def _method(
    comparison: Comparison,
    method: str,
    finished_runs: Mapping[int, _Finished],
    *,
    with_intervals: bool,
) -> MethodResults:
    choice, settings = chosen_setting(comparison, method), comparison.settings(method)
    named = settings[0 if choice is None else choice.setting]
    missing = [seed for seed in comparison.all_seeds if seed not in finished_runs]
    reasons = {
        seed: reason_of_failure(comparison.run_recipe(Part(method, seed))) for seed in missing
    }
    failed = {seed: reason for seed, reason in reasons.items() if reason is not None}
    runs = list(finished_runs.values())
    costs = [_cost(run.recipe, run.results, run.scores.gflop) for run in runs]
    tables = {name: _table(runs, name) for name in comparison.tests}
    tests = {
        name: mean_metrics([run.scores.metrics[name] for run in runs]) for name in comparison.tests
    }
    return MethodResults(
        tests=tests if runs else {},
        intervals={
            name: hierarchical_interval([table], mean_of_first, generator=_generator())
            for name, table in tables.items()
            if table is not None and with_intervals
        },
        cost=mean_cost(costs) if costs else None,
        gflop=runs[0].scores.gflop if runs else None,
        reference_cost={
            name: _reference_cost(comparison, named, name) for name in references_of(named)
        },
        choice=None if comparison.tuning is None else _described(choice, settings),
        runs=tuple(
            SeedResults(
                seed=seed, tests=run.scores.metrics, cost=cost, versions=run.results.versions
            )
            for (seed, run), cost in zip(finished_runs.items(), costs, strict=True)
        ),
        missing=tuple(seed for seed in missing if seed not in failed),
        failed=failed,
    )


def _cost(recipe: Recipe, results: RunResults, gflop: Gflop | None = None) -> Cost:
    trained, skipped = results.samples_seen, sum(results.skipped.values())
    forward_only, selection = 0, recipe.selection
    if selection is not None and selection.kind != "irreducible":
        forward_only += results.recipe.training.num_steps * recipe.loading.batch_size - skipped
    if recipe.micro_batch_size is not None:
        forward_only += trained
    return Cost(
        samples_seen=trained,
        forward_only=forward_only,
        seconds=results.seconds,
        skipped=skipped,
        training_gflop=None if gflop is None else (3 * trained + forward_only) * gflop.total,
        live_pairs=None if results.live is None else results.live.pairs,
        live_seconds=None if results.live is None else results.live.seconds,
    )


def mean_cost(costs: Sequence[Cost]) -> Cost:
    """The mean of every cost that is known of the first run."""
    rows: list[dict[str, Any]] = [asdict(cost) for cost in costs]
    means = {
        name: None if first is None else sum(row[name] for row in rows) / len(rows)
        for name, first in rows[0].items()
    }
    return from_json(Cost, means, where="mean cost")


def _reference_cost(comparison: Comparison, recipe: Recipe, name: str) -> ReferenceCost:
    folders = [comparison.embeddings(one) for one in stored_of(recipe) if one.reference == name]
    known = [cost for cost in map(read_precompute_cost, folders) if cost is not None]
    precompute = PrecomputeCost(
        samples=sum(cost.samples or 0 for cost in known),
        seconds=sum(cost.seconds for cost in known),
    )
    return ReferenceCost(
        precompute=precompute if known else None,
        training=_cost_of_training(comparison.reference_recipe(name)),
    )


def _described(choice: Chosen | None, settings: Sequence[Recipe]) -> Choice:
    plains = [plain(asdict(recipe)) for recipe in settings]
    return Choice(
        settings=tuple(
            tuple(config_differences(plains[0], other, may_change=NOT_SETTINGS)) for other in plains
        ),
        chosen=None if choice is None else choice.setting,
        scores=None if choice is None else choice.scores,
    )


def _differences(comparison: Comparison, runs: Runs) -> tuple[Difference, ...]:
    names = list(comparison.methods)
    return tuple(
        row
        for test in comparison.tests
        for i, method in enumerate(names)
        for other in names[:i]
        if (row := _difference(test, method, other, runs)) is not None
    )


def _difference(test: str, method: str, other: str, runs: Runs) -> Difference | None:
    """Every image is a query to both, from the same start: its difficulty and the seed cancel."""
    seeds, tables = _paired(test, method, other, runs)
    return None if tables is None else _of_tables(test, (method, other), tables, seeds)


def _of_tables(
    test: str,
    names: tuple[str, str],
    tables: Sequence[Float[Tensor, "_seeds images"]],
    seeds: tuple[int, ...],
) -> Difference:
    by_seed = (tables[0] - tables[1]).mean(dim=1)
    return Difference(
        test=test,
        method=names[0],
        minus=names[1],
        mrr=float(by_seed.mean()),
        interval=hierarchical_interval(tables, first_minus_second, generator=_generator()),
        won=int((by_seed > 0).sum()),
        seeds=seeds,
    )


def _from_references(
    comparison: Comparison, runs: Runs, references: Mapping[str, Scores]
) -> tuple[Difference, ...]:
    """Each method less each reference that it reads, whose one run serves all seeds."""
    rows = []
    for test in comparison.tests:
        for method, found in runs.items():
            named = {name for run in comparison.settings(method) for name in references_of(run)}
            named |= {other for one, other in comparison.primaries if one == method}
            table = _table(list(found.values()), test)
            for name in (name for name in references if name in named):
                ranks = references[name].reciprocal_ranks.get(test)
                if table is not None and ranks is not None:
                    tables = [table, ranks.double()[None]]
                    rows.append(_of_tables(test, (method, name), tables, tuple(found)))
    return tuple(rows)


def _gap(
    comparison: Comparison, runs: Runs, references: Mapping[str, Scores]
) -> tuple[RecoveredGap, ...]:
    """The share of the gap that each method recovers, for each test set."""
    gap = comparison.gap
    if gap is None or gap.weak not in references:
        return ()
    rows = []
    for test in comparison.tests:
        weak = references[gap.weak].reciprocal_ranks.get(test)
        for method in comparison.methods:
            seeds, pair = _paired(test, method, gap.ceiling, runs)
            if method == gap.ceiling or weak is None or pair is None:
                continue
            tables = [pair[0], weak.double()[None], pair[1]]
            value = float(recovered_gap(torch.stack([table.mean() for table in tables])[None]))
            ends = hierarchical_interval(tables, recovered_gap, generator=_generator())
            rows.append(
                RecoveredGap(
                    test=test,
                    method=method,
                    recovered=None if math.isnan(value) else value,
                    interval=ends if all(map(math.isfinite, (value, *ends))) else None,
                    seeds=seeds,
                )
            )
    return tuple(rows)


def _paired(
    test: str, method: str, other: str, runs: Runs
) -> tuple[tuple[int, ...], list[Float[Tensor, "seeds images"]] | None]:
    """The common seeds of two methods and a table of each; None where there is nothing."""
    seeds = tuple(seed for seed in runs[method] if seed in runs[other])
    tables = [_table([runs[name][seed] for seed in seeds], test) for name in (method, other)]
    found = [table for table in tables if table is not None]
    return seeds, found if len(found) == 2 else None


def _table(runs: Sequence[_Finished], test: str) -> Float[Tensor, "seeds images"] | None:
    """Reciprocal ranks; None where the set has no captions or nothing is finished."""
    ranks = [run.scores.reciprocal_ranks.get(test) for run in runs]
    found = [values.double() for values in ranks if values is not None]
    return torch.stack(found) if found and len(found) == len(ranks) else None


def _setup(comparison: Comparison, tests: Tests) -> Setup:
    first = {method: comparison.settings(method)[0] for method in comparison.methods}
    return Setup(
        train={method: recipe.data for method, recipe in first.items()},
        test=dict(comparison.tests),
        test_pairs={name: test.manifest.num_samples for name, test in tests.items()},
        batch_size={m: recipe.trained_batch_size for m, recipe in first.items()},
        steps={m: recipe.training.steps for m, recipe in first.items()},
        seeds=comparison.all_seeds,
        tuning=comparison.tuning,
        gap=comparison.gap,
        primaries=comparison.primaries,
        threads=comparison.threads or torch.get_num_threads(),
        interval=INTERVAL,
    )


def mean_metrics(rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The mean of every metric of the first run."""
    return {name: sum(row[name] for row in rows) / len(rows) for row in rows[:1] for name in row}


def _generator() -> torch.Generator:
    # The same resamples for every row of a table, so that rows can be compared.
    return torch.Generator().manual_seed(0)
