"""Per-token losses of a language model."""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor
from torch.nn.functional import cross_entropy


class TokenLosses(NamedTuple):
    """Loss of every token that is predicted.

    Attributes:
        losses: in nats, shape (batch, length - 1): entry t is of token t + 1. Zero where masked.
        mask: True where the token counts.
    """

    losses: Float[Tensor, "batch predicted"]
    mask: Bool[Tensor, "batch predicted"]


def token_losses(
    logits: Float[Tensor, "batch length vocabulary"],
    labels: Int64[Tensor, "batch length"],
    *,
    ignore_index: int = -100,
) -> TokenLosses:
    """`-log softmax(logits[t])[labels[t + 1]]`: next-token cross-entropy without the mean.

    Pass losses and mask to `DRRhoLoss`: every token of the batch, on every process, is then a
    sample of one population, and no mean of means is taken.

    Args:
        logits: of a causal language model, any floating type; the loss is in float32 at least.
        labels: the tokens themselves, not shifted; `ignore_index` where one must not count
            (padding, a prompt).

    Raises:
        ValueError: labels and logits are of different batches or lengths.
    """
    if labels.shape != logits.shape[:-1]:
        raise ValueError(
            f"labels have shape {tuple(labels.shape)}, logits {tuple(logits.shape)}; labels must "
            "have one token for each position of the logits"
        )
    targets = labels[:, 1:]
    dtype = torch.promote_types(logits.dtype, torch.float32)
    losses = cross_entropy(
        logits[:, :-1].to(dtype).transpose(1, 2),
        targets,
        ignore_index=ignore_index,
        reduction="none",
    )
    return TokenLosses(losses, targets != ignore_index)
