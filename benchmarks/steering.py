"""What steering with a stored reference adds to a training step.

    python benchmarks/steering.py > benchmarks/steering.md

Three runs of one model are in one process and take turns step by step, on the same batches: CLIP,
FastCLIP, and DRRho-CLIP with a stored reference. A step is the look-up of the reference's rows, the
forward and backward passes of both towers, the loss and the update; images are decoded beforehand,
so that reading hides nothing. What counts is processor time, which other work on the machine
disturbs less than it does the clock on the wall. Progress goes to standard error.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import cycle, islice
from pathlib import Path

import numpy as np
from measuring import machine
from small_clip import write_small_clip

from drrho.contrastive.config import ObjectiveConfig, named_objective
from drrho.contrastive.objective import ContrastiveObjective
from drrho.data.batch import Batch
from drrho.data.indexing import index_shards, open_manifest
from drrho.data.loading import LoadingConfig, Position, training_batches
from drrho.data.manifest import Manifest
from drrho.data.scenes import ScenesConfig, write_scenes
from drrho.distributed import Processes
from drrho.models.build import ModelConfig, build_model
from drrho.run.recipe import Recipe
from drrho.run.reference import PrecomputeConfig, precompute_reference
from drrho.run.steered import Stores, steered
from drrho.run.step import ContrastiveStep, Towers
from drrho.training.config import TrainingConfig
from drrho.training.optimizer import OptimizerConfig, build_optimizer
from drrho.training.state import TrainingState
from drrho.training.step import take_step

SIZES = {
    "ViT 4 x 192, batch 64": (192, 128, 64),
    "ViT 4 x 192, batch 256": (192, 128, 256),
    "ViT 4 x 384, batch 128": (384, 512, 128),
}
SAMPLES, BATCHES, WARM_UP = 2_048, 4, 3
RUNS = {
    "CLIP": named_objective("openclip", temperature=0.07),
    "FastCLIP": ObjectiveConfig(method="fastclip"),
    "DRRho-CLIP": ObjectiveConfig(method="drrho_clip"),
}


def architecture(width: int, dim: int) -> dict:
    towers = {"layers": 4, "width": width}
    return {
        "embed_dim": dim,
        "vision_cfg": {"image_size": 64, "patch_size": 16, **towers},
        "text_cfg": {"context_length": 32, "vocab_size": 49408, "heads": 2, **towers},
    }


def stepper(
    objective: ObjectiveConfig, name: str, batches: list[Batch], *, stores: Stores, folder: Path
) -> Callable[[], None]:
    """Takes the next step of a run whenever it is called."""
    model = build_model(ModelConfig(name=name), seed=0)
    loss = ContrastiveObjective(objective, num_samples=SAMPLES)
    config = TrainingConfig(steps=1_000_000)
    state = TrainingState(
        folder=folder,
        model=model.module,
        loss=loss,
        optimizer=build_optimizer(model.module, OptimizerConfig(learning_rate=1e-3), loss=loss),
        config={},
        seed=0,
        processes=Processes(),
    )
    step = ContrastiveStep(towers=Towers(model.module), loss=loss, gamma=lambda _: 0.9)
    stream = steered(cycle(batches), stores)

    def call() -> None:
        take_step(
            step,
            next(stream),
            state=state,
            config=config,
            learning_rate=lambda _: 1e-4,
            diagnose=False,
        )

    return call


def processor_seconds(calls: list[Callable[[], None]], *, rounds: int) -> np.ndarray:
    """(rounds, calls); the order turns round from one round to the next."""
    for call in calls:
        for _ in range(WARM_UP):
            call()
    seconds = np.empty((rounds, len(calls)))
    for row in range(rounds):
        order = range(len(calls)) if row % 2 == 0 else reversed(range(len(calls)))
        for k in order:
            start = time.process_time()
            calls[k]()
            seconds[row, k] = time.process_time() - start
    return seconds


def difference(seconds: np.ndarray, base: np.ndarray, rng: np.random.Generator) -> str:
    """By how much the median step is longer, in %, and the 95 % interval of that."""
    rows = rng.integers(len(base), size=(2_000, len(base)))
    drawn = 100 * (np.median(seconds[rows], axis=1) / np.median(base[rows], axis=1) - 1)
    low, high = np.quantile(drawn, [0.025, 0.975])
    value = 100 * (np.median(seconds) / np.median(base) - 1)
    return f"{value:+.2f} % | {low:+.2f} to {high:+.2f}"


def measured(folder: Path, data: Manifest, size: str, *, rounds: int) -> Iterator[str]:
    """Rows of the table."""
    width, dim, batch_size = SIZES[size]
    folder.mkdir()
    write_small_clip(folder / "model", architecture(width, dim))
    name = f"local-dir:{folder}/model"
    reference = str(folder / "reference")
    precompute_reference(
        PrecomputeConfig(data=str(folder.parent / "data"), model=name, output=reference)
    )
    model = build_model(ModelConfig(name=name), seed=0)
    stream = training_batches(
        data,
        model.train_transform,
        tokenizer=model.tokenizer,
        config=LoadingConfig(batch_size=batch_size),
        position=Position(seed=0),
    )
    batches = list(islice(stream, BATCHES))
    recipe = Recipe(output=str(folder), data="")
    calls = []
    for run, objective in RUNS.items():
        used = replace(recipe, reference=reference if objective.needs_reference else None)
        stores = Stores.open(used, data)
        calls.append(stepper(objective, name, batches, stores=stores, folder=folder / run))
    seconds = processor_seconds(calls, rounds=rounds)
    rng = np.random.default_rng(0)
    for k, run in enumerate(RUNS):
        median = 1_000 * np.median(seconds[:, k])
        compared = "| " if k == 1 else difference(seconds[:, k], seconds[:, 1], rng)
        yield f"| {size} | {run} | {median:.1f} | {compared} |"
        print(f"{time.strftime('%H:%M:%S')} {size}, {run}: {median:.1f} ms", file=sys.stderr)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=200)
    options = parser.parse_args()
    described = machine()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_scenes(folder / "data", ScenesConfig(num_samples=SAMPLES, seed=0))
        index_shards(folder / "data").save(folder / "data" / "manifest.json")
        data = open_manifest(str(folder / "data"))
        rows = [
            row
            for k, size in enumerate(SIZES)
            for row in measured(folder / str(k), data, size, rounds=options.rounds)
        ]
    lines = [
        "# What steering adds to a step",
        "",
        f"`python benchmarks/steering.py --rounds {options.rounds}`. {described}",
        f"Processor time of a step, both threads together; median of {options.rounds} steps that",
        "alternate with the other runs'. Beside FastCLIP, which has the same loss without a",
        "reference, with the 95 % bootstrap interval of the difference.",
        "",
        "| | run | ms | beside FastCLIP | interval |",
        "|---|---|---:|---:|---|",
        *rows,
    ]
    print("\n".join(lines))


if __name__ == "__main__":
    main()
