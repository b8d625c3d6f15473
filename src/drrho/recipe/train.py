"""Training by a recipe: from the configuration to a trained model in its run folder."""

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from drrho.contrastive.objectives.global_risk import DRRhoCLIP, FastCLIP
from drrho.contrastive.objectives.objective import ContrastiveObjective
from drrho.data.batch import Batch
from drrho.data.indexing import open_manifest_together
from drrho.data.loading import Position, caches_of, training_batches
from drrho.data.manifest import Manifest
from drrho.data.order import steps_per_epoch
from drrho.encoding.encoder import EmbeddingModel
from drrho.encoding.shared import Encoder
from drrho.evaluation.evaluate import evaluate_encoder
from drrho.evaluation.sets import open_evaluation_set
from drrho.models.build import build_model, save_model
from drrho.models.lora import merged_weights
from drrho.models.seen import note_training_data
from drrho.models.two_tower import TwoTower, blank_image
from drrho.recipe.batches import Stores, judged, live_batches, live_cost, steered
from drrho.recipe.continuing import (
    describe_extension,
    earlier_results,
    finished_results,
    may_change,
    part_of,
)
from drrho.recipe.document import (
    CONTENTS,
    RECIPE_FILE,
    Part,
    RunResults,
    upgraded,
    write_run_results,
)
from drrho.recipe.export import EMA_NAME
from drrho.recipe.filtering import FilterReport, filtered
from drrho.recipe.held_out import HeldOutVariances
from drrho.recipe.recipe import Recipe
from drrho.recipe.selection import Selector
from drrho.recipe.step import ContrastiveStep, Towers
from drrho.recipe.tuning import prepare_target
from drrho.reference.reader import Reference, open_reference
from drrho.runtime.checks import require_at_least
from drrho.runtime.distributed import Processes
from drrho.runtime.files import write_json
from drrho.runtime.launch import is_follower, require_shared, together
from drrho.runtime.locks import exclusive
from drrho.runtime.progress import announce
from drrho.runtime.provenance import plain, versions
from drrho.runtime.randomness import preserved_generators
from drrho.runtime.records import to_json
from drrho.training.averaging import build_average
from drrho.training.loop import Evaluator, TrainingResult, train
from drrho.training.optimizer import (
    RateGroup,
    build_optimizer,
    learning_rate_schedule,
    temperature_rate_schedule,
)
from drrho.training.parallel import (
    compile_blocks,
    recompute_blocks,
    replicate,
    shard,
    whole_weights,
)
from drrho.training.schedules import Schedule, averaging_rate, constant
from drrho.training.state import TrainingState
from drrho.training.tracking.tracker import Tracker

MOST_PASSES = 100  # beyond them a warning


def train_recipe(recipe: Recipe, *, trackers: Sequence[Tracker] = ()) -> RunResults:
    """Train a new run, continue an unfinished one, or return the results of a finished one.

    Under torchrun or `srun` all processes call this and train together.

    Args:
        trackers: trackers beside those that the recipe names.

    Raises:
        ValueError: there is no output, the folder holds a run of another recipe, or the data, the
            reference or the recipe do not fit each other. Found before the first step.
        ProcessFailed: with several processes, this one failed or lost another.
    """
    if not recipe.output:
        raise ValueError("output = '' names no folder to train in; give one, such as runs/mine")
    with together(recipe.device, recipe) as (processes, device):
        results = _train_or_return(recipe, processes, device=device, trackers=trackers)
    assert results is not None  # it is None for a beginning alone
    return results


def train_beginning(recipe: Recipe, *, until: int) -> None:
    """Train a run up to a step of its schedule, and leave it to be continued by `train_recipe`.

    A run found in the folder is continued; a run that is as far already stays as it is. The
    continued run equals one that was trained at once, bit for bit on one machine's CPU.

    Raises:
        ValueError: `until` is not a step of the run; or as `train_recipe`.
    """
    require_at_least(1, until=until)
    with together(recipe.device, recipe) as (processes, device):
        _train_or_return(recipe, processes, device=device, until=until)


def _train_or_return(
    recipe: Recipe,
    processes: Processes,
    *,
    device: torch.device,
    until: int | None = None,
    trackers: Sequence[Tracker] = (),
) -> RunResults | None:
    folder = Path(recipe.output)
    manifest = open_manifest_together(recipe.data, processes)
    stores = processes.on_each(lambda: Stores.open(recipe, manifest, device=device))
    processes.require_same(data=manifest.contents_sha256, **stores.identities)
    require_shared(folder, processes)
    manifest, report = filter_manifest(recipe, manifest, stores, processes)
    recipe = with_steps(recipe, manifest)
    config = run_config(recipe, manifest, stores, report)
    with exclusive(folder) if processes.is_first else nullcontext():
        finished = processes.on_first(lambda: finished_results(recipe, config))
        if finished is not None:
            return finished
        training = _Training(recipe, config, manifest, stores, report, processes, device, trackers)
        return training.run(until=until)


@dataclass(frozen=True)
class _Training:
    """A run that is to be trained or continued."""

    recipe: Recipe
    config: dict[str, Any]
    manifest: Manifest
    stores: Stores
    report: FilterReport | None
    processes: Processes
    device: torch.device
    trackers: Sequence[Tracker] = ()

    def run(self, *, until: int | None) -> RunResults | None:
        """Train to the end, and write the model and the results; None if `until` comes before."""
        recipe, folder = self.recipe, Path(self.recipe.output)
        if self.processes.is_first and until is None:
            self._judge()
        model = build_model(recipe.model, seed=recipe.seed, target=True)
        rates = prepare_target(model, recipe)
        average = self._average(model)
        self._prepare(model.module)
        num_samples, tiling = self.manifest.num_samples, recipe.tiling
        loss = ContrastiveObjective(recipe.objective, num_samples=num_samples, impl=tiling)
        loss.to(self.device)
        state = self._state(model, loss, rates=rates, average=average)
        parts = self._resume(state)
        if until is not None and state.step >= until:
            return None
        state.until = until
        if self.processes.is_first:
            write_json(folder / RECIPE_FILE, self.config)
            contents = (shard.content_sha256 for shard in self.manifest.shards)
            note_training_data(folder, contents, model=recipe.model)
        models = {"evaluation": model}
        if average is not None:
            models[EMA_NAME] = _of(average, model)
        steps = steps_per_epoch(self.manifest, batch_size=recipe.trained_batch_size)
        epochs = recipe.training.num_steps / steps
        result = train(
            self._objective(model, loss, epochs=epochs),
            steered(
                self._batches(model, start_step=state.step),
                self.stores,
                live=self._live_batches(model, start_step=state.step),
                whole=self.processes.size == 1,
            ),
            state=state,
            config=recipe.training,
            learning_rate=learning_rate_schedule(
                recipe.training.optimizer, steps=recipe.training.num_steps
            ),
            evaluators=_evaluators(recipe, models, self.processes, device=self.device),
        )
        if state.step < recipe.training.num_steps:
            return None
        self._save(model, folder / "model")
        if average is not None:
            self._save(models[EMA_NAME], folder / EMA_NAME / "model")
        results = self._results(result, state, epochs=epochs, parts=parts)
        if self.processes.is_first:
            write_run_results(folder, results)
        return results

    def _results(
        self,
        result: TrainingResult,
        state: TrainingState,
        *,
        epochs: float,
        parts: tuple[Part, ...],
    ) -> RunResults:
        """Collect the results of the finished run."""
        return RunResults(
            recipe=self.recipe,
            contents=self.config[CONTENTS],
            metrics=dict(result.metrics),
            samples_seen=result.samples_seen,
            epochs=epochs,
            seconds=result.seconds,
            skipped=dict(state.skipped),
            skipped_steps=state.skipped_steps,
            samples_without_reference=(
                self.stores.reference.num_absent
                if isinstance(self.stores.reference, Reference)
                else None
            ),
            filtering=self.report,
            processes=self.processes.size,
            parts=parts,
            live=live_cost(self.stores, self.recipe, state),
            reference=self.stores.identities["reference"],
            teachers=tuple(self.stores.identities["teachers"]),
            versions=versions(),
        )

    def _judge(self) -> None:
        """Say on standard error how the references do on a sample of the pairs."""
        for folder, store in self.stores.named(self.recipe):
            judgement = judged(store, self.manifest)
            if judgement is not None:
                announce(f"reference {folder}: {judgement}")

    def _resume(self, state: TrainingState) -> tuple[Part, ...]:
        """Continue from the newest checkpoint, and list the parts that an extension has before it.

        The last row of an earlier part is written again, its evaluation included.
        """
        recipe = self.recipe
        changing = self.processes.on_first(lambda: may_change(recipe))
        state.resume(may_change=changing, upgrade=upgraded)
        found = self.processes.on_first(lambda: earlier_results(recipe))
        parts = tuple(map(part_of, found))
        if parts and state.step == parts[-1].steps:
            state.metrics = dict(found[-1].metrics)
            if self.processes.is_first:
                warnings.warn(describe_extension(recipe, parts[-1]), stacklevel=3)
        return parts

    def _average(self, model: TwoTower) -> AveragedModel | None:
        """Build the moving average that the recipe asks for; a copy made before any wrapper."""
        config = self.recipe.training.ema
        if config is None:
            return None
        return build_average(model.module, config).to(self.device)

    def _prepare(self, module: nn.Module) -> None:
        """Move, compile and shard the towers, before there is an optimiser."""
        module.to(self.device)
        if self.recipe.gradient_checkpointing:
            recompute_blocks(module)
        if self.recipe.compile:
            compile_blocks(module)
        if self.recipe.parallel == "sharded":
            if self.processes.size == 1:
                raise ValueError(
                    "parallel = 'sharded' has no effect on one process; start several with "
                    "torchrun, or leave it out"
                )
            shard(module, methods=("encode_image", "encode_text"))

    def _state(
        self,
        model: TwoTower,
        loss: ContrastiveObjective,
        *,
        average: AveragedModel | None,
        rates: Mapping[str, RateGroup] | None,
    ) -> TrainingState:
        training = self.recipe.training
        best = model
        if average is not None and (training.keep_best or "").startswith(f"{EMA_NAME}/"):
            best = _of(average, model)
        return TrainingState(
            folder=Path(self.recipe.output),
            model=model.module,
            loss=loss,
            optimizer=build_optimizer(model.module, training.optimizer, loss=loss, rates=rates),
            config=self.config,
            trackers=self.trackers,
            seed=self.recipe.seed,
            processes=self.processes,
            export=partial(self._save, best),
            scaler=(
                torch.amp.GradScaler(self.device.type) if training.precision == "float16" else None
            ),
            average=average,
            temperature_rate=temperature_rate_schedule(
                training.optimizer,
                steps=training.num_steps,
                temperature=lambda: float(loss.temperature().detach().max()),
            ),
        )

    def _objective(
        self, model: TwoTower, loss: ContrastiveObjective, *, epochs: float
    ) -> ContrastiveStep:
        recipe = self.recipe
        selector = None
        if recipe.selection is not None:
            selector = Selector(
                config=recipe.selection, module=model.module, loss=loss, seed=recipe.seed
            )
        towers: nn.Module = Towers(model.module)
        placeholder = None if self.processes.size == 1 else self._placeholder(model)
        if placeholder is not None and recipe.parallel == "replicated":
            towers = replicate(towers, self.device, inputs=placeholder)
        return ContrastiveStep(
            towers=towers,
            loss=loss,
            gamma=gamma_schedule(recipe, epochs=epochs),
            micro_batch_size=recipe.micro_batch_size,
            selector=selector,
            placeholder=placeholder,
        )

    def _placeholder(self, model: TwoTower) -> tuple[Tensor, Tensor]:
        with preserved_generators():
            image = blank_image(model)
        images, tokens = torch.stack([image] * 2), model.tokenizer(["", ""])
        return images.to(self.device), tokens.to(self.device)

    def _batches(self, model: TwoTower, *, start_step: int) -> Iterator[Batch]:
        loading = self.recipe.loading
        transform = model.train_transform if loading.views is None else model.eval_transform
        caches = caches_of(
            self.manifest,
            transform,
            tokenizer=model.tokenizer,
            config=loading,
            beside=self.recipe.data,
        )
        if self.processes.is_first:
            announce(f"train {Path(self.recipe.output).name}: {caches.note}")
        return training_batches(
            self.manifest,
            transform,
            tokenizer=model.tokenizer,
            config=loading,
            caches=caches,
            position=self._position(start_step),
        )

    def _live_batches(self, model: TwoTower, *, start_step: int) -> list[Iterator[Batch]]:
        return live_batches(
            self.stores,
            self.manifest,
            augmentation=model.train_transform,
            loading=self.recipe.loading,
            position=self._position(start_step),
            beside=self.recipe.data,
        )

    def _position(self, start_step: int) -> Position:
        return Position(
            seed=self.recipe.seed,
            step=start_step,
            share=(self.processes.rank, self.processes.size),
        )

    def _save(self, model: TwoTower, folder: Path) -> None:
        weights = whole_weights(model.module)
        if self.processes.is_first:
            save_model(model, folder, weights=merged_weights(model.module, weights))


def run_config(
    recipe: Recipe, manifest: Manifest, stores: Stores, report: FilterReport | None
) -> dict[str, Any]:
    """Describe a run as plain data: the recipe, and the contents of what it names."""
    contents = {"data_sha256": manifest.contents_sha256, **stores.identities}
    if report is not None:
        contents["filtering"] = to_json(report)
    return to_json(recipe) | {CONTENTS: plain(contents)}


def with_steps(recipe: Recipe, manifest: Manifest) -> Recipe:
    """Fill in the number of steps of a recipe whose length is given in epochs.

    Warns of a run that is more than 100 passes over its data: steps meant for other data.

    Raises:
        ValueError: steps and epochs are given and do not agree, or the data are not one batch.
    """
    in_epoch = steps_per_epoch(manifest, batch_size=recipe.trained_batch_size)
    training = recipe.training.with_steps(steps_per_epoch=in_epoch)
    passes = training.num_steps / in_epoch
    if passes > MOST_PASSES and not is_follower():
        warnings.warn(
            f"training.steps = {training.num_steps:,} are {passes:,.0f} passes over the data, "
            f"{in_epoch:,} batches each; training.epochs gives the length in passes",
            stacklevel=2,
        )
    return replace(recipe, training=training)


def filter_manifest(
    recipe: Recipe, manifest: Manifest, stores: Stores, processes: Processes
) -> tuple[Manifest, FilterReport | None]:
    """Apply the recipe's filter to the data, and return its report too; a collective.

    Raises:
        ValueError: the filter's reference does not belong to the data, or nothing is left.
    """
    config = recipe.filtering
    if config is None:
        return manifest, None
    store = stores.reference
    if config.reference is not None:
        named, views = config.reference, recipe.loading.views
        store = processes.on_each(lambda: open_reference(named, manifest, views=views))
        processes.require_same(**{"filtering.reference": store.identity})
    assert isinstance(store, Reference)  # a live one cannot filter
    return filtered(manifest, store, config, processes)


def _of(average: AveragedModel, model: TwoTower) -> TwoTower:
    return replace(model, module=average.module)


def _evaluators(
    recipe: Recipe,
    models: Mapping[str, TwoTower],
    processes: Processes,
    *,
    device: torch.device,
) -> dict[str, Evaluator]:
    """Build an evaluator for each model, under its name in the log."""
    source = recipe.evaluation.data
    if source is None:
        return {}
    held_out = processes.on_first(lambda: open_evaluation_set(source))
    variances = None
    if references := recipe.evaluation.references:
        variances = processes.on_each(lambda: HeldOutVariances(held_out.manifest, references))
        processes.require_same(**{"evaluation.references": variances.identities})

    def evaluator(model: TwoTower) -> Evaluator:
        encoder = Encoder(
            model=EmbeddingModel(model, device=device),
            batch_size=recipe.evaluation.batch_size,
            workers=recipe.loading.workers,
            processes=processes,
        )

        def evaluate() -> dict[str, float]:
            metrics = evaluate_encoder(encoder, held_out).metrics
            return metrics if variances is None else metrics | variances(encoder)

        return evaluate

    return {name: evaluator(model) for name, model in models.items()}


def gamma_schedule(recipe: Recipe, *, epochs: float) -> Schedule:
    """Return the schedule of the averages' newest weight, which is 1 without averages."""
    objective = recipe.objective
    if not isinstance(objective, FastCLIP | DRRhoCLIP):
        return constant(1.0)
    return averaging_rate(
        objective.final_gamma(epochs=epochs),
        kind=objective.gamma_schedule,
        steps=recipe.training.num_steps,
        decay_share=objective.decay_share(epochs=epochs),
    )
