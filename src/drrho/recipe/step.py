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
from drrho.recipe.batches import LIVE_PAIRS, LIVE_SECONDS, LIVE_SHARE, SteeredBatch
from drrho.recipe.selection import Selector
from drrho.training.schedules import Schedule
from drrho.training.step import StepResult

Mark = float | torch.cuda.Event


class _Interval(NamedTuple):
    start: Mark
    end: Mark


class Clock:
    """Clock of a part of the training steps, such as the loss without the towers.

    On a GPU events are recorded in its stream, and read by `read`.
    """

    def __init__(self) -> None:
        self._intervals: list[_Interval] = []
        self._steps: set[int] = set()
        self._since: float | None = None  # when it was last read, or first started
        self._was_read = False

    @contextmanager
    def measure(self, device: torch.device, *, step: int) -> Iterator[None]:
        """Time the block."""
        if self._since is None:
            self._since = time.perf_counter()
        start = _mark(device)
        yield
        self._intervals.append(_Interval(start, _mark(device)))
        self._steps.add(step)

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
            started.append(_mark(gradient.device))

        def arrive(gradient: Tensor) -> None:
            arrived.append(_mark(gradient.device))
            if len(arrived) == num_trained and started:
                self._intervals.append(_Interval(started[0], arrived[-1]))

        loss.register_hook(start)
        for embedding in trained:
            embedding.register_hook(arrive)

    def read(self) -> tuple[float, float | None] | None:
        """Return the mean seconds of the steps since the last call, or None. Waits for a GPU.

        The second number is the share of the time that passed since then; None of a single first
        step, of which the rest is not over.
        """
        if not self._steps or self._since is None:
            return None
        now = time.perf_counter()
        seconds, count = sum(map(_seconds, self._intervals)), len(self._steps)
        share = seconds / (now - self._since) if self._was_read or count > 1 else None
        self._intervals, self._steps, self._since, self._was_read = [], set(), now, True
        return seconds / count, share


def _mark(device: torch.device) -> Mark:
    if device.type != "cuda":
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)
    event.record(torch.cuda.current_stream(device))
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
        live_clock: clock of the live models.
    """

    towers: nn.Module
    loss: ContrastiveObjective
    gamma: Schedule
    micro_batch_size: int | None = None
    selector: Selector | None = None
    placeholder: tuple[Tensor, Tensor] | None = None
    clock: Clock = field(default_factory=Clock)
    live_clock: Clock = field(default_factory=Clock)

    def __call__(self, batch: SteeredBatch, *, step: int, diagnose: bool) -> StepResult:
        num_live = 0
        if self.selector is not None:
            loaded = batch
            if self.selector.config.needs_reference:
                loaded, num_live = self._embedded(batch, step=step, reference_alone=True)
            reference = None if loaded.reference is None else loaded.reference.pairs
            rows = self.selector(lambda: self._embeddings(loaded.pairs), reference, step=step)
            batch = loaded.take(rows)
        batch, more = self._embedded(batch, step=step)
        subtracted = batch.reference if self.loss.config.needs_reference else None
        embeddings = self._embeddings(batch.pairs)
        arguments = {
            "sample_ids": batch.sample_ids,
            "gamma": self.gamma(step),
            "teachers": [teacher.pairs for teacher in batch.teachers if teacher is not None],
            "diagnose": diagnose,
        }
        reference = None if subtracted is None else subtracted.pairs
        if diagnose:
            value = self.loss(embeddings, reference, **arguments)
        else:  # the diagnostics of a logged step are not the loss's time
            with self.clock.measure(embeddings.image.device, step=step):
                value = self.loss(embeddings, reference, **arguments)
            self.clock.backward(value.loss, embeddings)
        metrics = value.metrics
        if self.loss.config.has_averages:
            metrics = metrics | {"gamma": self.gamma(step)}
        if diagnose and (read := self.clock.read()) is not None:
            metrics = metrics | {"time/loss": read[0]}
        if diagnose and (read := self.live_clock.read()) is not None:
            seconds, share = read
            metrics = metrics | {LIVE_SECONDS: seconds, LIVE_PAIRS: num_live + more}
            if share is not None:
                metrics = metrics | {LIVE_SHARE: share}
        return StepResult(loss=value.loss, num_samples=len(batch.sample_ids), metrics=metrics)

    def _embedded(
        self, batch: SteeredBatch, *, step: int, reference_alone: bool = False
    ) -> tuple[SteeredBatch, int]:
        """Let the live models embed, and count the pairs that they embed."""
        if not batch.live:
            return batch, 0
        with self.live_clock.measure(batch.sample_ids.device, step=step):
            found = batch.embedded(reference_alone=reference_alone)
        return found, (len(batch.live) - len(found.live)) * len(batch.sample_ids)

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
