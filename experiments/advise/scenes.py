"""Whole trainings of every arm of `drrho advise` on drawn scenes; docs/results/advise_plan.md.

    python experiments/advise/scenes.py                   # all that is planned
    python experiments/advise/scenes.py --replicates 1    # the first replicate alone
    python experiments/advise/scenes.py --report          # the tables of what is there

Finished runs are kept in runs/advise, and results go to docs/results/advise. A kill loses the run
that was being trained.
"""

import argparse
import hashlib
import io
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import normalize

from drrho.contrastive.objectives.distillation import DistillationTerm
from drrho.contrastive.objectives.global_risk import DRRhoCLIP, FastCLIP
from drrho.contrastive.objectives.objective import ContrastiveObjective
from drrho.contrastive.pairs import PairEmbeddings
from drrho.data.scenes import ScenesConfig, scene_samples
from drrho.evaluation.metrics.ranks import ranks_of_similarities
from drrho.runtime.progress import Progress
from drrho.training.optimizer import Optimizer, build_optimizer, learning_rate_schedule
from drrho.training.schedules import averaging_rate

RUNS = Path("runs/advise")
BATCH, TEMPERATURE, RATE, WARM_UP = 32, 0.07, 3e-3, 10
PAIRS, HELD_OUT, TEST = 1_000, 300, 600
LENGTHS, WRONG = (300, 900), (0.0, 0.3)
VOCABULARY, WIDTH, DIM = 1021, 96, 32
STRENGTHS, SHARES, WEIGHTS = (0.2, 0.5, 1.0), (0.75, 0.5), (0.3, 1.0)


@dataclass(frozen=True, kw_only=True)
class Source:
    """What a reference is trained on, and for how long."""

    scenes: ScenesConfig
    steps: int


def references(seed: int) -> dict[str, Source]:
    """The references of a replicate; each has scenes of its own."""
    return {
        "strong": Source(scenes=ScenesConfig(num_samples=4000, seed=seed + 11), steps=1800),
        "weak": Source(scenes=ScenesConfig(num_samples=250, seed=seed + 12), steps=300),
        "placebo": Source(
            scenes=ScenesConfig(num_samples=1000, seed=seed + 13, mismatch_rate=0.99), steps=300
        ),
        "biased": Source(
            scenes=ScenesConfig(num_samples=1000, seed=seed + 14, omission_rate=0.6), steps=600
        ),
    }


@dataclass(frozen=True, kw_only=True)
class Pairs:
    """Pairs in memory: pooled pixels, token ids, and which caption each carries."""

    image: Tensor
    text: Tensor

    def __len__(self) -> int:
        return len(self.image)


def pairs_of(config: ScenesConfig) -> Pairs:
    """Draw scenes, pool their pixels to 16 x 16 and number the words of their captions."""
    images, texts = [], []
    for sample in scene_samples(config):
        content = sample["jpg"]
        assert isinstance(content, bytes)
        pixels = np.asarray(Image.open(io.BytesIO(content)).reduce(4), dtype=np.float32)
        images.append(torch.from_numpy(pixels).flatten() / 128 - 1)
        words = re.findall(r"\w+", str(sample["txt"]))
        ids = [
            1 + int(hashlib.sha256(w.encode()).hexdigest(), 16) % (VOCABULARY - 1) for w in words
        ]
        texts.append(torch.tensor(ids + [0] * (20 - len(ids))))
    return Pairs(image=torch.stack(images), text=torch.stack(texts))


class Towers(nn.Module):
    """Pooled pixels through an MLP, and a bag of words through another."""

    def __init__(self, width: int = WIDTH, dim: int = DIM) -> None:
        super().__init__()
        self.image = nn.Sequential(nn.Linear(768, width), nn.ReLU(), nn.Linear(width, dim))
        self.words = nn.EmbeddingBag(VOCABULARY, width, mode="mean", padding_idx=0)
        self.text = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, dim))

    def forward(self, pairs: Pairs) -> PairEmbeddings:
        text = self.text(self.words(pairs.text))
        return PairEmbeddings(normalize(self.image(pairs.image), dim=-1), normalize(text, dim=-1))


def towers(seed: int, *, width: int = WIDTH, dim: int = DIM) -> Towers:
    """Build towers with random weights."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Towers(width, dim)


@dataclass(frozen=True, kw_only=True)
class Arm:
    """An arm: its objective, whether it begins with the reference, and the share it keeps."""

    objective: FastCLIP | DRRhoCLIP
    starts: bool = False
    kept: float | None = None


def arms() -> dict[str, Arm]:
    """The arms by the names of `drrho advise`, the simplest first."""
    plain = FastCLIP(temperature=TEMPERATURE)
    found = {"plain": Arm(objective=plain), "start": Arm(objective=plain, starts=True)}
    found |= {f"filter-{share:g}": Arm(objective=plain, kept=share) for share in SHARES}
    for scale in STRENGTHS:
        objective = DRRhoCLIP(temperature=TEMPERATURE, reference_scale=scale)
        found[f"steer-{scale:g}"] = Arm(objective=objective)
    for weight in WEIGHTS:
        objective = replace(plain, distillation=term(weight))
        found[f"distil-{weight:g}"] = Arm(objective=objective)
    both = DRRhoCLIP(temperature=TEMPERATURE, reference_scale=0.5, distillation=term(1.0))
    found["steer-0.5-distil-1"] = Arm(objective=both)
    return found


def term(weight: float) -> DistillationTerm:
    """The reference as a teacher at the temperature that it was trained with."""
    return DistillationTerm(teacher_temperatures=(TEMPERATURE,), weight=weight)


def looked_at(steps: int) -> set[int]:
    """The steps after which held-out queries are ranked: dense early, where races end."""
    dense = [*range(10), *range(10, 40, 2), *range(40, 200, 5), *range(200, steps, 20)]
    return {step for step in (*dense, steps) if 0 < step <= steps}


def batches(kept: Tensor, steps: int, seed: int) -> Iterator[Tensor]:
    """Batches of a run: every pair once in an epoch, in an order that the seed fixes."""
    generator, order = torch.Generator().manual_seed(seed), torch.empty(0, dtype=torch.int64)
    for _ in range(steps):
        if len(order) < BATCH:
            order = kept[torch.randperm(len(kept), generator=generator)]
        yield order[:BATCH]
        order = order[BATCH:]


def reciprocal_ranks(model: Towers, pairs: Pairs) -> Tensor:
    """1 / rank of the right partner, the mean of both directions, for each pair."""
    with torch.no_grad():
        image, text = model(pairs)
    cosines, right = image @ text.T, torch.eye(len(pairs), dtype=torch.bool)
    both = [ranks_of_similarities(it, right).reciprocal() for it in (cosines, cosines.T)]
    return (both[0] + both[1]) / 2


def take(pairs: Pairs, rows: Tensor) -> Pairs:
    """Select pairs."""
    return Pairs(image=pairs.image[rows], text=pairs.text[rows])


@dataclass(frozen=True, kw_only=True)
class Data:
    """The data of a replicate at a share of wrong captions."""

    train: Pairs
    held_out: Pairs
    test: Pairs


def train(
    model: Towers, data: Data, arm: Arm, *, steps: int, seed: int, reference: PairEmbeddings | None
) -> dict[int, Tensor]:
    """Train towers in place, and return the ranks of the held-out queries along the way."""
    config = Optimizer(learning_rate=RATE, warmup_steps=WARM_UP)
    loss = ContrastiveObjective(arm.objective, num_samples=len(data.train), impl="exact")
    optimizer = build_optimizer(model, config, loss=loss)
    rate = learning_rate_schedule(config, steps=steps)
    kept = torch.arange(len(data.train))
    if arm.kept is not None:
        assert reference is not None
        alike = (reference.image * reference.text).sum(dim=1)
        kept = alike.argsort(descending=True)[: round(arm.kept * len(alike))].sort().values
    epochs = steps / (len(kept) // BATCH)
    gamma = averaging_rate(arm.objective.final_gamma(epochs=epochs), kind="cosine", steps=steps)
    found, wanted = {}, looked_at(steps)
    for step, rows in enumerate(batches(kept, steps, seed)):
        models = None if reference is None else PairEmbeddings(*(it[rows] for it in reference))
        for group in optimizer.param_groups:
            group["lr"] = rate(step) * group["lr_scale"]
        value = loss(
            model(take(data.train, rows)),
            models if arm.objective.needs_reference else None,
            sample_ids=rows,
            gamma=gamma(step),
            teachers=() if arm.objective.distillation is None else (models,),
        )
        value.loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if step + 1 in wanted:
            found[step + 1] = reciprocal_ranks(model, data.held_out)
    return found


def data_of(replicate: int, wrong: float) -> Data:
    """Draw the scenes of a replicate; images and right captions do not depend on the share."""
    seed = 100_000 + 1_000 * replicate
    scenes = ScenesConfig(num_samples=PAIRS, seed=seed, mismatch_rate=wrong)
    return Data(
        train=pairs_of(scenes),
        held_out=pairs_of(replace(scenes, num_samples=HELD_OUT, seed=seed + 1)),
        test=pairs_of(ScenesConfig(num_samples=TEST, seed=seed + 2)),
    )


def reference_of(replicate: int, name: str) -> Towers:
    """Train a reference, or load it."""
    path = RUNS / f"replicate-{replicate}" / f"{name}.pt"
    seed = 100_000 + 1_000 * replicate
    source, model = references(seed)[name], towers(seed + len(name))
    if not path.exists():
        own = pairs_of(source.scenes)
        data = Data(train=own, held_out=take(own, torch.arange(2)), test=own)
        plain = arms()["plain"]
        train(model, data, plain, steps=source.steps, seed=seed + 7, reference=None)
        save(path, model.state_dict())
    model.load_state_dict(torch.load(path, weights_only=True))
    return model.requires_grad_(False)


def save(path: Path, content: object) -> None:
    """Write a file that is whole or not there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    torch.save(content, partial)
    partial.rename(path)


def run_path(replicate: int, wrong: float, steps: int, name: str) -> Path:
    """The file of a run's ranks; plain training is the same for all references."""
    return RUNS / f"replicate-{replicate}" / f"wrong-{wrong:g}-steps-{steps}" / f"{name}.pt"


def names_of_runs() -> list[tuple[str | None, str]]:
    """Reference and arm of every run of a replicate, at a share and a length."""
    pairs = [(name, arm) for name in references(0) for arm in arms() if arm != "plain"]
    return [(None, "plain"), *pairs]


def run_replicate(replicate: int, wrong: float, steps: int, progress: Progress) -> None:
    """Train what is not there yet of a replicate at a share and a length."""
    data, known = None, {}
    for reference, name in names_of_runs():
        path = run_path(replicate, wrong, steps, file_name(reference, name))
        if path.exists():
            continue
        data = data or data_of(replicate, wrong)
        if reference is not None and reference not in known:
            known[reference] = reference_of(replicate, reference)
        by = None if reference is None else known[reference]
        save(path, one_run(replicate, data, name, steps=steps, by=by))
        progress.advance(steps)


def file_name(reference: str | None, arm: str) -> str:
    """Name a run by its arm and reference."""
    return arm if reference is None else f"{arm}-{reference}"


def one_run(
    replicate: int, data: Data, name: str, *, steps: int, by: Towers | None
) -> dict[str, object]:
    """Train an arm to the end, and return its ranks on held-out and test queries."""
    seed, arm = 100_000 + 1_000 * replicate, arms()[name]
    model, reference = towers(seed), None
    if by is not None:
        reference = by(data.train)
        if arm.starts:
            model.load_state_dict(by.state_dict())
    found = train(model, data, arm, steps=steps, seed=seed + 5, reference=reference)
    return {
        "held_out": {step: ranks.half() for step, ranks in found.items()},
        "test": reciprocal_ranks(model, data.test),
        "judged": None if by is None else reciprocal_ranks(by, data.held_out),
    }


def main() -> None:
    """Train what is planned, or report on what is there."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--replicates", type=int, default=4)
    parser.add_argument("--report", action="store_true", help="train nothing")
    options = parser.parse_args()
    if not options.report:
        each = len(WRONG) * sum(LENGTHS) * len(names_of_runs())
        there = sum(
            steps * run_path(replicate, wrong, steps, file_name(*names)).exists()
            for replicate in range(options.replicates)
            for wrong in WRONG
            for steps in LENGTHS
            for names in names_of_runs()
        )
        with Progress(
            "train", total=options.replicates * each, unit="steps", initial=there
        ) as progress:
            # The short trainings first: of them all replicates are there before a long one is.
            for steps, replicate, wrong in product(LENGTHS, range(options.replicates), WRONG):
                run_replicate(replicate, wrong, steps, progress)
    from report import write_report  # noqa: PLC0415

    write_report(options.replicates)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
