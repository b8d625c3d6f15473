"""DRRho in a training loop of your own: the loop to copy, and what it does on a small task.

    python examples/your_own_loop.py --seeds 10 --output runs/your_own_loop

`train` is the loop. What it has and many loops have not: the data set gives every sample's index,
by which the reference's losses are looked up; `DRRhoLoss` weighs a batch, here one of four
micro-batches; and it is saved with the model, as its moving average is part of the training.

The task: 10 classes, each three Gaussian clusters in 20 dimensions, and 1,024 training samples of
which 40 % have their label replaced by a random one. The reference is weaker than the target, a
linear model, and was fitted to 300 other samples with true labels. All methods make the same number
of steps with gradients at 64 samples; RHO-LOSS passes 128 forward on top of that. The temperatures
(of 0.5, 1, 2 and 4) and RHO-LOSS's super-batch (of 2 and 4 batches) were chosen for each method on
seeds 100 to 103. Without a reference, the highest temperature, the nearest to plain, was the best.

Needs SciPy.
"""

import argparse
import copy
import json
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from scipy import stats
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

import drrho
from drrho.plotting.table import markdown_table
from drrho.steering.selection import select_top_k, selection_scores

BATCH, MICRO_BATCH = 64, 16
DIMENSIONS, CLASSES, CLUSTERS = 20, 10, 3


def batches_of(data: TensorDataset, size: int, *, seed: int) -> DataLoader:
    order = torch.Generator().manual_seed(seed)
    return DataLoader(data, size, shuffle=True, drop_last=True, generator=order)


def train(
    model: nn.Module,
    batches: DataLoader,
    loss: drrho.DRRhoLoss,
    reference_losses: Tensor | None,
    *,
    epochs: int,
    checkpoint: Path | None = None,
) -> None:
    """Continues at the checkpoint if there is one, and then ends as if never interrupted."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    start = 0
    if checkpoint is not None and checkpoint.exists():
        saved = torch.load(checkpoint)
        model.load_state_dict(saved["model"])
        loss.load_state_dict(saved["loss"])
        optimizer.load_state_dict(saved["optimizer"])
        batches.generator.set_state(saved["order"])
        start = saved["epoch"]

    def losses_of(samples: Sequence[Tensor]) -> drrho.Losses:
        x, y, index = samples
        losses = cross_entropy(model(x), y, reduction="none")
        return drrho.Losses(losses, None if reference_losses is None else reference_losses[index])

    for epoch in range(start, epochs):
        for batch in batches:
            micro_batches = zip(*(part.split(MICRO_BATCH) for part in batch), strict=True)
            optimizer.zero_grad()
            steered = drrho.accumulate_gradients(loss, micro_batches, losses_of)
            optimizer.step()
        print(
            f"epoch {epoch + 1}: objective {sum(part.loss.item() for part in steered):.3f},"
            f" effective sample size {steered[0].effective_sample_size:.1f} of {BATCH},"
            f" sum of weights {steered[0].weight_sum:.2f}",
            file=sys.stderr,
        )
        if checkpoint is not None:
            saved = {"model": model.state_dict(), "loss": loss.state_dict(), "epoch": epoch + 1}
            saved |= {"optimizer": optimizer.state_dict(), "order": batches.generator.get_state()}
            torch.save(saved, checkpoint)


def train_rho_loss(
    model: nn.Module, super_batches: DataLoader, reference_losses: Tensor, *, epochs: int
) -> None:
    """RHO-LOSS, to compare with: of every super-batch, a batch of the largest excess losses."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    for _ in range(epochs):
        for x, y, index in super_batches:
            with torch.no_grad():
                losses = cross_entropy(model(x), y, reduction="none")
            scores = selection_scores("excess", losses, reference_losses[index])
            chosen, weights = select_top_k(scores, BATCH)
            optimizer.zero_grad()
            losses = cross_entropy(model(x[chosen]), y[chosen], reduction="none")
            (weights * losses).sum().backward()
            optimizer.step()


class Task(NamedTuple):
    """`train` has replaced labels; the reference learns from `clean`."""

    train: TensorDataset
    clean: TensorDataset
    test: TensorDataset


def draw_task(seed: int) -> Task:
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(CLASSES * CLUSTERS, DIMENSIONS, generator=generator)

    def draw(n: int, *, noise: float) -> TensorDataset:
        cluster = torch.randint(len(centres), (n,), generator=generator)
        x = centres[cluster] + torch.randn(n, DIMENSIONS, generator=generator)
        drawn = torch.randint(CLASSES, (n,), generator=generator)
        replaced = torch.rand(n, generator=generator) < noise
        return TensorDataset(x, torch.where(replaced, drawn, cluster % CLASSES), torch.arange(n))

    return Task(draw(1024, noise=0.4), draw(300, noise=0.0), draw(5000, noise=0.0))


@torch.no_grad()
def accuracy(model: nn.Module, data: TensorDataset) -> float:
    x, y, _ = data.tensors
    return (model(x).argmax(dim=1) == y).double().mean().item()


def averaged_kl(temperature: float) -> drrho.DRRhoLoss:
    return drrho.DRRhoLoss(drrho.KL(temperature=temperature), drrho.MovingAverage(rate=0.1))


def compare_once(seed: int, *, epochs: int) -> dict[str, float]:
    """Test accuracies by method, all from the same weights."""
    task = draw_task(seed)
    torch.manual_seed(seed)  # for the first weights
    reference = nn.Linear(DIMENSIONS, CLASSES)
    target = nn.Sequential(nn.Linear(DIMENSIONS, 128), nn.ReLU(), nn.Linear(128, CLASSES))
    clean = batches_of(task.clean, BATCH, seed=seed)
    train(reference, clean, drrho.DRRhoLoss(drrho.Mean()), None, epochs=100)
    x, y, _ = task.train.tensors
    with torch.no_grad():
        reference_losses = cross_entropy(reference(x), y, reduction="none")

    found = {"reference": accuracy(reference, task.test)}
    for name, loss, used in [
        ("plain", drrho.DRRhoLoss(drrho.Mean()), None),
        ("DRO", averaged_kl(temperature=4.0), None),
        ("DRRho", averaged_kl(temperature=2.0), reference_losses),
    ]:
        print(f"seed {seed}, {name}", file=sys.stderr)
        model = copy.deepcopy(target)
        train(model, batches_of(task.train, BATCH, seed=seed), loss, used, epochs=epochs)
        found[name] = accuracy(model, task.test)
    model = copy.deepcopy(target)
    # Twice the epochs of half as many batches, so the same number of steps.
    super_batches = batches_of(task.train, 2 * BATCH, seed=seed)
    train_rho_loss(model, super_batches, reference_losses, epochs=2 * epochs)
    found["RHO-LOSS"] = accuracy(model, task.test)
    return found


def interval(values: Sequence[float]) -> str:
    """The mean and its 95 % interval (Student's t), in percent."""
    half = stats.t.ppf(0.975, len(values) - 1) * stats.sem(values)
    return f"{100 * statistics.fmean(values):.1f} ± {100 * half:.1f}"


def main(arguments: Sequence[str] | None = None) -> dict[str, list[float]]:
    parser = argparse.ArgumentParser(description="DRRho in a training loop of your own.")
    parser.add_argument("--seeds", type=int, default=10, help="tasks, at least 2")
    parser.add_argument("--epochs", type=int, default=20, help="of 16 steps")
    parser.add_argument("--output", type=Path, help="folder for results.json and results.md")
    options = parser.parse_args(arguments)
    if options.seeds < 2:
        parser.error(f"an interval needs at least 2 seeds, got {options.seeds}")
    found = [compare_once(seed, epochs=options.epochs) for seed in range(options.seeds)]
    accuracies = {name: [run[name] for run in found] for name in found[0]}
    gains = {name: [run[name] - run["plain"] for run in found] for name in found[0]}
    rows = [
        [name, interval(values), "" if name == "plain" else interval(gains[name])]
        for name, values in accuracies.items()
    ]
    table = markdown_table(["method", "test accuracy, %", "over plain"], rows)
    print(table)
    if options.output is not None:
        options.output.mkdir(parents=True, exist_ok=True)
        (options.output / "results.json").write_text(json.dumps(accuracies, indent=1) + "\n")
        (options.output / "results.md").write_text(table + "\n", encoding="utf-8")
    return accuracies


if __name__ == "__main__":
    torch.set_num_threads(1)  # tensors this small are not worth dividing
    main()
