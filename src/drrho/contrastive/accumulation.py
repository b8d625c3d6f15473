"""Exact gradient accumulation for contrastive losses: a batch encoded in micro-batches."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, TypeVar

import torch
from torch.utils.checkpoint import checkpoint

from drrho.contrastive.pairs import PairEmbeddings
from drrho.runtime.randomness import capture_generators, preserved_generators, restore_generators

MicroBatch = TypeVar("MicroBatch")


def encode_in_micro_batches(
    encode: Callable[[MicroBatch], PairEmbeddings], micro_batches: Sequence[MicroBatch]
) -> PairEmbeddings:
    """Embed a whole batch, with the activations of one micro-batch in memory at a time.

    The loss sees one batch, and nothing of it is approximate. Going backward, the loss's gradient
    in the embeddings comes first; then every micro-batch is encoded again, with its random draws
    (dropout, augmentation in `encode`) repeated, and takes its part of it. There is one
    `loss.backward()`, so that DistributedDataParallel averages gradients once and no `no_sync` is
    needed. The price is one more forward pass, about a third of a step. State that a forward pass
    changes (BatchNorm's) changes twice.

    Args:
        encode: the forward pass of both towers: a micro-batch to unit embeddings.
        micro_batches: of one step, of any type, in the order of the batch.

    Raises:
        ValueError: there is no micro-batch.

    Source: the two passes follow Gao et al., "Scaling deep contrastive learning batch size
        under memory limited setup", 2021 (GradCache); here the second is torch's activation
        checkpointing.
    """
    if not micro_batches:
        raise ValueError("a batch needs at least one micro-batch, got none")
    if len(micro_batches) == 1 or not torch.is_grad_enabled():
        parts = [encode(micro_batch) for micro_batch in micro_batches]
    else:
        parts = [_encode_twice(encode, micro_batch) for micro_batch in micro_batches]
    images, texts = zip(*parts, strict=True)
    return PairEmbeddings(torch.cat(images), torch.cat(texts))


def _encode_twice(
    encode: Callable[[MicroBatch], PairEmbeddings], micro_batch: MicroBatch
) -> PairEmbeddings:
    # torch's own replay knows its generators only, and not Python's and NumPy's.
    states = capture_generators()

    def contexts() -> tuple[AbstractContextManager, AbstractContextManager]:
        return nullcontext(), _replayed(states)

    found = checkpoint(
        encode, micro_batch, use_reentrant=False, preserve_rng_state=False, context_fn=contexts
    )
    assert isinstance(found, PairEmbeddings)
    return found


@contextmanager
def _replayed(states: dict[str, Any]) -> Iterator[None]:
    with preserved_generators():
        restore_generators(states)
        yield
