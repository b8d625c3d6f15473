"""`drrho train RECIPE --dry-run`: checks whether a run would start, and describes it.

Everything that a run checks before its first step is checked, and a few samples are read; nothing
of the run is written.
"""

import os
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from drrho.contrastive.memory.temperature import Learned, PerSample
from drrho.contrastive.objectives.distillation import Distillation
from drrho.contrastive.objectives.global_risk import DRRhoCLIP, FastCLIP
from drrho.contrastive.objectives.objective import ContrastiveObjective, Objective
from drrho.data.indexing import open_manifest
from drrho.data.loading import Position, training_batches
from drrho.data.manifest import Manifest
from drrho.data.order import steps_per_epoch
from drrho.evaluation.sets import open_evaluation_set
from drrho.models.build import build_model
from drrho.models.tuning import describe_tuning
from drrho.models.two_tower import TwoTower, blank_image
from drrho.recipe.batches import Stores, judged, live_batches, steered
from drrho.recipe.continuing import (
    describe_extension,
    extends,
    part_of,
    require_extensible,
)
from drrho.recipe.document import (
    RECIPE_FILE,
    RESULTS_FILE,
    read_recipe_file,
    read_run_results,
)
from drrho.recipe.filtering import FilterReport
from drrho.recipe.recipe import MAY_CHANGE, Recipe
from drrho.recipe.train import (
    filter_manifest,
    gamma_schedule,
    run_config,
    with_steps,
)
from drrho.recipe.tuning import prepare_target
from drrho.reference.judgement import Judgement
from drrho.reference.live import LiveModel
from drrho.reference.precompute import stored_bytes
from drrho.reference.reader import Reference
from drrho.runtime.distributed import Processes
from drrho.runtime.launch import Launch, resolve_device
from drrho.runtime.provenance import config_differences
from drrho.runtime.randomness import preserved_generators
from drrho.training.checkpoint import latest_checkpoint
from drrho.training.config import Precision, require_precision
from drrho.training.optimizer import build_optimizer

LOSSES = {
    "clip": "CLIP's cross-entropy of the batch",
    "siglip": "SigLIP's sigmoid loss",
    "fastclip": "the global contrastive loss (FastCLIP)",
    "drrho_clip": "the global contrastive loss on the excess over the reference (DRRho-CLIP)",
    "gist": "cross-entropy without the negatives that the reference, as a guide, masks (GIST)",
    "distillation": "the teachers' matching probabilities",
}
SELECTIONS = {"sample": "JEST", "top_k": "JEST top-k", "rho_top_k": "RHO top-k"}
FLOAT = 4  # bytes
MEASURED = (2, 4)  # pairs of the two forward passes that activations are measured with
SAMPLES_READ = 8  # of the first batch


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """Bytes of memory of one process, and of checkpoints on the disk.

    Attributes:
        parameters: number of parameters of the whole model, trainable or not.
        model_and_optimizer: bytes of parameters, gradients and AdamW's moments in float32.
        activations: bytes of the pairs that are encoded at once; None if it is not known.
        images: bytes of the images of two batches; the second one waits.
        per_sample: bytes of averages and individual temperatures.
        checkpoints: bytes on disk, with the checkpoint that is being written.
    """

    parameters: int
    model_and_optimizer: int
    activations: int | None
    images: int
    per_sample: int
    checkpoints: int


def sizes_of(recipe: Recipe, model: TwoTower, *, num_samples: int, num_processes: int) -> Sizes:
    """Estimate bytes from a model on the CPU and the formats of drrho's files."""
    trainable = sum(p.numel() for p in model.module.parameters() if p.requires_grad)
    parameters = sum(p.numel() for p in model.module.parameters())
    shares = num_processes if recipe.parallel == "sharded" else 1
    state = per_sample_bytes(recipe.objective) * num_samples
    copies = 1 if recipe.training.ema is None else 2  # of the weights
    one_checkpoint = FLOAT * (copies * parameters + 2 * trainable) + state
    trained, loaded = (
        -(-size // num_processes) for size in (recipe.trained_batch_size, recipe.loading.batch_size)
    )
    at_once = trained if recipe.micro_batch_size is None else recipe.micro_batch_size
    kept = None
    if not recipe.gradient_checkpointing:
        kept = activation_bytes(model, precision=recipe.training.precision) * at_once
    return Sizes(
        parameters=parameters,
        model_and_optimizer=FLOAT * (copies * parameters + 3 * trainable) // shares,
        activations=kept,
        images=2 * loaded * FLOAT * _pixels(model).numel(),
        per_sample=state // num_processes,
        checkpoints=(recipe.training.keep_checkpoints + 1) * one_checkpoint,
    )


def per_sample_bytes(objective: Objective) -> int:
    """Compute the bytes of state for one sample, in memory and in a checkpoint."""
    averages = 2 * FLOAT if objective.has_averages else 0
    temperatures = 4 * FLOAT if isinstance(objective.temperature, PerSample) else 0
    return averages + temperatures


def activation_bytes(model: TwoTower, *, precision: Precision) -> int:
    """Measure the bytes that the backward pass of both towers needs of a pair."""
    fewer, more = (_saved_bytes(model, pairs, precision) for pairs in MEASURED)
    return max(0, more - fewer) // (MEASURED[1] - MEASURED[0])


def _saved_bytes(model: TwoTower, num_pairs: int, precision: Precision) -> int:
    """Sum the bytes of the distinct tensors that autograd saves, without the parameters."""
    module: Any = model.module
    own = {p.untyped_storage().data_ptr() for p in model.module.parameters()}
    saved: dict[int, int] = {}
    alive: list[Tensor] = []  # or a later tensor could take the memory of an earlier one

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            saved[storage.data_ptr()] = storage.nbytes()
            alive.append(tensor)
        return tensor

    images = _pixels(model).expand(num_pairs, -1, -1, -1).contiguous()
    tokens = model.tokenizer(["a caption"] * num_pairs)
    training = [m for m in model.module.modules() if m.training]
    model.module.eval()  # a forward pass in training would move batch statistics
    try:
        with (
            preserved_generators(),
            torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor),
            # Both half precisions are as large, and CPUs know this one.
            torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision != "float32"),
        ):
            module.encode_image(images, normalize=False)
            module.encode_text(tokens, normalize=False)
    finally:
        for part in training:
            part.training = True
    return sum(saved.values())


def _pixels(model: TwoTower) -> Tensor:
    """Transform an image as training does."""
    with preserved_generators():
        return blank_image(model)[None]


def plan_run(recipe: Recipe) -> str:
    """Check what a run needs and describe it, in one process and without writing.

    Under a launcher the plan is made for all its processes; each of them may call this.

    Raises:
        ValueError, OSError: the run could not start; the message is the run's own.
    """
    launch = Launch.from_environment(os.environ)
    num_processes = 1 if launch is None else launch.size
    device = resolve_device(recipe.device)
    require_precision(recipe.training.precision, device)
    manifest = open_manifest(recipe.data)
    _require_shards(manifest)
    stores = Stores.open(recipe, manifest, device=device)
    left, report = filter_manifest(recipe, manifest, stores, Processes())
    steps = steps_per_epoch(left, batch_size=recipe.loading.batch_size)
    recipe = with_steps(recipe, left)
    folder_line = _folder(recipe, run_config(recipe, manifest, stores, report))
    model = build_model(recipe.model, seed=recipe.seed, target=True)
    loss = ContrastiveObjective(recipe.objective, num_samples=1)
    rates = prepare_target(model, recipe)
    build_optimizer(model.module, recipe.training.optimizer, loss=loss, rates=rates)
    num_read = _read_some(recipe, left, model, stores)
    sizes = sizes_of(recipe, model, num_samples=manifest.num_samples, num_processes=num_processes)
    lines = [
        *_of_data(recipe, manifest, report, num_read=num_read),
        *_of_references(recipe, stores, left),
        _of_model(recipe, sizes, device),
        *_of_tuning(recipe, model),
        f"objective    {describe_objective(recipe)}",
        *_of_steps(recipe, left, steps=steps, num_processes=num_processes),
        _of_evaluation(recipe),
        *_of_sizes(recipe, sizes),
        folder_line,
        "nothing was started or written",
    ]
    return "\n".join(lines)


def describe_objective(recipe: Recipe) -> str:
    """Describe the objective and the selection in words."""
    objective, tau = recipe.objective, recipe.objective.temperature
    per_direction = isinstance(tau, Learned) and tau.per_direction
    kind = "per direction" if per_direction else tau.kind.replace("_", " ")
    words = f"{LOSSES[objective.method]}, temperature {kind} {tau.initial}"
    if isinstance(objective, FastCLIP | DRRhoCLIP):
        words += "" if objective.rho is None else f", rho {objective.rho}"
        words += "" if objective.times_temperature else ", without the factor tau"
    if not isinstance(objective, Distillation) and (term := objective.distillation) is not None:
        words += f"; plus {term.weight} times distillation from {objective.num_teachers} teachers"
    if (selection := recipe.selection) is not None:
        words += (
            f"; {selection.batch_size:,} of {recipe.loading.batch_size:,} pairs by "
            f"{SELECTIONS[selection.selection]} on {selection.kind}"
            + (", score and draws as published" if selection.score == "published" else "")
        )
    return words


def readable_bytes(num_bytes: float) -> str:
    """Format bytes with three digits and a unit."""
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
    """Read some samples of the first batch with their references, and count them."""
    size = min(SAMPLES_READ, recipe.loading.batch_size)
    loading = replace(recipe.loading, batch_size=size, workers=0)
    position = Position(seed=recipe.seed)
    batches = training_batches(
        manifest,
        model.train_transform,
        tokenizer=model.tokenizer,
        config=loading,
        position=position,
    )
    live = live_batches(
        stores,
        manifest,
        augmentation=model.train_transform,
        loading=replace(loading, cache="off"),
        position=position,
    )
    return len(next(steered(batches, stores, live=live)).sample_ids)


def _folder(recipe: Recipe, config: dict) -> str:
    """Describe the run's folder; ValueError if it holds a run of another recipe."""
    folder = Path(recipe.output)
    results = read_run_results(folder)
    written = (
        f"writes       {folder}: {RECIPE_FILE}, metrics.jsonl, checkpoints/, model/, {RESULTS_FILE}"
    )
    if results is None and not (folder / RECIPE_FILE).is_file():
        return written + "; a new run"
    if results is not None and extends(recipe, results):
        require_extensible(recipe, config, results)
        goes_on = describe_extension(recipe, part_of(results))
        return f"{written}; extends the run there: {goes_on}"
    before = read_recipe_file(folder) if results is None else results.config
    if changed := config_differences(before, config, may_change=MAY_CHANGE):
        raise ValueError(
            f"{folder} holds a run of another recipe; train in another folder, or remove it:\n  "
            + "\n  ".join(changed)
        )
    if results is not None:
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


def _of_references(recipe: Recipe, stores: Stores, manifest: Manifest) -> Iterable[str]:
    named: list[tuple[str, str, Reference | LiveModel]] = []
    if stores.reference is not None:
        named.append(("reference", " and ".join(recipe.references), stores.reference))
    for folder, teacher in zip(recipe.teachers, stores.teachers, strict=True):
        named.append(("teacher", folder, teacher))
    for kind, folder, store in named:
        yield f"{kind:<12} {folder}: {store.embedding_dim} dimensions, {_kept(store, manifest)}"
        yield from _indented(judged(store, manifest))


def _kept(store: Reference | LiveModel, manifest: Manifest) -> str:
    """Describe what a source of embeddings keeps in memory, and what it computes."""
    if isinstance(store, LiveModel):
        images = "their own" if store.config.images == "own" else "the target's augmented"
        return (
            f"computed for every batch in {store.config.precision} on {images} images, "
            f"{readable_bytes(FLOAT * store.num_parameters)} of weights in memory"
        )
    size = readable_bytes(stored_bytes(manifest.num_samples, store.embedding_dim))
    return f"{store.num_absent:,} samples without embeddings, {size} mapped into memory"


def _indented(judgement: Judgement | None) -> Iterable[str]:
    """Give the lines of a judgement, below what they belong to."""
    lines = [] if judgement is None else str(judgement).splitlines()
    return [f"{'':<12} {line}" for line in lines]


def _of_model(recipe: Recipe, sizes: Sizes, device: torch.device) -> str:
    return (
        f"model        {recipe.model.name}: {sizes.parameters:,} parameters"
        f"{'' if recipe.model.names_weights else ' with random weights'}, on {device}, "
        f"{recipe.training.precision}"
    )


def _of_tuning(recipe: Recipe, model: TwoTower) -> Iterable[str]:
    if words := describe_tuning(recipe.tuning, model.module):
        yield f"tuning       {'; '.join(words)}"
    optimizer = recipe.training.optimizer
    shares = [
        f"{tower} tower times {scale:g}"
        for tower, scale in (("image", optimizer.image_lr_scale), ("text", optimizer.text_lr_scale))
        if scale is not None
    ]
    if optimizer.layer_decay is not None:
        shares.append(f"times {optimizer.layer_decay:g} from a layer to the one before it")
    if shares:
        yield f"rates        {'; '.join(shares)}"


def _of_steps(
    recipe: Recipe, manifest: Manifest, *, steps: int, num_processes: int
) -> Iterable[str]:
    training, optimizer = recipe.training, recipe.training.optimizer
    trained, length = recipe.trained_batch_size, training.num_steps
    num_usable = sum(shard.num_usable for shard in manifest.shards)
    yield (
        f"steps        {length:,} of {trained:,} pairs: {length * trained:,} "
        f"samples seen, {length / steps:.3g} passes over {num_usable:,} usable pairs; "
        f"{-(-recipe.loading.batch_size // num_processes):,} loaded by each of {num_processes} "
        "processes"
    )
    if optimizer.moment_warmup_steps:
        yield (
            f"moments      {optimizer.moment_warmup_steps:,} steps move nothing, and gather the "
            "optimiser's moments and the samples' averages"
        )
    yield (
        f"rate         linear to {optimizer.learning_rate:g} in {optimizer.warmup_steps:,} steps, "
        f"then {optimizer.schedule}; weight decay {optimizer.weight_decay:g}"
    )
    if optimizer.temperature_schedule is not None:
        peak = optimizer.learning_rate * (optimizer.temperature_lr_scale or 1.0)
        yield f"             of the temperature: {peak:g}, {optimizer.temperature_schedule}"
    if recipe.objective.has_averages:
        epochs = length / steps_per_epoch(manifest, batch_size=trained)
        gamma = gamma_schedule(recipe, epochs=epochs)
        yield f"gamma        {gamma(0):.3g} at the start, {gamma(length):.3g} at the end"


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
    activations = "not estimated with gradient_checkpointing"
    if sizes.activations is not None:
        activations = readable_bytes(sizes.activations)
    yield (
        f"memory       of each process, about: model, gradients and optimiser "
        f"{readable_bytes(sizes.model_and_optimizer)}, activations {activations}, images "
        f"{readable_bytes(sizes.images)}, per-sample state {readable_bytes(sizes.per_sample)}"
    )
    yield (
        f"disk         {readable_bytes(sizes.checkpoints)} for "
        f"{recipe.training.keep_checkpoints} checkpoints and the one being written"
    )
