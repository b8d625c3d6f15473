"""What a forward pass costs, counted operation by operation by PyTorch."""

from typing import Any

import torch
from jaxtyping import Shaped
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode


@torch.no_grad()
def forward_gflop_per_sample(
    module: nn.Module,
    images: Shaped[Tensor, "batch 3 height width"],
    tokens: Shaped[Tensor, "batch context"],
) -> float:
    """GFLOP (1e9 operations) of both towers' forward pass, by sample, as a batch costs it.

    PyTorch's `FlopCounterMode` counts matrix products, convolutions and attention; a multiplication
    and an addition are two operations. What the batch is padded to is counted. Batch
    normalisation keeps its averages: the pass runs in evaluation mode.

    Args:
        module: with open_clip's `encode_image` and `encode_text`, on the device of the inputs.
        images: as the model's transform makes them.
        tokens: as its tokenizer makes them.

    Raises:
        ValueError: the batch is empty.
    """
    if len(images) == 0 or len(images) != len(tokens):
        raise ValueError(
            f"images and tokens must be of the same samples, one or more, got {len(images)} and "
            f"{len(tokens)}"
        )
    towers: Any = module
    was_training = module.training
    had_fast_path = torch.backends.mha.get_fastpath_enabled()
    module.eval()
    # Fused layers and fused attention are single operations that the counter does not know.
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
            towers.encode_image(images)
            towers.encode_text(tokens)
    finally:
        torch.backends.mha.set_fastpath_enabled(had_fast_path)
        module.train(was_training)
    return counter.get_total_flops() / len(images) / 1e9
