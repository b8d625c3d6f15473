"""The reference model: a frozen encoder with its own transform, tokenizer and precision."""

from collections.abc import Callable
from functools import cached_property
from typing import Any, Literal

import torch
from jaxtyping import Float32, Int64, Shaped
from PIL import Image
from torch import Tensor
from torch.nn.functional import normalize

from drrho.data.views import View
from drrho.models.two_tower import TwoTower

Precision = Literal["float32", "bfloat16", "float16"]


class ReferenceEncoder:
    """Unit embeddings, in float32, of images and texts under a frozen model.

    Args:
        two_tower: the model with its evaluation transform and its tokenizer. It is taken over:
            moved to `device`, set to evaluation and frozen, so it cannot be the model that is
            trained.
        precision: of the matrix products (autocast); weights and what is sensitive to rounding
            stay in float32.
        device: where to compute.
        view: of the samples that are encoded; None is as they are.

    Raises:
        ValueError: `precision` is none of the three.
    """

    def __init__(
        self,
        two_tower: TwoTower,
        *,
        precision: Precision,
        device: torch.device | str,
        view: View | None = None,
    ) -> None:
        match precision:
            case "float32":
                self._dtype = torch.float32
            case "bfloat16":
                self._dtype = torch.bfloat16
            case "float16":
                self._dtype = torch.float16
            case _:
                raise ValueError(
                    f"precision must be float32, bfloat16 or float16, got {precision!r}"
                )
        self._device = torch.device(device)
        # Any: nn.Module does not say that its attributes are functions.
        self._module: Any = two_tower.module.to(self._device).eval().requires_grad_(False)
        self.transform: Callable[[Image.Image], Tensor] = two_tower.eval_transform
        self.tokenizer: Callable[[list[str]], Tensor] = two_tower.tokenizer
        self._identity = two_tower.identity | {"precision": precision}
        self.view = view

    @property
    def identity(self) -> dict[str, str]:
        """What the embeddings depend on."""
        return self._identity | ({} if self.view is None else self.view.identity)

    @cached_property
    def embedding_dim(self) -> int:
        """d, seen on the embedding of one word."""
        return self.encode_text(self.tokenizer(["a"])).shape[-1]

    def encode_image(
        self, images: Float32[Tensor, "batch channels height width"]
    ) -> Float32[Tensor, "batch dim"]:
        """Embeddings of images that went through `transform`."""
        return self._encode(self._module.encode_image, images)

    def encode_text(self, tokens: Int64[Tensor, "batch length"]) -> Float32[Tensor, "batch dim"]:
        """Embeddings of texts that went through `tokenizer`."""
        return self._encode(self._module.encode_text, tokens)

    @torch.no_grad()
    def _encode(
        self, tower: Callable[..., Tensor], inputs: Shaped[Tensor, "batch ..."]
    ) -> Float32[Tensor, "batch dim"]:
        inputs = inputs.to(self._device, non_blocking=True)
        reduced = self._dtype != torch.float32
        with torch.autocast(self._device.type, self._dtype, enabled=reduced):
            embeddings = tower(inputs, normalize=False)
        # Half-precision rounding of the norm would be a bias shared by a whole row of cosines.
        return normalize(embeddings.float(), dim=-1)
