"""The excess loss: what the DRRho risk is taken of."""

import torch
from jaxtyping import Float
from torch import Tensor


def excess_loss(
    losses: Float[Tensor, "*batch n"], reference_losses: Float[Tensor, "*batch n"]
) -> Float[Tensor, "*batch n"]:
    """`losses - reference_losses` per sample (the RHO loss), in float32 at least.

    Both are cast before the subtraction, which bfloat16 would round to a hundredth near 3. No
    gradient flows into the reference.

    Raises:
        ValueError: the shapes differ.

    Source: Mindermann et al., "Prioritized training on points that are learnable, worth
        learning, and not yet learnt", 2022.
    """
    if losses.shape != reference_losses.shape:
        raise ValueError(
            f"losses have shape {tuple(losses.shape)} and reference_losses "
            f"{tuple(reference_losses.shape)}; they must be of the same samples"
        )
    dtype = torch.promote_types(losses.dtype, reference_losses.dtype)
    dtype = torch.promote_types(dtype, torch.float32)
    return losses.to(dtype) - reference_losses.detach().to(dtype)
