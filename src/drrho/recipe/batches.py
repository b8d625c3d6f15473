"""Batches with other models' embeddings of the same samples, looked up by sample id."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from drrho.data.batch import Batch
from drrho.data.manifest import Manifest
from drrho.recipe.recipe import MissingReference, Recipe
from drrho.reference.reader import Reference, open_reference
from drrho.reference.store import ReferenceEmbeddings


@dataclass(frozen=True, kw_only=True)
class SteeredBatch:
    """A batch with other models' embeddings of its samples, row for row."""

    pairs: Batch
    reference: ReferenceEmbeddings | None
    teachers: tuple[ReferenceEmbeddings, ...] = ()

    @property
    def sample_ids(self) -> torch.Tensor:
        return self.pairs.sample_ids

    @property
    def skipped(self) -> tuple[tuple[int, str], ...]:
        return self.pairs.skipped

    def to(self, device: torch.device) -> "SteeredBatch":
        reference = None if self.reference is None else self.reference.to(device)
        teachers = tuple(teacher.to(device) for teacher in self.teachers)
        return SteeredBatch(pairs=self.pairs.to(device), reference=reference, teachers=teachers)

    def take(self, rows: torch.Tensor) -> "SteeredBatch":
        """Select rows, without moving them to another device."""
        return SteeredBatch(
            pairs=self.pairs.take(rows),
            reference=None if self.reference is None else self.reference.keep(rows),
            teachers=tuple(teacher.keep(rows) for teacher in self.teachers),
        )


class Stores(NamedTuple):
    """Stored embeddings of the models that steer."""

    reference: Reference | None
    teachers: tuple[Reference, ...]
    missing_reference: MissingReference = "leave_out"

    @classmethod
    def open(cls, recipe: Recipe, manifest: Manifest) -> "Stores":
        """Open the recipe's stores; ValueError if one does not belong to the data."""
        views = recipe.loading.views
        reference = None
        if recipe.references:
            weights = recipe.reference_weights
            reference = open_reference(recipe.references, manifest, weights=weights, views=views)
        teachers = [open_reference(folder, manifest, views=views) for folder in recipe.teachers]
        return cls(reference, tuple(teachers), recipe.missing_reference)

    def named(self, recipe: Recipe) -> list[tuple[str, Reference]]:
        """List what steers and what teaches with the folders that the recipe names."""
        steering = [] if self.reference is None else [self.reference]
        names = [" and ".join(recipe.references)] * len(steering) + list(recipe.teachers)
        return list(zip(names, [*steering, *self.teachers], strict=True))

    @property
    def identities(self) -> dict[str, Any]:
        """Identify the contents of the stores, wherever they are."""
        reference = None if self.reference is None else self.reference.identity
        return {"reference": reference, "teachers": [t.identity for t in self.teachers]}


def steered(
    batches: Iterator[Batch], stores: Stores, *, whole: bool = True
) -> Iterator[SteeredBatch]:
    """Attach the other models' embeddings by sample id.

    A pair that one of them could not encode leaves the batch, counted among the skipped. With
    missing_reference = "plain" a pair without reference embeddings stays, with embeddings of zero:
    as an anchor it has R_ij - R_ii = 0, its plain loss; as a negative it is unrelated to all.

    Args:
        whole: whether these are whole batches and not the shares of one of several processes,
            which may be empty.

    Raises:
        ValueError: nothing is left of a whole batch.
    """
    for batch in batches:
        yield _attached(batch, stores, whole=whole)


def _attached(pairs: Batch, stores: Stores, *, whole: bool) -> SteeredBatch:
    found = [
        store.gather(pairs.sample_ids, pairs.views)
        for store in (stores.reference, *stores.teachers)
        if store is not None
    ]
    present = torch.ones(len(pairs.sample_ids), dtype=torch.bool)
    stays = stores.reference is not None and stores.missing_reference == "plain"
    for embeddings in found[1:] if stays else found:
        present &= embeddings.present
    if not present.all():
        absent = pairs.sample_ids[~present].tolist()
        if whole and not present.any():
            raise ValueError(
                f"the reference has embeddings of none of {len(pairs.sample_ids)} pairs of a "
                f"batch, samples {absent[:5]} ...; see what `drrho reference precompute` reported "
                "as absent, or train on such pairs without it: missing_reference='plain'"
            )
        skipped = [(sample_id, "no reference embedding") for sample_id in absent]
        pairs = pairs.keep(present, skipped=skipped)
        found = [embeddings.keep(present) for embeddings in found]
    if torch.cuda.is_available():
        found = [embeddings.pin_memory() for embeddings in found]
    reference = None if stores.reference is None else found.pop(0)
    return SteeredBatch(pairs=pairs, reference=reference, teachers=tuple(found))
