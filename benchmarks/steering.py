"""What steering with a stored reference adds to a training step.

    python benchmarks/steering.py > benchmarks/steering.md

FastCLIP, and DRRho-CLIP with a stored reference, are the same run without and with steering. Both
are in one process and take turns, on the same batches, which were decoded beforehand so that
reading hides nothing. The difference of two whole steps is small beside what a shared machine adds
to each, so what makes it up is measured by itself as well: the look-up of the reference's rows, and
the forward and backward passes of the loss from the same embeddings. What counts is processor time
of one thread. Progress goes to standard error.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import cycle, islice
from pathlib import Path

import numpy as np
import torch
from measuring import machine
from small_clip import write_small_clip
from torch.nn.functional import normalize

from drrho.contrastive.objectives.global_risk import DRRhoCLIP, FastCLIP
from drrho.contrastive.objectives.objective import ContrastiveObjective
from drrho.contrastive.pairs import PairEmbeddings
from drrho.data.indexing import index_shards, open_manifest
from drrho.data.loading import Loading, Position, training_batches
from drrho.data.manifest import Manifest
from drrho.data.scenes import ScenesConfig, write_scenes
from drrho.models.build import Model, build_model
from drrho.models.two_tower import TwoTower
from drrho.recipe.batches import SteeredBatch, Stores, steered
from drrho.recipe.step import ContrastiveStep, Towers
from drrho.reference.build import PrecomputeConfig, precompute_reference
from drrho.reference.reader import open_reference
from drrho.runtime.distributed import Processes
from drrho.training.config import Training
from drrho.training.optimizer import Optimizer, build_optimizer
from drrho.training.state import TrainingState
from drrho.training.step import take_step

BATCH_SIZES = (64, 256)
SAMPLES, DIM, WARM_UP = 2_048, 128, 2
WIDTHS = {"layers": 4, "width": 192}
MODEL = {
    "embed_dim": DIM,
    "vision_cfg": {"image_size": 64, "patch_size": 16, **WIDTHS},
    "text_cfg": {"context_length": 32, "vocab_size": 49408, "heads": 2, **WIDTHS},
}
RUNS = {False: FastCLIP(), True: DRRhoCLIP()}
Call = Callable[[], object]


def whole_step(
    loss: ContrastiveObjective, model: TwoTower, stream: Iterator[SteeredBatch], folder: Path
) -> Call:
    """Takes the next step of a run whenever it is called, the look-up included."""
    optimizer = Optimizer(learning_rate=1e-4)
    state = TrainingState(
        folder=folder,
        model=model.module,
        loss=loss,
        optimizer=build_optimizer(model.module, optimizer, loss=loss),
        config={},
        seed=0,
        processes=Processes(),
    )
    objective = ContrastiveStep(towers=Towers(model.module), loss=loss, gamma=lambda _: 0.9)
    config = Training(steps=1_000_000, optimizer=optimizer)

    def call() -> None:
        take_step(
            objective,
            next(stream),
            state=state,
            config=config,
            learning_rate=lambda _: 1e-4,
            diagnose=False,
        )

    return call


def loss_alone(loss: ContrastiveObjective, batch: SteeredBatch) -> Call:
    """Forward and backward of the loss, from embeddings that have no towers behind them."""
    generator = torch.Generator().manual_seed(0)
    image, text = (
        normalize(torch.randn(len(batch.sample_ids), DIM, generator=generator), dim=1)
        for _ in range(2)
    )
    stored = batch.reference
    reference = None if stored is None else PairEmbeddings(stored.image, stored.text)

    def call() -> None:
        leaves = PairEmbeddings(*(e.clone().requires_grad_() for e in (image, text)))
        value = loss(
            leaves, reference, sample_ids=batch.sample_ids, gamma=0.9, teachers=[], diagnose=False
        )
        value.loss.backward()

    return call


def processor_seconds(calls: Sequence[Call], *, rounds: int) -> np.ndarray:
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


def percent(parts: np.ndarray, steps: np.ndarray) -> str:
    """What the parts' medians, with their signs, add to the median of the plain step, in %, and the
    95 % interval of that; rounds of both are drawn anew.
    """
    signs, rng = np.array([1.0, 1.0, -1.0]), np.random.default_rng(0)

    def share(of_parts: np.ndarray, of_steps: np.ndarray) -> float:
        return 100 * float(np.median(of_parts, axis=0) @ signs / np.median(of_steps))

    drawn = [
        share(parts[rng.integers(len(parts), size=len(parts))], rng.choice(steps, len(steps)))
        for _ in range(2_000)
    ]
    low, high = np.quantile(drawn, [0.025, 0.975])
    return f"{share(parts, steps):.2f} % ({low:.2f} to {high:.2f})"


def difference(seconds: np.ndarray) -> str:
    """By how much the second column's median is larger than the first's, in %, with interval."""
    rng = np.random.default_rng(0)
    drawn = np.median(seconds[rng.integers(len(seconds), size=(2_000, len(seconds)))], axis=1)
    low, high = np.quantile(100 * (drawn[:, 1] / drawn[:, 0] - 1), [0.025, 0.975])
    plain, steered = np.median(seconds, axis=0)
    return f"{100 * (steered / plain - 1):+.2f} % ({low:+.2f} to {high:+.2f})"


def measured(folder: Path, data: Manifest, batch_size: int, *, rounds: int) -> str:
    """A row of the table."""
    name = f"local-dir:{folder}/model"
    model = build_model(Model(name=name), seed=0)
    decoded = training_batches(
        data,
        model.train_transform,
        tokenizer=model.tokenizer,
        config=Loading(batch_size=batch_size),
        position=Position(seed=0),
    )
    batches = list(islice(decoded, 4))
    steps, losses, lookups = [], [], []
    for is_steered, objective in RUNS.items():
        stored = open_reference(folder / "reference", data) if is_steered else None
        stream = steered(cycle(batches), Stores(reference=stored, teachers=()))
        loss = ContrastiveObjective(objective, num_samples=SAMPLES)
        target = build_model(Model(name=name), seed=0)
        steps.append(whole_step(loss, target, stream, folder / str(is_steered)))
        losses.append(loss_alone(loss, next(stream)))
        lookups.append(partial(next, stream))
    whole = processor_seconds(steps, rounds=rounds)
    # The look-up, the steered loss, and the plain one, which takes its place.
    parts = processor_seconds([lookups[1], losses[1], losses[0]], rounds=10 * rounds)
    step = 1_000 * np.median(whole[:, 0])
    lookup, steered_loss, plain_loss = 1_000 * np.median(parts, axis=0)
    print(f"{time.strftime('%H:%M:%S')} batch {batch_size}", file=sys.stderr)
    return (
        f"| {batch_size} | {step:.0f} | {lookup:.2f} | {plain_loss:.2f} | {steered_loss:.2f} | "
        f"{percent(parts, whole[:, 0])} | {difference(whole)} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=100)
    options = parser.parse_args()
    torch.set_num_threads(1)
    described = machine()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_scenes(folder / "data", ScenesConfig(num_samples=SAMPLES, seed=0))
        index_shards(folder / "data").save(folder / "data" / "manifest.json")
        data = open_manifest(str(folder / "data"))
        write_small_clip(folder / "model", MODEL)
        precompute_reference(
            PrecomputeConfig(
                data=str(folder / "data"),
                model=f"local-dir:{folder}/model",
                output=str(folder / "reference"),
                device="cpu",
            )
        )
        rows = [measured(folder, data, size, rounds=options.rounds) for size in BATCH_SIZES]
    lines = [
        "# What steering adds to a step",
        "",
        f"`python benchmarks/steering.py --rounds {options.rounds}`. {described}",
        "Towers of 4 x 192, images of 64 pixels, embeddings of 128. Milliseconds of processor",
        "time, medians; in brackets 95 % bootstrap intervals. FastCLIP is the run without it.",
        "",
        "| batch | FastCLIP, step | look-up | its loss | steered | added, by parts | whole steps |",
        "|---:|---:|---:|---:|---:|---|---|",
        *rows,
    ]
    print("\n".join(lines))


if __name__ == "__main__":
    main()
