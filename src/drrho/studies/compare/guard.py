"""The guard of the test sets: nothing that is scored on was trained or validated on.

Contents are compared and not names, so that a folder, a brace pattern, `./` and a manifest of the
same shards are the same data, and copies of a shard too.
"""

from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import torch

from drrho.data.indexing import open_manifest
from drrho.data.manifest import Manifest
from drrho.evaluation.sets import open_evaluation_set
from drrho.models.build import Model
from drrho.recipe.document import read_run_results
from drrho.recipe.recipe import Recipe
from drrho.studies.compare.scores import Tests
from drrho.studies.compare.spec import Comparison, references_of


class _Seen(NamedTuple):
    """Data that a model sees before the test, and in which words."""

    who: str
    how: str
    source: str


def require_unseen(comparison: Comparison, methods: Iterable[str], tests: Tests) -> None:
    """Compares the samples of the test sets with all that some methods and their references see.

    Data that cannot be read are left to the run that needs them, which says why.

    Raises:
        ValueError: a usable sample of a test set is one that a method or a reference is trained or
            validated on.
    """
    opened: dict[tuple[str, bool], Manifest | None] = {}  # methods have most data in common
    for seen in dict.fromkeys(_seen(comparison, methods)):
        key = seen.source, seen.how == "validated"
        if key not in opened:
            opened[key] = _opened(*key)
        manifest = opened[key]
        if manifest is None:
            continue
        for name, test in tests.items():
            if shared := shared_samples(test.manifest, manifest):
                raise ValueError(
                    f"the test set {name!r}, {comparison.tests[name]}, shares {shared:,} samples "
                    f"with what {seen.who} is {seen.how} on, {seen.source}; take another"
                )


def shared_samples(one: Manifest, other: Manifest) -> int:
    """Counts the usable samples of one data set whose shard, by its contents, is in the other."""
    rows: dict[str, torch.Tensor] = {}
    for place, shard in enumerate(other.shards):
        found = rows.setdefault(
            shard.content_sha256, torch.zeros(shard.num_samples, dtype=torch.bool)
        )
        found[_usable_rows(other, place)] = True
    return sum(
        int(rows[shard.content_sha256][_usable_rows(one, place)].sum())
        for place, shard in enumerate(one.shards)
        if shard.content_sha256 in rows and shard.num_samples > 0
    )


def _usable_rows(manifest: Manifest, shard: int) -> torch.Tensor:
    return manifest.usable_ids_in(shard, with_captions=False) - manifest.offsets[shard]


def _opened(source: str, is_evaluated: bool) -> Manifest | None:
    """Opens data as training or evaluation does; None where that fails."""
    with suppress(OSError, ValueError):
        return open_evaluation_set(source).manifest if is_evaluated else open_manifest(source)
    return None


def _seen(comparison: Comparison, methods: Iterable[str]) -> Iterator[_Seen]:
    for method in methods:
        for recipe in comparison.settings(method):
            yield from _seen_by(recipe, f"method {method!r}")
            for name in references_of(recipe):
                yield from _seen_by_reference(comparison, name)


def _seen_by_reference(comparison: Comparison, name: str) -> Iterator[_Seen]:
    """Lists what a reference has seen; of a run that is finished, what it was only watched on is
    left out, as nothing was chosen by it.
    """
    given = comparison.references[name]
    if isinstance(given, Recipe):
        for other in references_of(given):
            yield from _seen_by_reference(comparison, other)
        yield from _seen_by(given, f"the reference {name!r}")
    elif isinstance(given, Model) and given.name.startswith("run:"):
        run = None
        with suppress(OSError, ValueError):  # it is the folder of a model, or damaged
            run = read_run_results(Path(given.name.removeprefix("run:")).expanduser())
        if run is not None:
            seen = tuple(_seen_by(run.recipe, f"the reference {name!r}"))
            yield from seen if run.recipe.training.keep_best is not None else seen[:1]


def _seen_by(recipe: Recipe, who: str) -> Iterator[_Seen]:
    yield _Seen(who, "trained", recipe.data)
    if recipe.evaluation.data is not None:
        yield _Seen(who, "validated", recipe.evaluation.data)
