"""Finished runs of a comparison -> its results: means, intervals, paired differences and costs."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
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
from drrho.recipe.recipe import Recipe
from drrho.runtime.provenance import config_differences, plain, versions
from drrho.studies.compare.costs import read_precompute_cost, training_cost
from drrho.studies.compare.runs import chosen_setting, failure, finished
from drrho.studies.compare.scores import Scores, TestSets, read_scores
from drrho.studies.compare.spec import Comparison, Part, Stored, references_of, stored_of

INTERVAL = (
    "95 %, percentile bootstrap, 1000 draws: the test images are drawn again with replacement, "
    "and, where a method has several seeds, the seeds independently of them; the same draws for "
    "both methods of a difference"
)
NOT_SETTINGS = ("output", "seed")


class _Finished(NamedTuple):
    recipe: Recipe
    results: Mapping[str, Any]
    scores: Scores


def comparison_results(comparison: Comparison) -> dict[str, Any]:
    """The contents of `results.json`, of what is finished; nothing is trained or evaluated.

    Returns:
        `setup`; `references` (name -> `tests`, `cost`); `methods` (name -> `tests`, with the means
        of each set over the seeds and `mrr_interval`, `cost`, `setting`, `runs` one by one,
        `missing` seeds and `failed` ones with their reason); `differences` (paired, of each method
        from each one before it, on their common seeds); `gap`; `versions`.
    """
    tests = TestSets(comparison.tests)
    runs = {
        method: {
            seed: run
            for seed in comparison.seeds
            if (run := _finished(comparison, Part(method, seed), tests)) is not None
        }
        for method in comparison.methods
    }
    references = {
        name: found
        for name in comparison.references
        if (found := _reference(comparison, name, tests)) is not None
    }
    return {
        "setup": _setup(comparison, tests),
        "references": {name: found for name, (found, _) in references.items()},
        "methods": {method: _method(comparison, method, runs[method]) for method in runs},
        "differences": _differences(comparison, runs),
        "gap": _gap(comparison, runs, {name: scores for name, (_, scores) in references.items()}),
        "versions": versions(),
    }


def _finished(comparison: Comparison, part: Part, tests: TestSets) -> _Finished | None:
    choice = chosen_setting(comparison, part.method)
    if choice is None:
        return None
    recipe = comparison.recipe(part, setting=choice["setting"])
    results, scores = finished(recipe), read_scores(Path(recipe.output), tests)
    return None if results is None or scores is None else _Finished(recipe, results, scores)


def _reference(
    comparison: Comparison, name: str, tests: TestSets
) -> tuple[dict[str, Any], Scores] | None:
    scores = read_scores(Path(comparison.output) / "references" / name, tests)
    if scores is None:
        return None
    recipe = comparison.reference_recipe(name)
    results = None if recipe is None else finished(recipe)
    cost = None if recipe is None or results is None else training_cost(recipe, results)
    found = {
        "model": comparison.reference_model(name).name,
        "data": None if recipe is None else recipe.data,
        "tests": scores.metrics,
        "cost": cost,  # None of an existing model: it is not known
        "gflop": scores.gflop,
        "steered_by": [] if recipe is None else list(_names(comparison.references[name])),
    }
    return found, scores


def _names(recipe: Any) -> tuple[str, ...]:
    return references_of(recipe) if isinstance(recipe, Recipe) else ()


def _method(comparison: Comparison, method: str, runs: Mapping[int, _Finished]) -> dict[str, Any]:
    choice = chosen_setting(comparison, method)
    settings = comparison.settings(method)
    named = settings[0 if choice is None else choice["setting"]]
    failed = {
        str(seed): reason
        for seed in comparison.seeds
        if seed not in runs
        and (reason := failure(Path(comparison.recipe(Part(method, seed)).output))) is not None
    }
    return {
        "tests": {name: _of_test(name, list(runs.values())) for name in comparison.tests}
        if runs
        else {},
        "cost": _mean([_cost(run) for run in runs.values()]),
        "gflop": next((run.scores.gflop for run in runs.values()), None),
        "reference_cost": {
            name: _reference_cost(comparison, [s for s in stored_of(named) if s.reference == name])
            for name in references_of(named)
        },
        "choice": None if comparison.tuning is None else _described(choice, settings),
        "runs": [
            {
                "seed": seed,
                "tests": run.scores.metrics,
                "cost": _cost(run),
                "versions": run.results["versions"],
            }
            for seed, run in runs.items()
        ],
        "missing": [
            seed for seed in comparison.seeds if seed not in runs and str(seed) not in failed
        ],
        "failed": failed,
    }


def _of_test(name: str, runs: Sequence[_Finished]) -> dict[str, Any]:
    metrics: dict[str, Any] = _mean([run.scores.metrics[name] for run in runs])
    table = _table(runs, name)
    if table is not None:
        interval = hierarchical_interval([table], mean_of_first, generator=_generator())
        metrics["mrr_interval"] = list(interval)
    return metrics


def _cost(run: _Finished) -> dict[str, float]:
    cost = training_cost(run.recipe, run.results)
    if run.scores.gflop is not None:
        passes = 3 * cost["samples_seen"] + cost["forward_only"]
        cost["training_gflop"] = passes * sum(run.scores.gflop.values())
    return cost


def _reference_cost(comparison: Comparison, stored: Sequence[Stored]) -> dict[str, Any]:
    """Beyond the method's own: precomputed passes, and the training of the reference."""
    recipe = comparison.reference_recipe(stored[0].reference)
    results = None if recipe is None else finished(recipe)
    trained = None if recipe is None or results is None else training_cost(recipe, results)
    costs = [read_precompute_cost(comparison.embeddings(one)) for one in stored]
    known = [{"samples": 0} | cost for cost in costs if cost is not None]
    precomputed = {name: sum(cost[name] for cost in known) for name in ("samples", "seconds")}
    return {"precompute": precomputed if known else None, "training": trained}


def _described(choice: dict[str, Any] | None, settings: Sequence[Recipe]) -> dict[str, Any]:
    """The settings by what differs from the first, and which was chosen."""
    plains = [plain(asdict(recipe)) for recipe in settings]
    return {
        "settings": [
            config_differences(plains[0], other, may_change=NOT_SETTINGS) for other in plains
        ],
        "chosen": None if choice is None else choice["setting"],
        "scores": None if choice is None else choice["scores"],
    }


def _differences(
    comparison: Comparison, runs: Mapping[str, Mapping[int, _Finished]]
) -> list[dict[str, Any]]:
    names = list(comparison.methods)
    return [
        row
        for test in comparison.tests
        for i, method in enumerate(names)
        for other in names[:i]
        if (row := _difference(test, method, other, runs)) is not None
    ]


def _difference(
    test: str, method: str, other: str, runs: Mapping[str, Mapping[int, _Finished]]
) -> dict[str, Any] | None:
    """Every image is a query to both, from the same start: its difficulty and the seed cancel."""
    seeds = [seed for seed in runs[method] if seed in runs[other]]
    tables = [_table([runs[name][seed] for seed in seeds], test) for name in (method, other)]
    if not seeds or tables[0] is None or tables[1] is None:
        return None
    pair = [tables[0], tables[1]]
    by_seed = (pair[0] - pair[1]).mean(dim=1)
    low, high = hierarchical_interval(pair, first_minus_second, generator=_generator())
    return {
        "test": test,
        "method": method,
        "minus": other,
        "mrr": float(by_seed.mean()),
        "interval": [low, high],
        "won": int((by_seed > 0).sum()),
        "seeds": seeds,
    }


def _gap(
    comparison: Comparison,
    runs: Mapping[str, Mapping[int, _Finished]],
    references: Mapping[str, Scores],
) -> list[dict[str, Any]]:
    """The share of the gap that each method recovers, for each test set."""
    gap = comparison.gap
    if gap is None or gap.weak not in references:
        return []
    rows = []
    for test in comparison.tests:
        weak = references[gap.weak].reciprocal_ranks.get(test)
        for method in comparison.methods:
            seeds = [seed for seed in runs[method] if seed in runs[gap.ceiling]]
            both = [_table([runs[n][s] for s in seeds], test) for n in (method, gap.ceiling)]
            if method == gap.ceiling or weak is None or both[0] is None or both[1] is None:
                continue
            tables = [both[0], weak.double()[None], both[1]]
            means = torch.stack([table.mean() for table in tables])[None]
            value = float(recovered_gap(means))
            low, high = hierarchical_interval(tables, recovered_gap, generator=_generator())
            exists = value == value and abs(low) != float("inf") and abs(high) != float("inf")
            rows.append(
                {
                    "test": test,
                    "method": method,
                    "recovered": value if value == value else None,
                    "interval": [low, high] if exists else None,
                    "seeds": seeds,
                }
            )
    return rows


def _table(runs: Sequence[_Finished], test: str) -> Float[Tensor, "seeds images"] | None:
    """Reciprocal ranks; None where the set has no captions or nothing is finished."""
    ranks = [run.scores.reciprocal_ranks.get(test) for run in runs]
    found = [values.double() for values in ranks if values is not None]
    return torch.stack(found) if found and len(found) == len(ranks) else None


def _setup(comparison: Comparison, tests: TestSets) -> dict[str, Any]:
    first = {method: comparison.settings(method)[0] for method in comparison.methods}
    return {
        "train": {method: recipe.data for method, recipe in first.items()},
        "test": dict(comparison.tests),
        "test_pairs": {name: tests.open(name).manifest.num_samples for name in comparison.tests},
        "batch_size": {m: recipe.trained_batch_size for m, recipe in first.items()},
        "steps": {m: recipe.training.steps for m, recipe in first.items()},
        "seeds": list(comparison.seeds),
        "tuning": None if comparison.tuning is None else asdict(comparison.tuning),
        "gap": None if comparison.gap is None else asdict(comparison.gap),
        "threads": torch.get_num_threads(),
        "interval": INTERVAL,
    }


def _mean(rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return {name: sum(row[name] for row in rows) / len(rows) for name in rows[0]} if rows else {}


def _generator() -> torch.Generator:
    # The same resamples for every row of a table, so that rows can be compared.
    return torch.Generator().manual_seed(0)
