"""Variance of loss and excess loss on held-out pairs."""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import normalize

Embeddings = tuple[Float[Tensor, "_ _"], Float[Tensor, "_ _"]]  # of images, of their captions


@torch.no_grad()
def gap_variance(
    target: Embeddings, reference: Embeddings | None = None, *, chunk_size: int = 512
) -> float:
    """Compute the variance of the gaps `x_ij - x_ii` of all anchors to all negatives.

    Anchors are images and texts. x are the target's cosine similarities, less the
    reference's if there is one: the loss
    of an anchor at a negative, or its excess loss, as in the training log's `loss_variance` and
    `excess_loss_variance`. Pairs of equal caption are negatives of each other, as in training.

    Args:
        target: embeddings of images and of their captions, of any length; two pairs or more.
        reference: the reference's embeddings of the same pairs, of any dimension.
        chunk_size: images compared at once; memory is O(chunk_size x pairs).

    Returns:
        Variance in units of squared cosine similarity.

    Source: docs/mathematics.md, "What the theory says".
    """
    num_pairs = len(target[0])
    rows = {len(part) for pair in (target, reference or ()) for part in pair}
    if rows != {num_pairs} or num_pairs < 2:
        raise ValueError(
            f"embeddings must be of the same two or more pairs, got {sorted(rows)} rows"
        )
    image, text = _unit(target)
    of_reference = None if reference is None else _unit(reference)
    positives = (image * text).sum(dim=1)
    if of_reference is not None:
        positives = positives - (of_reference[0] * of_reference[1]).sum(dim=1)
    sums = torch.zeros(2, dtype=torch.float64)
    for start in range(0, num_pairs, chunk_size):
        part = slice(start, start + chunk_size)
        x = image[part] @ text.T
        if of_reference is not None:
            x = x - of_reference[0][part] @ of_reference[1].T
        for own in (positives[part, None], positives[None, :]):
            gaps = (x - own).double()
            gaps.diagonal(start).zero_()
            sums += torch.stack([gaps.sum(), gaps.square().sum()])
    mean, square = sums / (2 * num_pairs * (num_pairs - 1))
    return float((square - mean.square()).clamp_min(0))


def _unit(pairs: Embeddings) -> tuple[Tensor, Tensor]:
    image, text = (normalize(part.float(), dim=-1) for part in pairs)
    return image, text
