"""What a run of a comparison costs, in samples, passes and seconds."""

import json
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from drrho.recipe.recipe import Recipe
from drrho.runtime.files import write_json

PRECOMPUTE_FILE = "precompute.json"


def training_cost(recipe: Recipe, results: Mapping[str, Any]) -> dict[str, float]:
    """Of a finished run, from its `results.json`.

    Returns:
        `samples_seen`, trained on, with a forward and a backward pass each; `forward_only`,
        forward passes of the target without a backward one (scoring a super-batch, or the first
        pass of micro-batches); `seconds` of wall time, evaluations included; `skipped`.
    """
    trained = results["samples_seen"]
    skipped = sum(results["skipped"].values())
    forward_only = 0
    selection = recipe.selection
    if selection is not None and selection.kind != "irreducible":
        forward_only += recipe.training.steps * recipe.loading.batch_size - skipped
    if recipe.micro_batch_size is not None:
        forward_only += trained
    return {
        "samples_seen": trained,
        "forward_only": forward_only,
        "seconds": results["seconds"],
        "skipped": skipped,
    }


@contextmanager
def timed(folder: Path) -> Iterator[dict[str, Any]]:
    """Adds the seconds of the block, and what it notes, to the folder's `precompute.json`.

    Parts of an interrupted precomputation add up.
    """
    found = read_precompute_cost(folder) or {"seconds": 0.0}
    started = time.perf_counter()
    noted: dict[str, Any] = {}
    try:
        yield noted
    finally:
        seconds = found["seconds"] + time.perf_counter() - started
        write_json(folder / PRECOMPUTE_FILE, found | noted | {"seconds": seconds})


def read_precompute_cost(folder: Path) -> dict[str, Any] | None:
    """`samples` that were encoded and `seconds`, model building included; None if not begun."""
    path = folder / PRECOMPUTE_FILE
    return json.loads(path.read_text()) if path.is_file() else None
