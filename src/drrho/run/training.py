"""A recipe -> a trained model in its run folder."""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch.nn.functional import normalize

from drrho.contrastive.accumulation import encode_in_micro_batches
from drrho.contrastive.config import GLOBAL_METHODS, recommended_gamma_min
from drrho.contrastive.objective import ContrastiveObjective
from drrho.contrastive.risk import PairEmbeddings
from drrho.data.batch import Batch
from drrho.data.indexing import open_manifest
from drrho.data.loading import training_batches
from drrho.data.manifest import Manifest
from drrho.data.order import steps_per_epoch
from drrho.files import exclusive, write_json
from drrho.models.build import build_model, save_model
from drrho.models.two_tower import TwoTower
from drrho.reference.store import ReferenceEmbeddings, ReferenceStore
from drrho.run.evaluation import evaluate_model, open_evaluation_set
from drrho.run.recipe import MAY_CHANGE, Recipe, resolve_device
from drrho.run.selection import Selector
from drrho.training.interruption import TrainingInterrupted
from drrho.training.loop import Evaluator, train
from drrho.training.optimizer import build_optimizer, learning_rate_schedule
from drrho.training.schedules import Schedule, constant, cosine
from drrho.training.state import TrainingState, config_differences, plain, versions
from drrho.training.step import StepResult

__all__ = ["ContrastiveStep", "SteeredBatch", "TrainingInterrupted", "steered", "train_recipe"]

RECIPE_FILE = "recipe.json"
RESULTS_FILE = "results.json"
# Until then gamma falls, which is the published choice for the moving averages.
GAMMA_DECAY_SHARE = 0.5


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
        """Some of the samples, where they are."""
        return SteeredBatch(
            pairs=self.pairs.take(rows),
            reference=None if self.reference is None else self.reference.keep(rows),
            teachers=tuple(teacher.keep(rows) for teacher in self.teachers),
        )


class Stores(NamedTuple):
    """Stored embeddings of the models that steer."""

    reference: ReferenceStore | None
    teachers: tuple[ReferenceStore, ...]

    @classmethod
    def open(cls, recipe: Recipe, manifest: Manifest) -> "Stores":
        """Raises ValueError if one does not belong to the data."""
        reference = None
        if recipe.reference is not None:
            reference = ReferenceStore.open(recipe.reference, manifest)
        teachers = tuple(ReferenceStore.open(folder, manifest) for folder in recipe.teachers)
        return cls(reference, teachers)

    @property
    def identities(self) -> dict[str, Any]:
        """What they are, wherever they lie."""
        reference = None if self.reference is None else self.reference.identity
        return {"reference": reference, "teachers": [t.identity for t in self.teachers]}


def train_recipe(recipe: Recipe) -> dict[str, Any]:
    """Trains, or continues, or returns what was finished before.

    Returns:
        The contents of the folder's `results.json`: recipe, metrics of the last step and
        evaluation, samples seen, seconds, skipped samples, versions.

    Raises:
        ValueError: the folder holds a run of another recipe, or the data, the reference or
            the recipe do not fit each other. Found before the first step.
    """
    folder = Path(recipe.output)
    device = resolve_device(recipe.device)
    manifest = open_manifest(recipe.data)
    stores = Stores.open(recipe, manifest)
    config = plain(asdict(recipe)) | {
        "contents": {"data_sha256": _contents_sha256(manifest), **stores.identities}
    }
    with exclusive(folder):
        finished = _finished_results(folder, config)
        if finished is not None:
            return finished
        return _train(recipe, config, manifest=manifest, stores=stores, device=device)


def _train(
    recipe: Recipe,
    config: dict[str, Any],
    *,
    manifest: Manifest,
    stores: Stores,
    device: torch.device,
) -> dict[str, Any]:
    folder = Path(recipe.output)
    model = build_model(recipe.model, seed=recipe.seed)
    model.module.to(device)
    loss = ContrastiveObjective(recipe.objective, num_samples=manifest.num_samples).to(device)
    state = TrainingState(
        folder=folder,
        model=model.module,
        loss=loss,
        optimizer=build_optimizer(model.module, recipe.training.optimizer, loss=loss),
        config=config,
    )
    state.resume(may_change=MAY_CHANGE)
    batches = training_batches(
        manifest,
        model.train_transform,
        tokenizer=model.tokenizer,
        config=recipe.loading,
        seed=recipe.seed,
        start_step=state.step,
    )
    write_json(folder / RECIPE_FILE, config)
    steps = steps_per_epoch(manifest, batch_size=recipe.trained_batch_size)
    epochs = recipe.training.steps / steps
    selector = None
    if recipe.selection is not None:
        selector = Selector(
            config=recipe.selection, module=model.module, loss=loss, seed=recipe.seed
        )
    result = train(
        ContrastiveStep(
            module=model.module,
            loss=loss,
            gamma=_gamma_schedule(recipe, epochs=epochs),
            micro_batch_size=recipe.micro_batch_size,
            selector=selector,
        ),
        steered(batches, stores),
        state=state,
        config=recipe.training,
        learning_rate=learning_rate_schedule(
            recipe.training.optimizer, steps=recipe.training.steps
        ),
        evaluators=_evaluators(recipe, model, device=device),
    )
    save_model(model, folder / "model")
    results = {
        "recipe": config,
        "metrics": dict(result.metrics),
        "samples_seen": result.samples_seen,
        "epochs": epochs,
        "seconds": result.seconds,
        "skipped": dict(state.skipped),
        **stores.identities,
        "versions": versions(),
    }
    write_json(folder / RESULTS_FILE, results)
    return results


def steered(batches: Iterator[Batch], stores: Stores) -> Iterator[SteeredBatch]:
    """Attaches the other models' embeddings by sample id.

    A pair that one of them could not encode has no excess loss: it leaves the batch and is
    counted among the skipped.

    Raises:
        ValueError: of a batch fewer than two pairs are left.
    """
    for batch in batches:
        yield _attached(batch, stores)


def _attached(pairs: Batch, stores: Stores) -> SteeredBatch:
    found = [
        store.gather(pairs.sample_ids)
        for store in (stores.reference, *stores.teachers)
        if store is not None
    ]
    present = torch.ones(len(pairs.sample_ids), dtype=torch.bool)
    for embeddings in found:
        present &= embeddings.present
    if not present.all():
        absent = pairs.sample_ids[~present].tolist()
        if len(absent) > len(pairs.sample_ids) - 2:
            raise ValueError(
                f"the reference has embeddings of {len(pairs.sample_ids) - len(absent)} of "
                f"{len(pairs.sample_ids)} pairs of a batch, not of samples {absent[:5]} ...; "
                "see what `drrho reference precompute` reported as absent"
            )
        skipped = [(sample_id, "no reference embedding") for sample_id in absent]
        pairs = pairs.keep(present, skipped=skipped)
        found = [embeddings.keep(present) for embeddings in found]
    if torch.cuda.is_available():
        found = [embeddings.pin_memory() for embeddings in found]
    reference = None if stores.reference is None else found.pop(0)
    return SteeredBatch(pairs=pairs, reference=reference, teachers=tuple(found))


@dataclass(frozen=True, kw_only=True)
class ContrastiveStep:
    """Forward pass of both towers and the contrastive loss of a batch."""

    module: Any  # with open_clip's encode_image and encode_text
    loss: ContrastiveObjective
    gamma: Schedule
    micro_batch_size: int | None = None
    selector: Selector | None = None

    def __call__(self, batch: SteeredBatch, *, step: int, diagnose: bool) -> StepResult:
        if self.selector is not None:
            loaded = batch
            reference = None if loaded.reference is None else _pairs(loaded.reference)
            rows = self.selector(lambda: self._embeddings(loaded.pairs), reference, step=step)
            batch = loaded.take(rows)
        subtracted = batch.reference if self.loss.config.needs_reference else None
        value = self.loss(
            self._embeddings(batch.pairs),
            None if subtracted is None else _pairs(subtracted),
            sample_ids=batch.sample_ids,
            gamma=self.gamma(step),
            teachers=[_pairs(teacher) for teacher in batch.teachers],
            diagnose=diagnose,
        )
        metrics = value.metrics
        if self.loss.config.method in GLOBAL_METHODS:
            metrics = metrics | {"gamma": self.gamma(step)}
        return StepResult(loss=value.loss, num_samples=len(batch.sample_ids), metrics=metrics)

    def _embeddings(self, pairs: Batch) -> PairEmbeddings:
        num_pairs = len(pairs.sample_ids)
        size = num_pairs if self.micro_batch_size is None else self.micro_batch_size
        starts = range(0, num_pairs, size)
        return encode_in_micro_batches(
            self._encode, [pairs.take(slice(start, start + size)) for start in starts]
        )

    def _encode(self, pairs: Batch) -> PairEmbeddings:
        return PairEmbeddings(
            image=_unit(self.module.encode_image(pairs.images, normalize=False)),
            text=_unit(self.module.encode_text(pairs.tokens, normalize=False)),
        )


def _pairs(stored: ReferenceEmbeddings) -> PairEmbeddings:
    return PairEmbeddings(stored.image, stored.text)


def _unit(embeddings: torch.Tensor) -> torch.Tensor:
    """Normalised in float32: half precision would leave norms off by 0.3 %, and with them every
    cosine of a row, which a small temperature blows up.
    """
    return normalize(embeddings.float(), dim=-1)


def _evaluators(recipe: Recipe, model: TwoTower, *, device: torch.device) -> dict[str, Evaluator]:
    if recipe.evaluation.data is None:
        return {}
    held_out = open_evaluation_set(recipe.evaluation.data)

    def evaluator() -> dict[str, float]:
        return evaluate_model(
            model,
            held_out,
            device=device,
            batch_size=recipe.evaluation.batch_size,
            workers=recipe.loading.workers,
        ).metrics

    return {"evaluation": evaluator}


def _gamma_schedule(recipe: Recipe, *, epochs: float) -> Schedule:
    objective = recipe.objective
    if objective.method not in GLOBAL_METHODS:
        return constant(1.0)
    end = objective.gamma_min
    end = recommended_gamma_min(epochs) if end is None else end
    if objective.gamma_schedule == "constant":
        return constant(end)
    return cosine(1.0, end, steps=max(1, round(GAMMA_DECAY_SHARE * recipe.training.steps)))


def _finished_results(folder: Path, config: dict[str, Any]) -> dict[str, Any] | None:
    path = folder / RESULTS_FILE
    if not path.is_file():
        return None
    results = json.loads(path.read_text())
    changed = config_differences(results["recipe"], config, may_change=MAY_CHANGE)
    if changed:
        raise ValueError(
            f"{folder} holds a finished run of another recipe; train in another folder, or remove "
            "it:\n  " + "\n  ".join(changed)
        )
    before, now = (c["evaluation"]["data"] for c in (results["recipe"], config))
    if now is not None and before != now:
        raise ValueError(
            f"{folder} is finished and was evaluated on {before}; for another set run "
            f"`drrho evaluate {folder} --data {now}`"
        )
    return results


def _contents_sha256(manifest: Manifest) -> str:
    """Of what the shards hold, in order, wherever they lie."""
    contents = json.dumps([shard.contents for shard in manifest.shards])
    return hashlib.sha256(contents.encode()).hexdigest()
