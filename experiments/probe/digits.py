"""Validation of `drrho probe` on an image classifier; the plan is in docs/results/probe.md.

    python experiments/probe/digits.py  # 12 references, 5 replicates, some minutes on one core

Needs scikit-learn, for its 1,797 handwritten digits.
"""

import copy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

sys.path.insert(0, str(Path(__file__).parent))
from scoring import Probe, report

from drrho.risk import KL, Mean
from drrho.steering import DRRhoLoss
from drrho.studies.probe.contamination import contamination
from drrho.studies.probe.steerability import bootstrap_weights, loss_moments, rank_references

BATCH, STEPS, PILOT_STEPS, REPLICATES = 64, 300, 150, 5
NOISE, CLASSES, TRAIN = 0.3, 10, 497
TEMPERATURES = (1.0, 4.0, 16.0)
OUTPUT = Path("docs/results/probe/digits")


class Samples(NamedTuple):
    """Inputs (n, 1, 8, 8) and labels (n,)."""

    inputs: Tensor
    labels: Tensor

    def at(self, index: Tensor | slice) -> "Samples":
        return Samples(self.inputs[index], self.labels[index])

    def noisy(self, share: float, generator: torch.Generator) -> "Samples":
        """A share of the labels drawn at random, the right one among them."""
        drawn = torch.randint(CLASSES, self.labels.shape, generator=generator)
        chosen = torch.rand(self.labels.shape, generator=generator) < share
        return self._replace(labels=torch.where(chosen, drawn, self.labels))


def cnn(width: int = 1) -> nn.Module:
    return nn.Sequential(
        *(nn.Conv2d(1, 16 * width, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(16 * width, 32 * width, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(128 * width, 64 * width), nn.ReLU()),
        nn.Linear(64 * width, CLASSES),
    )


def linear() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, CLASSES))


@torch.no_grad()
def losses_of(model: nn.Module, samples: Samples) -> Tensor:
    return cross_entropy(model(samples.inputs), samples.labels, reduction="none").double()


@torch.no_grad()
def risk(model: nn.Module, clean: Samples) -> float:
    """Expected cross-entropy under the label noise."""
    logs = model(clean.inputs).log_softmax(1).double()
    right = logs.gather(1, clean.labels[:, None]).mean()
    return float(-(1 - NOISE) * right - NOISE * logs.mean())


def train(
    samples: Samples,
    *,
    seed: int,
    steps: int = STEPS,
    build: Callable[[], nn.Module] = cnn,
    reference: tuple[Tensor, float] | None = None,
) -> nn.Module:
    """The model after all steps; `reference` is its losses and the temperature."""
    torch.manual_seed(seed)
    model = build()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    risk_measure = Mean() if reference is None else KL(temperature=reference[1])
    steering = DRRhoLoss(risk_measure)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        index = torch.randperm(len(samples.labels), generator=generator)[:BATCH]
        batch = samples.at(index)
        losses = cross_entropy(model(batch.inputs), batch.labels, reduction="none")
        result = steering(losses, None if reference is None else reference[0][index])
        optimizer.zero_grad()
        result.loss.backward()
        optimizer.step()
    return model


def references(pool: Samples) -> dict[str, nn.Module]:
    """All but the memorised one, which depends on the target's samples."""
    generator = torch.Generator().manual_seed(1)
    found = {f"{n} digits": train(pool.at(slice(n)), seed=1000 + n) for n in (50, 100, 200, 400)}
    turned = pool._replace(inputs=pool.inputs.rot90(1, (2, 3)))
    corrupted = copy.deepcopy(found["400 digits"])
    for parameter in corrupted.parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        parameter.data += 0.5 * parameter.data.std() * noise
    return found | {
        "30 steps": train(pool, seed=1501, steps=30),
        "linear": train(pool, seed=1502, build=linear),
        "four times as wide": train(pool, seed=1503, build=lambda: cnn(4)),
        "40 % noise": train(pool.noisy(0.4, generator), seed=1504),
        "80 % noise": train(pool.noisy(0.8, generator), seed=1505),
        "turned": train(turned, seed=1506),
        "corrupted": corrupted,
    }


def main() -> None:
    torch.set_num_threads(1)
    data = load_digits()
    samples = Samples(torch.tensor(data.images / 8 - 1).float()[:, None], torch.tensor(data.target))
    order = torch.randperm(len(data.target), generator=torch.Generator().manual_seed(0))
    test, pool, rest = (samples.at(part) for part in order.tensor_split([600, 1000]))
    fixed = references(pool)
    names = [*fixed, "memorised"]
    seen = dict.fromkeys(names, 400) | {f"{n} digits": n for n in (50, 100, 200)}
    probes, rows = [], []
    for replicate in range(REPLICATES):
        generator = torch.Generator().manual_seed(100 + replicate)
        drawn = rest.at(torch.randperm(len(rest.labels), generator=generator))
        noisy = drawn.noisy(NOISE, generator)
        train_set, held_out = noisy.at(slice(TRAIN)), noisy.at(slice(TRAIN, None))
        halves = [train_set.at(slice(0, 248)), train_set.at(slice(248, 496))]
        pilots = [
            train(half, seed=10 * replicate + k, steps=PILOT_STEPS)
            for k, half in enumerate(halves, start=1)
        ]
        memorised = train(train_set, seed=2000 + replicate, steps=1000)
        models = [*fixed.values(), memorised]
        stored = torch.stack([losses_of(model, train_set) for model in models])
        held = torch.stack([losses_of(model, held_out) for model in models])
        pilot_held = torch.stack([losses_of(pilot, held_out) for pilot in pilots])
        weights = bootstrap_weights(len(held_out.labels), resamples=400, generator=generator)
        found = rank_references(loss_moments(pilot_held, held, weights=weights), names)
        unseen = torch.cat([losses_of(pilots[1], halves[0]), losses_of(pilots[0], halves[1])])

        def alarm(seen: Tensor, unseen: Tensor, generator: torch.Generator = generator) -> bool:
            return contamination(seen, unseen, resamples=1000, generator=generator).alarm

        flagged = {
            name
            for k, name in enumerate(names)
            if alarm(stored[k, :496] - unseen, held[k] - pilot_held.mean(0))
        }
        revised = {
            name
            for k, name in enumerate(names)
            if found[name].too_close or alarm(stored[k], held[k])
        }
        seed = 10 * replicate
        plain = risk(train(train_set, seed=seed), test)
        gains = {"gain": [], "suggested": [], "oracle": []}
        for k, name in enumerate(names):
            reference = stored[k].float()
            tried = [
                train(train_set, seed=seed, reference=(reference, tau))
                for tau in (*TEMPERATURES, found[name].temperature)
            ]
            risks = [risk(model, test) for model in tried]
            validation = [float(losses_of(model, held_out).mean()) for model in tried]
            best = min(range(len(TEMPERATURES)), key=validation.__getitem__)
            gains["gain"].append(plain - risks[best])
            gains["suggested"].append(plain - risks[-1])
            gains["oracle"].append(plain - min(risks[:-1]))
            print(
                f"replicate {replicate + 1} of {REPLICATES}, {name}: plain {plain:.3f}, "
                f"gain {gains['gain'][-1]:.3f}, S {found[name].steerability.value:.3f}",
                file=sys.stderr,
            )
        rows.append(gains | {"plain": plain})
        sizes = [sum(p.numel() for p in model.parameters()) for model in models]
        scores = {
            "S": [found[name].steerability.value for name in names],
            "S, scaled": [found[name].scaled.value for name in names],
            "held-out loss": (-held.mean(1)).tolist(),
            "size": [
                size / 1e6 + seen[name] / 1e9 for size, name in zip(sizes, names, strict=True)
            ],
            "variance ratio": [-found[name].variance_ratio for name in names],
        }
        probes.append(Probe(scores=scores, flagged=flagged, revised=revised))
    report(OUTPUT, names, probes, rows, title="Digits: loss removed")


if __name__ == "__main__":
    main()
