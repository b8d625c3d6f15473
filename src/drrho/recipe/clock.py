"""How long the loss takes within a step, forward and backward, without stopping the device."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor

from drrho.contrastive.pairs import PairEmbeddings

Mark = float | torch.cuda.Event


class _Interval(NamedTuple):
    start: Mark
    end: Mark


class LossClock:
    """Times the loss of steps; everything else in a step is the towers, the data and the optimiser.

    On a GPU events are noted in its stream, and read when `mean_seconds` is asked for.
    """

    def __init__(self) -> None:
        self._intervals: list[_Interval] = []
        self._num_steps = 0

    @contextmanager
    def forward(self, embeddings: PairEmbeddings) -> Iterator[None]:
        """Times what the block computes of embeddings."""
        start = _mark(embeddings.image)
        yield
        self._intervals.append(_Interval(start, _mark(embeddings.image)))
        self._num_steps += 1

    def backward(self, loss: Tensor, embeddings: PairEmbeddings) -> None:
        """Times the way back, from the loss until both embeddings have their gradient."""
        started: list[Mark] = []
        arrived: list[Mark] = []
        num_embeddings = len(embeddings)

        # A hook that held a tensor of its own graph would keep the graph, and all that it reaches,
        # for ever: the garbage collector cannot see through the graph's nodes.
        def start(gradient: Tensor) -> None:
            started.append(_mark(gradient))

        def arrive(gradient: Tensor) -> None:
            arrived.append(_mark(gradient))
            if len(arrived) == num_embeddings and started:
                self._intervals.append(_Interval(started[0], arrived[-1]))

        loss.register_hook(start)
        for embedding in embeddings:
            embedding.register_hook(arrive)

    def mean_seconds(self) -> float | None:
        """Per step since the last call; None if there was none. Waits for a GPU."""
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
