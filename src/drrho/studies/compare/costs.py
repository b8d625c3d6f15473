"""The cost of a comparison's runs in samples, passes and seconds."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from drrho.recipe.document import RunResults
from drrho.recipe.recipe import Recipe
from drrho.runtime.files import write_json
from drrho.runtime.records import from_json, read_json_object
from drrho.studies.compare.results import Cost, PrecomputeCost

PRECOMPUTE_FILE = "precompute.json"


def training_cost(recipe: Recipe, results: RunResults) -> Cost:
    """Computes the cost of a finished run from its `results.json`."""
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
    )


def mean_cost(costs: Sequence[Cost]) -> Cost:
    """The mean of several runs of one method."""
    rows: list[dict[str, Any]] = [asdict(cost) for cost in costs]
    means = {
        name: None if first is None else sum(row[name] for row in rows) / len(rows)
        for name, first in rows[0].items()
    }
    return from_json(Cost, means, where="mean cost")


@contextmanager
def timed(folder: Path) -> Iterator[dict[str, Any]]:
    """Adds the seconds of the block, and what it notes, to the folder's `precompute.json`.

    Parts of an interrupted precomputation add up.
    """
    found = read_precompute_cost(folder) or PrecomputeCost()
    started = time.perf_counter()
    noted: dict[str, Any] = {}
    try:
        yield noted
    finally:
        seconds = found.seconds + time.perf_counter() - started
        write_json(folder / PRECOMPUTE_FILE, noted | {"seconds": seconds})


def read_precompute_cost(folder: Path) -> PrecomputeCost | None:
    """The cost that `timed` noted, model building included; None if it has not begun."""
    path = folder / PRECOMPUTE_FILE
    if not path.is_file():
        return None
    return from_json(PrecomputeCost, read_json_object(path), where=str(path))
