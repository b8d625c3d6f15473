"""Batches with other models' embeddings of the same samples: looked up by sample id, or computed
by live models.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch

from drrho.data.batch import Batch
from drrho.data.loading import Loading, Position, Transform
from drrho.data.manifest import Manifest
from drrho.recipe.document import LiveCost
from drrho.recipe.recipe import MissingReference, Recipe
from drrho.reference.judgement import Judgement, judge_reference
from drrho.reference.live import LiveInputs, LiveModel, is_live
from drrho.reference.reader import Reference, open_reference
from drrho.reference.store import ReferenceEmbeddings
from drrho.training.log import read_metrics
from drrho.training.state import TrainingState

# Names in the log: seconds of the live models in a step, their share of the time, and the pairs of
# this process that they embedded in the logged step.
LIVE_SECONDS, LIVE_SHARE, LIVE_PAIRS = "time/live_models", "time/live_models_share", "live_pairs"
REFERENCE = 0  # the reference's place among what steers and teaches; a teacher's is 1, 2, ...


@dataclass(frozen=True, kw_only=True)
class SteeredBatch:
    """A batch with other models' embeddings of its samples, row for row.

    Attributes:
        reference: the reference's embeddings; None without one, and where `live` is yet to give
            them.
        teachers: each teacher's embeddings; None where `live` is yet to give them.
        live: what the live models are to embed (`embedded`).
    """

    pairs: Batch
    reference: ReferenceEmbeddings | None
    teachers: tuple[ReferenceEmbeddings | None, ...] = ()
    live: tuple[LiveInputs, ...] = ()

    @property
    def sample_ids(self) -> torch.Tensor:
        return self.pairs.sample_ids

    @property
    def skipped(self) -> tuple[tuple[int, str], ...]:
        return self.pairs.skipped

    def to(self, device: torch.device) -> "SteeredBatch":
        return SteeredBatch(
            pairs=self.pairs.to(device),
            reference=None if self.reference is None else self.reference.to(device),
            teachers=tuple(one and one.to(device) for one in self.teachers),
            live=tuple(inputs.to(device) for inputs in self.live),
        )

    def take(self, rows: torch.Tensor) -> "SteeredBatch":
        """Select rows, without moving them to another device."""
        return SteeredBatch(
            pairs=self.pairs.take(rows),
            reference=None if self.reference is None else self.reference.keep(rows),
            teachers=tuple(one and one.keep(rows) for one in self.teachers),
            live=tuple(inputs.keep(rows) for inputs in self.live),
        )

    def embedded(self, *, reference_alone: bool = False) -> "SteeredBatch":
        """Let the live models embed, and fill in what they give.

        Args:
            reference_alone: whether those that only teach are left for later.
        """
        found = [self.reference, *self.teachers]
        later = []
        for inputs in self.live:
            if reference_alone and REFERENCE not in inputs.places:
                later.append(inputs)
                continue
            embeddings = inputs.embed()
            for place in inputs.places:
                found[place] = embeddings
        reference, *teachers = found
        return replace(self, reference=reference, teachers=tuple(teachers), live=tuple(later))


class Stores(NamedTuple):
    """The models that steer and teach: their stored embeddings, or live models themselves."""

    reference: Reference | LiveModel | None
    teachers: tuple[Reference | LiveModel, ...]
    missing_reference: MissingReference = "leave_out"

    @classmethod
    def open(cls, recipe: Recipe, manifest: Manifest, *, device: torch.device) -> "Stores":
        """Open the recipe's stores, and build its live models, each once.

        Raises:
            FileNotFoundError, ValueError: a store is not there or does not belong to the data, or
                a live model cannot be built.
        """
        views = recipe.loading.views
        built: dict[str, LiveModel] = {}

        def opened(folder: str) -> Reference | LiveModel:
            if not is_live(folder):
                return open_reference(folder, manifest, views=views)
            if folder not in built:
                built[folder] = LiveModel(folder, recipe.live, device=device)
            return built[folder]

        reference = None
        if len(recipe.references) == 1:
            reference = opened(recipe.references[0])
        elif recipe.references:
            weights = recipe.reference_weights
            reference = open_reference(recipe.references, manifest, weights=weights, views=views)
        return cls(reference, tuple(map(opened, recipe.teachers)), recipe.missing_reference)

    @property
    def in_order(self) -> list[Reference | LiveModel | None]:
        """The reference, if there is one, and the teachers."""
        return [self.reference, *self.teachers]

    @property
    def live(self) -> tuple[LiveModel, ...]:
        """The live models, each once."""
        return tuple(dict.fromkeys(it for it in self.in_order if isinstance(it, LiveModel)))

    def named(self, recipe: Recipe) -> list[tuple[str, Reference | LiveModel]]:
        """List what steers and what teaches with the folders that the recipe names."""
        steering = [] if self.reference is None else [self.reference]
        names = [" and ".join(recipe.references)] * len(steering) + list(recipe.teachers)
        return list(zip(names, [*steering, *self.teachers], strict=True))

    @property
    def identities(self) -> dict[str, Any]:
        """Identify the contents of the stores, wherever they are, and the live models."""
        reference = None if self.reference is None else self.reference.identity
        return {"reference": reference, "teachers": [t.identity for t in self.teachers]}


def judged(source: Reference | LiveModel, manifest: Manifest) -> Judgement | None:
    """Judge what steers on a sample of the pairs; a live model encodes fewer of them."""
    if isinstance(source, LiveModel):
        return source.judge(manifest)
    return judge_reference(source, manifest)


def live_batches(
    stores: Stores,
    manifest: Manifest,
    *,
    augmentation: Transform,
    loading: Loading,
    position: Position,
    beside: str | None = None,
) -> list[Iterator[Batch]]:
    """Open the batches of each of `Stores.live`, as `LiveModel.batches`."""
    return [
        model.batches(
            manifest,
            augmentation=augmentation,
            loading=loading,
            position=position,
            beside=beside,
        )
        for model in stores.live
    ]


def live_cost(stores: Stores, recipe: Recipe, state: TrainingState) -> LiveCost | None:
    """Add up what the live models did in a run; their seconds come from its log."""
    if not stores.live:
        return None
    selection, trained = recipe.selection, state.samples_seen
    loaded = state.step * recipe.loading.batch_size - state.skipped.total()
    scores = selection is not None and selection.needs_reference
    pairs = sum(loaded if scores and m is stores.reference else trained for m in stores.live)
    seconds, before = 0.0, 0
    for row in read_metrics(state.folder):
        step = int(row["step"] or 0)
        seconds += (row.get(LIVE_SECONDS) or 0.0) * (step - before)
        before = step
    return LiveCost(pairs=pairs, seconds=seconds)


def steered(
    batches: Iterator[Batch],
    stores: Stores,
    *,
    live: Sequence[Iterator[Batch]] = (),
    whole: bool = True,
) -> Iterator[SteeredBatch]:
    """Attach the other models' embeddings by sample id, and what live models are to embed.

    A pair that one of them could not encode leaves the batch, counted among the skipped. With
    missing_reference = "plain" a pair without reference embeddings stays, with embeddings of zero:
    as an anchor it has R_ij - R_ii = 0, its plain loss; as a negative it is unrelated to all.

    Args:
        live: the batches of every live model, from the same position (`live_batches`).
        whole: whether these are whole batches and not the shares of one of several processes,
            which may be empty.

    Raises:
        ValueError: nothing is left of a whole batch.
    """
    for batch in batches:
        own = [next(others) for others in live]
        yield _attached(batch, stores, live=own, whole=whole)


def _attached(pairs: Batch, stores: Stores, *, live: Sequence[Batch], whole: bool) -> SteeredBatch:
    stored = {
        place: _gathered(store, pairs)
        for place, store in enumerate(stores.in_order)
        if isinstance(store, Reference)
    }
    present = torch.ones(len(pairs.sample_ids), dtype=torch.bool)
    for place, embeddings in stored.items():
        if place != REFERENCE or stores.missing_reference == "leave_out":
            present &= embeddings.present
    for others in live:
        present &= torch.isin(pairs.sample_ids, others.sample_ids)
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
        stored = {place: embeddings.keep(present) for place, embeddings in stored.items()}
    if torch.cuda.is_available():
        stored = {place: embeddings.pin_memory() for place, embeddings in stored.items()}
    return SteeredBatch(
        pairs=pairs,
        reference=stored.get(REFERENCE),
        teachers=tuple(stored.get(place) for place in range(1, 1 + len(stores.teachers))),
        live=tuple(
            LiveInputs(
                model=model,
                batch=_same_samples(batch, pairs.sample_ids),
                places=tuple(p for p, source in enumerate(stores.in_order) if source is model),
            )
            for model, batch in zip(stores.live, live, strict=True)
        ),
    )


def _gathered(store: Reference, pairs: Batch) -> ReferenceEmbeddings:
    """Look up the embeddings of a batch, which may be an empty share."""
    if len(pairs.sample_ids) > 0:
        return store.gather(pairs.sample_ids, pairs.views)
    nothing = torch.empty(0, store.embedding_dim)
    return ReferenceEmbeddings(nothing, nothing, torch.empty(0, dtype=torch.bool))


def _same_samples(batch: Batch, sample_ids: torch.Tensor) -> Batch:
    """Take those samples of a batch; both are in the order of the data."""
    rows = torch.isin(batch.sample_ids, sample_ids)
    found = batch if bool(rows.all()) else batch.take(rows)
    if not torch.equal(found.sample_ids, sample_ids):
        raise RuntimeError("a live model was given other samples than the target")
    return found
