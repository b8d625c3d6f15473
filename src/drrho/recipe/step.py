"""Forward pass of both towers and the contrastive loss of a batch."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn
from torch.nn.functional import normalize

from drrho.contrastive.accumulation import encode_in_micro_batches
from drrho.contrastive.objectives.objective import ContrastiveObjective
from drrho.contrastive.pairs import PairEmbeddings
from drrho.data.batch import Batch
from drrho.recipe.batches import SteeredBatch
from drrho.recipe.selection import Selector
from drrho.training.schedules import Schedule
from drrho.training.step import StepResult

Mark = float | torch.cuda.Event


class _Interval(NamedTuple):
    start: Mark
    end: Mark


class LossClock:
    """Clock of the loss, forward and backward, without the towers.

    On a GPU events are recorded in its stream, and read by `mean_seconds`.
    """

    def __init__(self) -> None:
        self._intervals: list[_Interval] = []
        self._num_steps = 0

    @contextmanager
    def forward(self, embeddings: PairEmbeddings) -> Iterator[None]:
        """Time the block, which computes the loss from embeddings."""
        start = _mark(embeddings.image)
        yield
        self._intervals.append(_Interval(start, _mark(embeddings.image)))
        self._num_steps += 1

    def backward(self, loss: Tensor, embeddings: PairEmbeddings) -> None:
        """Time the backward pass from the loss to the embedding gradients."""
        started: list[Mark] = []
        arrived: list[Mark] = []
        # Those of a locked tower have no gradient.
        trained = [embedding for embedding in embeddings if embedding.requires_grad]
        num_trained = len(trained)

        # A hook that held a tensor of its own graph would keep the graph, and all that it reaches,
        # for ever: the garbage collector cannot see through the graph's nodes.
        def start(gradient: Tensor) -> None:
            started.append(_mark(gradient))

        def arrive(gradient: Tensor) -> None:
            arrived.append(_mark(gradient))
            if len(arrived) == num_trained and started:
                self._intervals.append(_Interval(started[0], arrived[-1]))

        loss.register_hook(start)
        for embedding in trained:
            embedding.register_hook(arrive)

    def mean_seconds(self) -> float | None:
        """Return the mean of the steps since the last call, or None. Waits for a GPU."""
        if self._num_steps == 0:
            return None
        mean = sum(map(_seconds, self._intervals)) / self._num_steps
        self._intervals, self._num_steps = [], 0
        return mean


def _mark(tensor: Tensor) -> Mark:
    if not tensor.is_cuda:
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)
    event.record(torch.cuda.current_stream(tensor.device))
    return event


def _seconds(interval: _Interval) -> float:
    start, end = interval
    if isinstance(start, torch.cuda.Event) and isinstance(end, torch.cuda.Event):
        end.synchronize()
        return start.elapsed_time(end) / 1000
    assert isinstance(start, float)
    assert isinstance(end, float)
    return end - start


class Towers(nn.Module):
    """Both towers behind one forward pass, as DistributedDataParallel wants it.

    Args:
        module: model with open_clip's `encode_image` and `encode_text`.
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module: Any = module  # nn.Module does not say that its attributes are functions

    def forward(
        self, images: Shaped[Tensor, "batch ..."], tokens: Shaped[Tensor, "batch ..."]
    ) -> tuple[Float[Tensor, "batch dim"], Float[Tensor, "batch dim"]]:
        """Compute embeddings that are not normalised."""
        return (
            self.module.encode_image(images, normalize=False),
            self.module.encode_text(tokens, normalize=False),
        )


@dataclass(frozen=True, kw_only=True)
class ContrastiveStep:
    """Forward pass of both towers and the contrastive loss of a batch.

    Attributes:
        towers: module from images and tokens to embeddings.
        loss: loss to minimise.
        gamma: weight of the newest batch in the per-sample averages, by step.
        micro_batch_size: pairs of this process that are encoded at once.
        selector: selector of the loaded pairs to train on; None trains on all.
        placeholder: images and tokens that a process encodes, and drops, where its share of a
            batch is empty: all processes average the gradients of all parameters.
        clock: clock of the loss.
    """

    towers: nn.Module
    loss: ContrastiveObjective
    gamma: Schedule
    micro_batch_size: int | None = None
    selector: Selector | None = None
    placeholder: tuple[Tensor, Tensor] | None = None
    clock: LossClock = field(default_factory=LossClock)

    def __call__(self, batch: SteeredBatch, *, step: int, diagnose: bool) -> StepResult:
        if self.selector is not None:
            loaded = batch
            reference = None if loaded.reference is None else loaded.reference.pairs
            rows = self.selector(lambda: self._embeddings(loaded.pairs), reference, step=step)
            batch = loaded.take(rows)
        subtracted = batch.reference if self.loss.config.needs_reference else None
        embeddings = self._embeddings(batch.pairs)
        arguments = {
            "sample_ids": batch.sample_ids,
            "gamma": self.gamma(step),
            "teachers": [teacher.pairs for teacher in batch.teachers],
            "diagnose": diagnose,
        }
        reference = None if subtracted is None else subtracted.pairs
        if diagnose:
            value = self.loss(embeddings, reference, **arguments)
        else:  # the diagnostics of a logged step are not the loss's time
            with self.clock.forward(embeddings):
                value = self.loss(embeddings, reference, **arguments)
            self.clock.backward(value.loss, embeddings)
        metrics = value.metrics
        if self.loss.config.has_averages:
            metrics = metrics | {"gamma": self.gamma(step)}
        if diagnose and (seconds := self.clock.mean_seconds()) is not None:
            metrics = metrics | {"time/loss": seconds}
        return StepResult(loss=value.loss, num_samples=len(batch.sample_ids), metrics=metrics)

    def _embeddings(self, pairs: Batch) -> PairEmbeddings:
        num_pairs = len(pairs.sample_ids)
        if num_pairs == 0 and self.placeholder is not None:
            image, text = self.towers(*self.placeholder)
            return PairEmbeddings(image=_unit(image)[:0], text=_unit(text)[:0])
        size = num_pairs if self.micro_batch_size is None else self.micro_batch_size
        starts = range(0, num_pairs, size)
        return encode_in_micro_batches(
            self._encode, [pairs.take(slice(start, start + size)) for start in starts]
        )

    def _encode(self, pairs: Batch) -> PairEmbeddings:
        image, text = self.towers(pairs.images, pairs.tokens)
        return PairEmbeddings(image=_unit(image), text=_unit(text))


def _unit(embeddings: torch.Tensor) -> torch.Tensor:
    """Normalise in float32: half precision would leave norms, and so cosines, off by 0.3 %."""
    return normalize(embeddings.float(), dim=-1)
