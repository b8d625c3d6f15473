"""Floating-point operations of a forward pass, counted by PyTorch."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Shaped
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from drrho.models.two_tower import TwoTower


@dataclass(frozen=True, kw_only=True)
class ForwardFlops:
    """Floating-point operations of one forward pass, per sample.

    A multiplication and an addition are two operations. Counted are matrix products, convolutions
    and attention; elementwise operations are not.
    """

    image: float
    text: float

    @property
    def total(self) -> float:
        return self.image + self.text


def forward_flops(
    model: TwoTower, images: Shaped[Tensor, "batch ..."], captions: Sequence[str]
) -> ForwardFlops:
    """Count one pass of some samples through both towers and divide by their number.

    Of pairs of texts, `images` are anchors that went through the model's transform. What a text
    costs may depend on the longest of its batch, so give captions of the data.
    """
    if not len(images) or not captions:
        raise ValueError(
            f"at least one image and one caption are needed, got {len(images)} and {len(captions)}"
        )
    module: Any = model.module
    device = next(module.parameters()).device
    tokens = model.tokenizer(list(captions)).to(device)
    return ForwardFlops(
        image=_counted(lambda: module.encode_image(images.to(device), normalize=False))
        / len(images),
        text=_counted(lambda: module.encode_text(tokens, normalize=False)) / len(captions),
    )


def _counted(forward: Callable[[], Tensor]) -> float:
    counter = FlopCounterMode(display=False)
    # With gradients and without fused attention: fused kernels of inference are not counted.
    with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH), counter:
        forward()
    return float(counter.get_total_flops())
