"""What `drrho train RECIPE --dry-run` says: whether a run would start, and what it would do.

Everything that a run checks before its first step is checked, and a few samples are read; nothing
of the run is written.
"""

import json
import os
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import torch

from drrho.contrastive.objectives.config import GLOBAL_METHODS
from drrho.contrastive.objectives.objective import ContrastiveObjective
from drrho.data.indexing import open_manifest
from drrho.data.loading import Position, training_batches
from drrho.data.manifest import Manifest
from drrho.data.order import steps_per_epoch
from drrho.evaluation.evaluate import open_evaluation_set
from drrho.models.build import build_model
from drrho.models.two_tower import TwoTower
from drrho.recipe.batches import Stores, steered
from drrho.recipe.filtering import FilterReport
from drrho.recipe.recipe import MAY_CHANGE, Recipe
from drrho.recipe.sizes import Sizes, sizes_of
from drrho.recipe.train import (
    RECIPE_FILE,
    RESULTS_FILE,
    filter_manifest,
    gamma_schedule,
    run_config,
)
from drrho.reference.precompute import stored_bytes
from drrho.reference.reader import Reference
from drrho.runtime.distributed import Processes
from drrho.runtime.launch import Launch, resolve_device
from drrho.runtime.provenance import config_differences
from drrho.training.checkpoint import latest_checkpoint
from drrho.training.config import require_precision
from drrho.training.optimizer import build_optimizer

SAMPLES_READ = 8  # of the first batch


def plan_run(recipe: Recipe) -> str:
    """Checks what a run needs and describes it, in one process and without writing.

    Under a launcher the plan is that of its processes; each of them may call this.

    Raises:
        ValueError, OSError: the run could not start; the message is the run's own.
    """
    launch = Launch.from_environment(os.environ)
    num_processes = 1 if launch is None else launch.size
    device = resolve_device(recipe.device)
    require_precision(recipe.training.precision, device)
    manifest = open_manifest(recipe.data)
    _require_shards(manifest)
    stores = Stores.open(recipe, manifest)
    left, report = filter_manifest(recipe, manifest, stores, Processes())
    steps = steps_per_epoch(left, batch_size=recipe.loading.batch_size)
    steps_per_epoch(left, batch_size=recipe.trained_batch_size)
    folder_line = _folder(recipe, run_config(recipe, manifest, stores, report))
    model = build_model(recipe.model, seed=recipe.seed)
    loss = ContrastiveObjective(recipe.objective, num_samples=1)
    build_optimizer(model.module, recipe.training.optimizer, loss=loss)
    num_read = _read_some(recipe, left, model, stores)
    sizes = sizes_of(recipe, model, num_samples=manifest.num_samples, num_processes=num_processes)
    lines = [
        *_of_data(recipe, manifest, report, num_read=num_read),
        *_of_references(recipe, stores, manifest.num_samples),
        _of_model(recipe, sizes, device),
        f"objective    {describe_objective(recipe)}",
        *_of_steps(recipe, left, steps=steps, num_processes=num_processes),
        _of_evaluation(recipe),
        *_of_sizes(recipe, sizes),
        folder_line,
        "nothing was started or written",
    ]
    return "\n".join(lines)


def describe_objective(recipe: Recipe) -> str:
    """What is minimised on what, in words."""
    objective = recipe.objective
    names = {
        "clip": "CLIP's cross-entropy of the batch",
        "siglip": "SigLIP's sigmoid loss",
        "fastclip": "the global contrastive loss (FastCLIP)",
        "drrho_clip": "the global contrastive loss on the excess over the reference (DRRho-CLIP)",
        "distillation": "the teachers' matching probabilities",
    }
    tau = objective.temperature
    words = f"{names[objective.method]}, temperature {tau.kind.replace('_', ' ')} {tau.initial}"
    if objective.rho is not None:
        words += f", rho {objective.rho}"
    if objective.distillation is not None and objective.method != "distillation":
        weight = 1.0 if objective.distillation.weight is None else objective.distillation.weight
        words += f"; plus {weight} times distillation from {objective.num_teachers} teachers"
    if (selection := recipe.selection) is not None:
        rule = {"sample": "JEST", "top_k": "JEST top-k", "rho_top_k": "RHO top-k"}
        words += (
            f"; {selection.batch_size:,} of {recipe.loading.batch_size:,} pairs by "
            f"{rule[selection.selection]} on {selection.kind}"
        )
    return words


def readable_bytes(num_bytes: float) -> str:
    """Three digits with a unit."""
    for unit, size in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if num_bytes >= size:
            return f"{num_bytes / size:.3g} {unit}"
    return f"{num_bytes:.0f} B"


def _require_shards(manifest: Manifest) -> None:
    local = [shard.url for shard in manifest.shards if "://" not in shard.url]
    missing = [url for url in local if not Path(url).exists()]
    if missing:
        raise FileNotFoundError(
            f"{len(missing):,} of {len(manifest.shards):,} shards are missing, the first is "
            f"{missing[0]}; put them back, or run `drrho index` again"
        )


def _read_some(recipe: Recipe, manifest: Manifest, model: TwoTower, stores: Stores) -> int:
    """Samples of the first batch, decoded and with their references; raises if none can be."""
    size = min(SAMPLES_READ, recipe.loading.batch_size)
    batches = training_batches(
        manifest,
        model.train_transform,
        tokenizer=model.tokenizer,
        config=replace(recipe.loading, batch_size=size, workers=0),
        position=Position(seed=recipe.seed),
    )
    return len(next(steered(batches, stores)).sample_ids)


def _folder(recipe: Recipe, config: dict) -> str:
    """What lies in the run's folder; raises ValueError if that is a run of another recipe."""
    folder = Path(recipe.output)
    path = folder / (RESULTS_FILE if (folder / RESULTS_FILE).is_file() else RECIPE_FILE)
    written = (
        f"writes       {folder}: {RECIPE_FILE}, metrics.jsonl, checkpoints/, model/, {RESULTS_FILE}"
    )
    if not path.is_file():
        return written + "; a new run"
    document = json.loads(path.read_text())
    before = document["recipe"] if path.name == RESULTS_FILE else document
    if changed := config_differences(before, config, may_change=MAY_CHANGE):
        raise ValueError(
            f"{folder} holds a run of another recipe; train in another folder, or remove it:\n  "
            + "\n  ".join(changed)
        )
    if path.name == RESULTS_FILE:
        return f"writes       nothing: {folder} holds this run, finished"
    newest = latest_checkpoint(folder / "checkpoints")
    return f"{written}; continues at {'the start' if newest is None else newest.name}"


def _of_data(
    recipe: Recipe, manifest: Manifest, report: FilterReport | None, *, num_read: int
) -> Iterable[str]:
    reasons = Counter(reason for shard in manifest.shards for reason in shard.unusable.values())
    listed = ", ".join(f"{count:,} {reason}" for reason, count in reasons.items())
    yield (
        f"data         {recipe.data}: {manifest.num_samples:,} samples in "
        f"{len(manifest.shards):,} shards, {reasons.total():,} unusable"
        + (f" ({listed})" if listed else "")
        + f"; {num_read} were read"
    )
    if report is not None:
        yield f"filter       {report}"


def _of_references(recipe: Recipe, stores: Stores, num_samples: int) -> Iterable[str]:
    named: list[tuple[str, str, Reference]] = []
    if stores.reference is not None:
        named.append(("reference", " and ".join(recipe.references), stores.reference))
    for folder, teacher in zip(recipe.teachers, stores.teachers, strict=True):
        named.append(("teacher", folder, teacher))
    for kind, folder, store in named:
        size = readable_bytes(stored_bytes(num_samples, store.embedding_dim))
        yield (
            f"{kind:<12} {folder}: {store.embedding_dim} dimensions, {store.num_absent:,} samples "
            f"without embeddings, {size} mapped into memory"
        )


def _of_model(recipe: Recipe, sizes: Sizes, device: torch.device) -> str:
    return (
        f"model        {recipe.model.name}: {sizes.parameters:,} parameters, on {device}, "
        f"{recipe.training.precision}"
    )


def _of_steps(
    recipe: Recipe, manifest: Manifest, *, steps: int, num_processes: int
) -> Iterable[str]:
    training, optimizer = recipe.training, recipe.training.optimizer
    trained = recipe.trained_batch_size
    num_usable = sum(shard.num_usable for shard in manifest.shards)
    yield (
        f"steps        {training.steps:,} of {trained:,} pairs: {training.steps * trained:,} "
        f"samples seen, {training.steps / steps:.3g} passes over {num_usable:,} usable pairs; "
        f"{-(-recipe.loading.batch_size // num_processes):,} loaded by each of {num_processes} "
        "processes"
    )
    yield (
        f"rate         linear to {optimizer.learning_rate:g} in {optimizer.warmup_steps:,} steps, "
        f"then a cosine to 0; weight decay {optimizer.weight_decay:g}"
    )
    if recipe.objective.method in GLOBAL_METHODS:
        epochs = training.steps / steps_per_epoch(manifest, batch_size=trained)
        gamma = gamma_schedule(recipe, epochs=epochs)
        yield f"gamma        {gamma(0):.3g} at the start, {gamma(training.steps):.3g} at the end"


def _of_evaluation(recipe: Recipe) -> str:
    if recipe.evaluation.data is None:
        return "evaluation   none"
    found = open_evaluation_set(recipe.evaluation.data)
    kinds = ["retrieval"] * found.with_captions + [f"zero-shot {task.name}" for task in found.tasks]
    every = recipe.training.evaluate_every
    return (
        f"evaluation   {found.name}: {found.manifest.num_samples:,} samples, {', '.join(kinds)}, "
        + ("at the end" if every is None else f"every {every:,} steps")
    )


def _of_sizes(recipe: Recipe, sizes: Sizes) -> Iterable[str]:
    activations = (
        "not estimated with gradient_checkpointing"
        if sizes.activations is None
        else readable_bytes(sizes.activations)
    )
    yield (
        f"memory       of each process, about: model, gradients and optimiser "
        f"{readable_bytes(sizes.model_and_optimizer)}, activations {activations}, images "
        f"{readable_bytes(sizes.images)}, per-sample state {readable_bytes(sizes.per_sample)}"
    )
    yield (
        f"disk         {readable_bytes(sizes.checkpoints)} for "
        f"{recipe.training.keep_checkpoints} checkpoints and the one being written"
    )
