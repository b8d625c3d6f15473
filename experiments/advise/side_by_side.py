"""Many small trainings at once: the towers of scenes.py with a dimension of runs in front.

A step of one such training is a few dozen operations on matrices so small that calling them takes
longer than they do. Here the runs of a cell share each call. The objectives are written out for a
batch of runs, of one constant temperature; `--check` trains arms of every kind by this file and by
the package, and prints how far the reciprocal ranks are apart.

    python experiments/advise/side_by_side.py --check
"""

import argparse
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from scenes import (
    BATCH,
    RATE,
    TEMPERATURE,
    WARM_UP,
    Arm,
    Data,
    Pairs,
    Towers,
    arms,
    batches,
    data_of,
    looked_at,
    train,
)
from torch import Tensor, nn
from torch.nn.functional import embedding_bag, normalize

from drrho.contrastive.objectives.global_risk import DRRhoCLIP
from drrho.contrastive.pairs import PairEmbeddings
from drrho.evaluation.metrics.ranks import ranks_of_similarities
from drrho.training.optimizer import Optimizer, learning_rate_schedule
from drrho.training.schedules import averaging_rate


@dataclass(frozen=True, kw_only=True)
class Run:
    """One training of many: its arm, data, weights at the start, and the reference's embeddings."""

    arm: Arm
    data: Data
    model: Towers
    reference: PairEmbeddings | None
    seed: int

    @property
    def kept(self) -> Tensor:
        """Rows of the training pairs that it trains on."""
        rows = torch.arange(len(self.data.train))
        if self.arm.kept is None:
            return rows
        assert self.reference is not None
        alike = (self.reference.image * self.reference.text).sum(dim=1)
        return alike.argsort(descending=True)[: round(self.arm.kept * len(rows))].sort().values

    @property
    def strength(self) -> float:
        """Factor of the reference's similarities in the excess."""
        objective = self.arm.objective
        return objective.reference_scale if isinstance(objective, DRRhoCLIP) else 0.0

    @property
    def weight(self) -> float:
        """Weight of the distillation."""
        term = self.arm.objective.distillation
        return 0.0 if term is None else term.weight


LAYERS = {"image_in": "image.0", "image_out": "image.2", "text_in": "text.0", "text_out": "text.2"}


def _linear(model: Towers, place: str) -> nn.Linear:
    layer = model.get_submodule(place)
    assert isinstance(layer, nn.Linear)
    return layer


class Stack(nn.Module):
    """Towers of several runs; every parameter has the runs in front.

    Of the table of words only the rows are kept that some pair needs: the others have no gradient,
    and no output depends on them.
    """

    def __init__(self, models: Sequence[Towers], words: Tensor) -> None:
        super().__init__()
        for name, place in LAYERS.items():
            self._stack(name, [_linear(model, place) for model in models])
        tables = torch.stack([model.words.weight.detach()[words] for model in models])
        self.words = nn.Parameter(tables)

    def _stack(self, name: str, layers: Sequence[nn.Linear]) -> None:
        weights = torch.stack([layer.weight.detach().T for layer in layers])
        biases = torch.stack([layer.bias.detach()[None] for layer in layers])
        self.register_parameter(f"{name}_weight", nn.Parameter(weights.contiguous()))
        self.register_parameter(f"{name}_bias", nn.Parameter(biases.contiguous()))

    def _layer(self, name: str, values: Tensor) -> Tensor:
        weight, bias = self.get_parameter(f"{name}_weight"), self.get_parameter(f"{name}_bias")
        return torch.baddbmm(bias, values, weight)

    @torch.no_grad()
    def write_into(self, model: Towers, run: int, words: Tensor) -> None:
        """Write the weights of a run into its towers."""
        for name, place in LAYERS.items():
            own = _linear(model, place)
            own.weight.copy_(self.get_parameter(f"{name}_weight")[run].T)
            own.bias.copy_(self.get_parameter(f"{name}_bias")[run, 0])
        model.words.weight[words] = self.words[run]

    def forward(self, image: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
        """Unit embeddings (runs, pairs, d) of pixels and numbers of kept words; 0 is none."""
        runs, pairs, length = text.shape
        images = self._layer("image_out", self._layer("image_in", image).relu())
        places = (text + self.words.shape[1] * torch.arange(runs)[:, None, None]).reshape(
            -1, length
        )
        there = (text > 0).reshape(-1, length).to(self.words.dtype)
        bags = embedding_bag(
            places,
            self.words.flatten(0, 1),
            mode="sum",
            per_sample_weights=there / there.sum(dim=1, keepdim=True).clamp_min(1),
        ).reshape(runs, pairs, -1)
        texts = self._layer("text_out", self._layer("text_in", bags).relu())
        return normalize(images, dim=-1), normalize(texts, dim=-1)


@dataclass(frozen=True, kw_only=True)
class Losses:
    """The objectives of several runs at one constant temperature.

    Source: docs/mathematics.md, "Per-sample estimators" and "Distillation".
    """

    strengths: Tensor
    weights: Tensor
    log_epsilons: Tensor
    teacher_temperature: float
    log_u: Tensor  # (runs, 2, samples)

    def __call__(self, cosines: Tensor, reference: Tensor, rows: Tensor, gamma: Tensor) -> Tensor:
        """The loss of each run, and the averages of its samples brought up to date.

        Args:
            cosines: of the target, (runs, batch, batch).
            reference: of the reference; zeros where a run has none.
            rows: which samples these are, (runs, batch).
            gamma: weight of the batch in the averages, (runs, 1, 1).
        """
        excess = cosines - self.strengths * reference
        pairs = excess.shape[-1]
        own = excess.diagonal(dim1=1, dim2=2)[:, :, None]
        both = torch.stack([excess - own, excess.mT - own], dim=1) / TEMPERATURE
        both = both.masked_fill(torch.eye(pairs, dtype=torch.bool), -math.inf)
        sums = both.logsumexp(dim=3) - math.log(pairs - 1)
        sums = torch.logaddexp(sums, self.log_epsilons.expand_as(sums))
        place = rows[:, None, :].expand(-1, 2, -1)
        with torch.no_grad():
            before = self.log_u.gather(2, place)
            mixed = (before + (-gamma).log1p()).logaddexp(sums + gamma.log())
            log_u = mixed.where(before > -math.inf, sums)
            self.log_u.scatter_(2, place, log_u)
            ratio = (sums - log_u).exp()
        losses = TEMPERATURE * (log_u + ratio * (sums - sums.detach()))
        return losses.mean(dim=(1, 2)) + self._distilled(cosines, reference)

    def _distilled(self, cosines: Tensor, reference: Tensor) -> Tensor:
        found = torch.zeros(len(cosines))
        taught = self.weights.nonzero().squeeze(1)
        if len(taught):
            student, teacher = cosines[taught], reference[taught]
            of_both = [
                -(
                    (teacher / self.teacher_temperature).softmax(dim=side)
                    * (student / TEMPERATURE).log_softmax(dim=side)
                ).sum(dim=side)
                for side in (2, 1)
            ]
            each = torch.stack(of_both).mean(dim=(0, 2))
            found = found.index_add(0, taught, self.weights[taught] * TEMPERATURE * each)
        return found


def _objectives(runs: Sequence[Run], samples: int) -> Losses:
    (temperature,) = {
        term.teacher_temperatures for run in runs if (term := run.arm.objective.distillation)
    } or {(TEMPERATURE,)}
    return Losses(
        strengths=torch.tensor([run.strength for run in runs])[:, None, None],
        weights=torch.tensor([run.weight for run in runs]),
        log_epsilons=torch.tensor([math.log(run.arm.objective.epsilon) for run in runs])[
            :, None, None
        ],
        teacher_temperature=temperature[0],
        log_u=torch.full((len(runs), 2, samples), -math.inf),
    )


def train_together(
    runs: Sequence[Run], *, steps: int, looks: Sequence[int], until: int | None = None
) -> tuple[list[dict[int, Tensor]], list[Tensor], list[Towers]]:
    """Train runs of the same length, as `scenes.train` does one.

    Args:
        looks: steps after which the held-out queries are ranked.
        until: step to stop at, of the schedule of all steps; None is its end.

    Returns:
        Of each run the ranks of the held-out queries by step, of the test queries at the end, and
        its towers, in which words that no training pair has are as at the start.
    """
    config = Optimizer(learning_rate=RATE, warmup_steps=WARM_UP)
    rate = learning_rate_schedule(config, steps=steps)
    train_pairs, numbered = _joined([run.data.train for run in runs])
    first, words = numbered
    stack = Stack([run.model for run in runs], words)
    samples = max(len(run.data.train) for run in runs)
    losses = _objectives(runs, samples)
    cosines, which = _reference_cosines(runs)
    decayed = [p for name, p in stack.named_parameters() if not name.endswith("_bias")]
    biases = [p for name, p in stack.named_parameters() if name.endswith("_bias")]
    optimizer = torch.optim.AdamW(
        [
            {"params": decayed, "weight_decay": config.weight_decay},
            {"params": biases, "weight_decay": 0.0},
        ],
        lr=RATE,
        betas=config.betas,
        eps=config.epsilon,
        fused=True,
    )
    gammas = [_gamma(run, steps) for run in runs]
    orders = [list(batches(run.kept, steps, run.seed)) for run in runs]
    found: list[dict[int, Tensor]] = [{} for _ in runs]
    wanted = set(looks)
    for step in range(steps if until is None else until):
        rows = torch.stack([order[step] for order in orders])
        for group in optimizer.param_groups:
            group["lr"] = rate(step)
        there = first[:, None] + rows
        image, text = stack(train_pairs.image[there], train_pairs.text[there])
        reference = cosines[which[:, None, None], rows[:, :, None], rows[:, None, :]]
        gamma = torch.tensor([it(step) for it in gammas])[:, None, None]
        losses(image @ text.mT, reference, rows, gamma).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        if step + 1 in wanted:
            for own, ranks in zip(
                found, _ranks(stack, [run.data.held_out for run in runs], words), strict=True
            ):
                own[step + 1] = ranks
    test = _ranks(stack, [run.data.test for run in runs], words)
    for k, run in enumerate(runs):
        stack.write_into(run.model, k, words)
    return found, test, [run.model for run in runs]


def _gamma(run: Run, steps: int):
    epochs = steps / (len(run.kept) // BATCH)
    objective = run.arm.objective
    return averaging_rate(objective.final_gamma(epochs=epochs), kind="cosine", steps=steps)


def _joined(sets: Sequence[Pairs]) -> tuple[Pairs, tuple[Tensor, Tensor]]:
    """Join sets, each once; returns them, the first row of each run's, and the words in use."""
    different = list({id(it): it for it in sets}.values())
    starts, place = {}, 0
    for it in different:
        starts[id(it)] = place
        place += len(it)
    text = torch.cat([it.text for it in different])
    words = torch.cat([torch.zeros(1, dtype=torch.int64), text.unique()]).unique()
    pairs = Pairs(
        image=torch.cat([it.image for it in different]), text=torch.searchsorted(words, text)
    )
    return pairs, (torch.tensor([starts[id(it)] for it in sets]), words)


def _reference_cosines(runs: Sequence[Run]) -> tuple[Tensor, Tensor]:
    """Cosines of all training pairs by each reference, and which of them a run has; 0 is none."""
    samples = max(len(run.data.train) for run in runs)
    matrices, numbers = [torch.zeros(samples, samples)], {}
    for run in runs:
        if run.reference is not None and id(run.reference) not in numbers:
            numbers[id(run.reference)] = len(matrices)
            image, text = run.reference
            matrices.append(torch.zeros(samples, samples))
            matrices[-1][: len(image), : len(text)] = image @ text.T
    which = [0 if run.reference is None else numbers[id(run.reference)] for run in runs]
    return torch.stack(matrices), torch.tensor(which)


@torch.no_grad()
def _ranks(stack: Stack, sets: Sequence[Pairs], words: Tensor) -> list[Tensor]:
    """1 / rank of the right partner, the mean of both directions, of each run's pairs."""
    # A word that no training pair has is left out, as one whose row was never trained would be
    # drawn at random.
    texts = [torch.searchsorted(words, it.text).clamp_max(len(words) - 1) for it in sets]
    texts = [
        number.where(words[number] == it.text, 0) for number, it in zip(texts, sets, strict=True)
    ]
    images, texts = stack(torch.stack([it.image for it in sets]), torch.stack(texts))
    right = torch.eye(images.shape[1], dtype=torch.bool)
    found = []
    for image, text in zip(images, texts, strict=True):
        each = [
            ranks_of_similarities(it, right).reciprocal() for it in (image @ text.T, text @ image.T)
        ]
        found.append((each[0] + each[1]) / 2)
    return found


def check(steps: int) -> Mapping[str, float]:
    """The largest difference of mean reciprocal ranks from the package's own, by arm."""
    data, seed = data_of(0, 0.3), 5
    torch.manual_seed(0)
    teacher = Towers().requires_grad_(False)
    reference = teacher(data.train)
    chosen = {name: arm for name, arm in arms().items() if not arm.starts}

    def begun() -> Towers:
        torch.manual_seed(1)
        return Towers()

    runs = [
        Run(
            arm=arm,
            data=data,
            model=begun(),
            reference=None if name == "plain" else reference,
            seed=seed,
        )
        for name, arm in chosen.items()
    ]
    looks = sorted(looked_at(steps))
    together, *_ = train_together(runs, steps=steps, looks=looks)
    apart = {}
    for run, name, found in zip(runs, chosen, together, strict=True):
        own = train(begun(), data, run.arm, steps=steps, seed=seed, reference=run.reference)
        apart[name] = max(abs(float(found[k].mean() - own[k].mean())) for k in looks)
    return apart


if __name__ == "__main__":
    torch.set_num_threads(1)
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", required=True)
    parser.parse_args()
    for name, difference in check(60).items():
        print(f"{name:20} {difference:.5f}")
