"""The recipe of `drrho steer`: a stated function of the sizes of data and model, and the device.

docs/guides/steering.md has the same rules in words.
"""

import math
from dataclasses import replace
from pathlib import Path

import torch

from drrho.contrastive.objectives.global_risk import DRRhoCLIP, FastCLIP
from drrho.data.loading import Loading
from drrho.models.build import Model
from drrho.recipe.arguments.override import changed_kind
from drrho.recipe.named.finetune import FineTuningScale, finetune_recipe
from drrho.recipe.recipe import Evaluation, Recipe
from drrho.runtime.launch import resolve_device
from drrho.studies.steer.config import SteerConfig, SteerFiles
from drrho.studies.steer.steps import held_out_pairs, training_pairs
from drrho.training.config import Training, fastest_precision
from drrho.training.optimizer import Optimizer

LARGEST_BATCH = {"cpu": 256, "cuda": 512}
BATCHES_IN_EPOCH = 4  # at least, so that an epoch is several steps
# Passes over 36,000 pairs; of fewer pairs more passes, with the root of their number.
PAIRS, FROM_START, FINE_TUNED = 36_000, (10, 10, 60), (5, 5, 20)  # passes, fewest, most
SMALL_PARAMETERS = 20_000_000
EVALUATIONS, CHECKPOINTS, LOG_ROWS = 4, 10, 100


def choose_recipe(
    config: SteerConfig, files: SteerFiles, *, num_pairs: int, parameters: int
) -> tuple[Recipe, list[str]]:
    """Choose the recipe for so many training pairs and a model of so many parameters.

    Returns:
        The recipe, and a line for each value that was chosen.

    Raises:
        ValueError: there are fewer than 8 pairs.
    """
    model, device = config.target_model, resolve_device(config.device)
    batch_size = _batch_size(config, num_pairs, device)
    epochs = _epochs(config, num_pairs, fine_tuned=model.names_weights)
    steps = max(1, round(epochs * (num_pairs // batch_size)))
    rate = _learning_rate(model, parameters)
    precision = fastest_precision(device)
    kind = "fine-tuned" if model.names_weights else "trained from random weights"
    base = _from_start(model, batch_size, rate)
    if model.names_weights:
        scale = FineTuningScale(
            batch_size=batch_size, samples_seen=steps * batch_size, learning_rate=rate
        )
        base = finetune_recipe(scale, model=model)
    recipe = replace(
        base,
        output=str(files.run),
        data=str(training_pairs(config, files)),
        reference=str(files.reference),
        loading=replace(base.loading, workers=config.workers),
        training=replace(
            base.training,
            steps=steps,
            epochs=None,
            precision=precision,
            optimizer=replace(base.training.optimizer, warmup_steps=min(500, steps // 10)),
            log_every=max(1, steps // LOG_ROWS),
            evaluate_every=max(1, steps // EVALUATIONS),
            checkpoint_every=max(1, steps // CHECKPOINTS),
        ),
        evaluation=Evaluation(data=str(held_out_pairs(config, files))),
        seed=config.seed,
        device=config.device,
    )
    notes = [
        f"batch of {batch_size:,}: the largest power of two that is at most a quarter of the "
        f"{num_pairs:,} training pairs and {LARGEST_BATCH[_kind(device)]} on this device"
        if config.batch_size is None
        else f"batch of {batch_size:,}: as asked for",
        f"{steps:,} steps: {epochs:.3g} passes, "
        + ("as asked for" if config.epochs is not None else "more where there are fewer pairs"),
        f"learning rate {rate:g}: the model has {parameters:,} parameters and is {kind}",
        f"temperature {recipe.objective.temperature.initial:g}: "
        + ("of the recipe `finetune`" if model.names_weights else "the default"),
        f"{precision}: what this device has instructions for",
    ]
    return recipe, notes


def _from_start(model: Model, batch_size: int, rate: float) -> Recipe:
    return Recipe(
        output="runs/steered",
        data="train.json",
        reference="reference",
        model=model,
        loading=Loading(batch_size=batch_size),
        objective=DRRhoCLIP(),
        training=Training(steps=1, optimizer=Optimizer(learning_rate=rate, weight_decay=0.1)),
    )


def plain_recipe(recipe: Recipe, output: Path) -> Recipe:
    """Return the same run without the reference: FastCLIP, DRRho-CLIP's special case.

    Raises:
        ValueError: the recipe has another objective than DRRho-CLIP, or reads the reference for
            something else.
    """
    if not isinstance(recipe.objective, DRRhoCLIP) or recipe.selection or recipe.filtering:
        raise ValueError(
            "with_plain takes the reference out of DRRhoCLIP; this recipe has another objective, "
            "a selection or a filter: train and compare with `drrho compare`"
        )
    values = vars(recipe) | {
        "output": str(output),
        "objective": changed_kind(recipe.objective, FastCLIP),
        "reference": None,
        "reference_weights": None,
        "missing_reference": "leave_out",
    }
    return Recipe(**values)


def _batch_size(config: SteerConfig, num_pairs: int, device: torch.device) -> int:
    if config.batch_size is not None:
        return config.batch_size
    if num_pairs < 2 * BATCHES_IN_EPOCH:
        raise ValueError(f"{num_pairs} training pairs are too few to train on; give more data")
    largest = min(LARGEST_BATCH[_kind(device)], num_pairs // BATCHES_IN_EPOCH)
    return 2 ** int(math.log2(largest))


def _epochs(config: SteerConfig, num_pairs: int, *, fine_tuned: bool) -> float:
    if config.epochs is not None:
        return config.epochs
    passes, fewest, most = FINE_TUNED if fine_tuned else FROM_START
    return min(most, max(fewest, round(passes * math.sqrt(PAIRS / num_pairs))))


def _learning_rate(model: Model, parameters: int) -> float:
    if model.names_weights:
        return 1e-5
    return 1e-3 if parameters < SMALL_PARAMETERS else 1e-4


def _kind(device: torch.device) -> str:
    return "cuda" if device.type == "cuda" else "cpu"
