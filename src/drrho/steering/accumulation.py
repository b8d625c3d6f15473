"""Gradient accumulation: a batch in several micro-batches, with the gradient of the whole."""

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import TypeVar

import torch
from torch import Tensor

from drrho.runtime.randomness import capture_generators, preserved_generators, restore_generators
from drrho.steering.loss import DRRhoLoss, Losses, SteeredLoss

MicroBatch = TypeVar("MicroBatch")


def accumulate_gradients(
    loss: DRRhoLoss,
    micro_batches: Iterable[MicroBatch],
    losses_of: Callable[[MicroBatch], Losses],
    *,
    backward: Callable[[Tensor], object] = torch.Tensor.backward,
    no_sync: Callable[[], AbstractContextManager] = nullcontext,
) -> list[SteeredLoss]:
    """Accumulate the exact gradient of a batch that does not fit into memory.

    A sample's weight depends on all others, so there are two passes. The first computes the losses
    of all micro-batches without a graph; they are weighed together, as one batch, which updates the
    estimator once. The second computes them again, with the random draws (dropout) repeated, and
    goes backward with the weights of the first. The price is one more forward pass, about a third
    of a step. State that a forward pass changes (BatchNorm's) changes twice.

    Args:
        loss: the DRRho loss.
        micro_batches: the micro-batches of one optimiser step, of any type, in memory together.
        losses_of: the forward pass: a micro-batch to `Losses`.
        backward: for instance a gradient scaler's: `lambda loss: scaler.scale(loss).backward()`.
        no_sync: entered for all but the last backward pass: `model.no_sync` of
            DistributedDataParallel, so that gradients are averaged once.

    Returns:
        A result for each micro-batch, whose losses add up to the objective. Gradients have been
        added to the parameters' `.grad`.

    Source: the two passes follow Gao et al., "Scaling deep contrastive learning batch size
        under memory limited setup", 2021 (GradCache).
    """
    kept = list(micro_batches)
    states, measured = [], []
    with torch.no_grad(), preserved_generators():
        for micro_batch in kept:
            states.append(capture_generators())
            measured.append(losses_of(micro_batch))
    # Older versions of PyTorch keep what autocast has cast, here without a graph.
    torch.clear_autocast_cache()
    results = []
    for number, weighed in enumerate(loss.weigh(measured)):
        is_last = number == len(kept) - 1
        restore_generators(states[number])
        with nullcontext() if is_last else no_sync():
            result = weighed.steer(losses_of(kept[number]).losses)
            backward(result.loss)
        results.append(result._replace(loss=result.loss.detach()))
    return results
