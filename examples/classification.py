"""Classification with wrong training labels: what a reference model is good for.

    python examples/classification.py --seeds 5 --output runs/classification
    python examples/classification.py --data FOLDER   # images in clip_benchmark's folder layout

40 % of the training labels are replaced by a random class. A reference, of the target's
architecture, learns from 200 clean samples that the target does not see; its losses on the
training samples are computed once and kept in a tensor, by sample index. Then the same target is
trained from the same weights, for the same number of steps, by each method:

| method | what counts |
|---|---|
| plain | all samples of a batch equally |
| DRO | samples with large losses |
| RHO-LOSS | the samples of a super-batch with the largest excess losses, equally |
| DRRho | samples with large excess losses: DRO of the difference to the reference |
| plain, clean too | all samples equally, the reference's among them: its data without steering |

Every step takes the gradient at 64 samples; RHO-LOSS passes a super-batch forward on top of that.
For every method alike, the weights with the best accuracy on 200 clean validation samples are
kept. Every seed draws its own split, noise, weights and batches; the test samples are always the
same. METHODS was chosen from CANDIDATES, three for each method, by their accuracy on validation
(`--tune`), on digits and eurosat together and on seeds that the results do not use.

Needs scikit-learn and Pillow.
"""

import argparse
import copy
import json
import math
import statistics
import sys
import tarfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from scipy import stats
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import drrho
from drrho.plotting.table import markdown_table
from drrho.steering.selection import select_top_k, selection_scores

BATCH = 64
EVALUATE_EVERY = 20  # steps
NOISE = 0.4  # share of training labels that are replaced
NUM_CLEAN = NUM_VALIDATION = 200
TUNING_SEEDS = range(100, 105)


class Method(NamedTuple):
    """A risk; of the excess loss or the loss; of a batch or of one selected from several."""

    risk: drrho.RiskMeasure
    excess: bool = False
    super_batch: int = 1  # in batches; more than one selects the largest excess losses
    clean_too: bool = False
    learning_rate: float = 2e-3


METHODS = {
    "plain": Method(drrho.Mean()),
    "DRO, CVaR": Method(drrho.CVaR(fraction=0.8)),
    "DRO, KL": Method(drrho.KL(temperature=16.0)),
    "RHO-LOSS": Method(drrho.Mean(), super_batch=4),
    "DRRho, CVaR": Method(drrho.CVaR(fraction=0.5), excess=True),
    "DRRho, KL": Method(drrho.KL(temperature=4.0), excess=True),
    "plain, clean too": Method(drrho.Mean(), clean_too=True, learning_rate=1e-3),
}
RATES, FRACTIONS, TEMPERATURES = (1e-3, 2e-3, 4e-3), (0.3, 0.5, 0.8), (1.0, 4.0, 16.0)
CANDIDATES = {
    **{f"plain, rate {r}": Method(drrho.Mean(), learning_rate=r) for r in RATES},
    **{f"DRO, CVaR {a}": Method(drrho.CVaR(fraction=a)) for a in FRACTIONS},
    **{f"DRO, KL {t}": Method(drrho.KL(temperature=t)) for t in TEMPERATURES},
    **{f"RHO-LOSS {k}": Method(drrho.Mean(), super_batch=k) for k in (2, 3, 4)},
    **{f"DRRho, CVaR {a}": Method(drrho.CVaR(fraction=a), excess=True) for a in FRACTIONS},
    **{f"DRRho, KL {t}": Method(drrho.KL(temperature=t), excess=True) for t in TEMPERATURES},
    **{
        f"clean too, rate {r}": Method(drrho.Mean(), clean_too=True, learning_rate=r) for r in RATES
    },
}


class Samples(NamedTuple):
    """Inputs (n, channels, side, side) and labels (n,)."""

    inputs: Tensor
    labels: Tensor

    def at(self, index: Tensor) -> "Samples":
        return Samples(self.inputs[index], self.labels[index])


def digits() -> tuple[Samples, Samples]:
    """scikit-learn's 1,797 handwritten digits of 8 x 8 pixels, of which 600 are for the test."""
    data = load_digits()
    samples = Samples(torch.tensor(data.images / 16).float()[:, None], torch.tensor(data.target))
    order = torch.randperm(len(data.target), generator=torch.Generator().manual_seed(0))
    return samples.at(order[600:]), samples.at(order[:600])


def read_images(folder: Path) -> Samples:
    """The images of a folder of tar files, as 16 x 16 pixels, and their .cls labels."""
    images, labels = {}, {}
    for path in sorted(folder.glob("*.tar")):
        with tarfile.open(path) as shard:
            for member in shard:
                key, _, kind = f"{path.name}/{member.name}".rpartition(".")
                if kind == "cls":
                    labels[key] = int(shard.extractfile(member).read())
                elif kind in ("jpg", "png", "webp"):
                    image = Image.open(shard.extractfile(member)).convert("RGB")
                    images[key] = np.array(image.resize((16, 16), Image.Resampling.BOX))
    if not images:
        raise FileNotFoundError(f"{folder} has no .tar files with images and .cls labels")
    pixels = torch.from_numpy(np.stack([images[key] for key in labels])).permute(0, 3, 1, 2)
    return Samples(pixels / 255, torch.tensor(list(labels.values())))


def standardised(samples: Samples, like: Samples) -> Samples:
    """Channels of mean 0 and deviation 1 in the samples `like`."""
    deviation, mean = torch.std_mean(like.inputs, dim=(0, 2, 3), keepdim=True)
    return samples._replace(inputs=(samples.inputs - mean) / deviation)


def small_cnn(like: Samples) -> nn.Module:
    channels, side = like.inputs.shape[1:3]
    return nn.Sequential(
        *(nn.Conv2d(channels, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(32 * (side // 4) ** 2, 64), nn.ReLU()),
        nn.Linear(64, int(like.labels.max()) + 1),
    )


def losses_of(model: nn.Module, samples: Samples) -> Tensor:
    return cross_entropy(model(samples.inputs), samples.labels, reduction="none")


@torch.no_grad()
def accuracy(model: nn.Module, samples: Samples) -> float:
    return (model(samples.inputs).argmax(dim=1) == samples.labels).double().mean().item()


@torch.no_grad()
def log_likelihood(model: nn.Module, samples: Samples) -> float:
    return -losses_of(model, samples).mean().item()


class Data(NamedTuple):
    """What a model is trained with, and `wrong` (n,): which labels are not the true ones, which
    no method knows. Reference losses (n,) are by sample index; None where no method needs them.
    """

    train: Samples
    validation: Samples
    wrong: Tensor
    reference_losses: Tensor | None = None


Score = Callable[[nn.Module, Samples], float]


def train(
    data: Data, method: Method, *, seed: int, steps: int, score: Score = accuracy
) -> tuple[nn.Module, float]:
    """The best model on validation, and the share of all weight that wrong labels had."""
    torch.manual_seed(seed)  # for the first weights
    model = small_cnn(data.validation)
    optimizer = torch.optim.AdamW(model.parameters(), lr=method.learning_rate)
    steering = drrho.DRRhoLoss(method.risk)
    generator = torch.Generator().manual_seed(seed)
    best, best_weights, weight_on_wrong = -math.inf, {}, 0.0
    for step in range(1, steps + 1):
        index = torch.randperm(len(data.wrong), generator=generator)[: BATCH * method.super_batch]
        if method.super_batch > 1:
            with torch.no_grad():
                losses = losses_of(model, data.train.at(index))
            scores = selection_scores("excess", losses, data.reference_losses[index])
            index = index[select_top_k(scores, BATCH).index]
        losses = losses_of(model, data.train.at(index))
        steered = steering(losses, data.reference_losses[index] if method.excess else None)
        optimizer.zero_grad()
        steered.loss.backward()
        optimizer.step()

        weight_on_wrong += steered.weights[data.wrong[index]].sum().item() / steps
        if step % EVALUATE_EVERY == 0 and (now := score(model, data.validation)) > best:
            best, best_weights = now, copy.deepcopy(model.state_dict())
    model.load_state_dict(best_weights)
    return model, weight_on_wrong


def prepare(samples: Samples, *, seed: int, steps: int) -> tuple[nn.Module, Data, Data]:
    """The reference, the noisy data, and these together with the reference's clean samples."""
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(samples.labels), generator=generator)
    parts = order.tensor_split([NUM_CLEAN, NUM_CLEAN + NUM_VALIDATION])
    clean, validation, true = (samples.at(index) for index in parts)
    n, num_classes = len(true.labels), int(true.labels.max()) + 1
    drawn = torch.randint(num_classes, (n,), generator=generator)
    labels = torch.where(torch.rand(n, generator=generator) < NOISE, drawn, true.labels)
    noisy, wrong = true._replace(labels=labels), labels != true.labels

    # Kept by likelihood, as its losses are what counts; with weights and batches of its own.
    alone = Data(clean, validation, wrong=torch.zeros(NUM_CLEAN, dtype=torch.bool))
    plain = METHODS["plain"]
    reference, _ = train(alone, plain, seed=seed + 1000, steps=steps, score=log_likelihood)
    with torch.no_grad():
        reference_losses = losses_of(reference, noisy)
    both = Samples(*map(torch.cat, zip(noisy, clean, strict=True)))
    return (
        reference,
        Data(noisy, validation, wrong, reference_losses),
        Data(both, validation, torch.cat([wrong, alone.wrong])),
    )


def compare(
    methods: dict[str, Method],
    samples: Samples,
    test: Samples | None,
    *,
    seeds: Sequence[int],
    steps: int,
) -> dict[str, dict[str, list[float]]]:
    """By method, one number for each seed. Without test samples, accuracy is on validation."""
    results = {name: {"accuracy": [], "weight on wrong": []} for name in ("reference", *methods)}
    for seed in seeds:
        reference, noisy, both = prepare(samples, seed=seed, steps=steps)
        unseen = noisy.validation if test is None else test
        results["reference"]["accuracy"].append(accuracy(reference, unseen))
        for name, method in methods.items():
            data = both if method.clean_too else noisy
            model, on_wrong = train(data, method, seed=seed, steps=steps)
            results[name]["accuracy"].append(accuracy(model, unseen))
            results[name]["weight on wrong"].append(on_wrong)
            print(f"seed {seed}, {name}: {results[name]['accuracy'][-1]:.3f}", file=sys.stderr)
    return results


def interval(values: Sequence[float]) -> str:
    """The mean and its 95 % interval (Student's t), in percent."""
    half = stats.t.ppf(0.975, len(values) - 1) * stats.sem(values)
    return f"{100 * statistics.fmean(values):.1f} ± {100 * half:.1f}"


def table(results: dict[str, dict[str, list[float]]], methods: dict[str, Method]) -> str:
    """The first method is what the others are compared with, seed by seed."""
    first = next(iter(methods))
    rows = []
    for name, result in results.items():
        pairs = zip(result["accuracy"], results[first]["accuracy"], strict=True)
        gain = "" if name == first else interval([one - plain for one, plain in pairs])
        row = [name, interval(result["accuracy"]), gain, "", ""]
        if name in methods:
            super_batch = methods[name].super_batch
            forward = BATCH * (super_batch + 1 if super_batch > 1 else 1)
            row[3:] = [f"{100 * statistics.fmean(result['weight on wrong']):.0f}", f"{forward}"]
        rows.append(row)
    header = ["method", "accuracy, %", f"over {first}", "weight on wrong labels, %", "forward"]
    return markdown_table(header, rows)


def main(arguments: Sequence[str] | None = None) -> dict[str, dict[str, list[float]]]:
    parser = argparse.ArgumentParser(description="Classification with wrong training labels.")
    parser.add_argument("--data", type=Path, help="folder with train/ and test/; without: digits")
    parser.add_argument("--seeds", type=int, default=5, help="at least 2")
    parser.add_argument("--steps", type=int, default=400, help="of every training")
    parser.add_argument("--output", type=Path, help="folder for results.json and results.md")
    parser.add_argument("--tune", action="store_true", help="compare CANDIDATES on validation")
    options = parser.parse_args(arguments)
    if options.seeds < 2:
        parser.error(f"an interval needs at least 2 seeds, got {options.seeds}")
    if options.steps < EVALUATE_EVERY:
        parser.error(f"validation is every {EVALUATE_EVERY} steps, got {options.steps} steps")
    if options.data is None:
        samples, test = digits()
    else:
        samples, test = read_images(options.data / "train"), read_images(options.data / "test")
    samples, test = standardised(samples, samples), standardised(test, samples)
    methods, seeds = METHODS, range(options.seeds)
    if options.tune:
        methods, seeds, test = CANDIDATES, TUNING_SEEDS, None
    results = compare(methods, samples, test, seeds=seeds, steps=options.steps)
    print(table(results, methods))
    if options.output is not None:
        options.output.mkdir(parents=True, exist_ok=True)
        (options.output / "results.json").write_text(json.dumps(results, indent=1) + "\n")
        (options.output / "results.md").write_text(table(results, methods) + "\n", encoding="utf-8")
    return results


if __name__ == "__main__":
    torch.set_num_threads(1)  # tensors this small are not worth dividing
    main()
