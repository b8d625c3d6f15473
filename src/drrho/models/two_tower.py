"""A dual encoder with its transforms and tokenizer."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from PIL.Image import Image
from safetensors.torch import load_file
from torch import Tensor, nn

ImageTransform = Callable[[Image], Float[Tensor, "3 height width"]]
Tokenizer = Callable[[list[str]], Int[Tensor, "batch context"]]


@dataclass(frozen=True, kw_only=True)
class TwoTower:
    """An image tower and a text tower with their own transforms and tokenizer.

    Attributes:
        module: has open_clip's `encode_image(images, normalize=...)` and
            `encode_text(tokens, normalize=...)`, which give embeddings (B, d).
        train_transform: RGB image -> tensor, possibly random (torch's global generator).
        eval_transform: RGB image -> tensor, deterministic.
        tokenizer: captions -> token ids.
        identity: what the embeddings depend on, as text: architecture, pretrained, the weights'
            hash, the transform and the tokenizer. By it stored embeddings are told from those of
            another model.
        architecture: plain data from which `drrho.models.build` can build the model again, by
            name of the file that `save_model` writes; empty for a model made elsewhere, which
            cannot be saved.
    """

    module: nn.Module
    train_transform: ImageTransform
    eval_transform: ImageTransform
    tokenizer: Tokenizer
    identity: dict[str, str]
    architecture: dict[str, Any] = field(default_factory=dict)


def with_trained_weights(model: TwoTower, path: Path, *, builder: str) -> TwoTower:
    """Load the weights that a run wrote into a model; put their hash into its identity.

    Args:
        path: a safetensors file.
        builder: what built the model, for the message.

    Raises:
        ValueError: the weights do not fit.
    """
    try:
        model.module.load_state_dict(load_file(path))
    except RuntimeError as error:
        raise ValueError(f"{path} does not fit {builder}: {error}") from error
    identity = model.identity | {
        "pretrained": "trained with drrho",
        "weights_sha256": weights_sha256(model.module),
    }
    return replace(model, identity=identity)


def freeze_own_temperature(module: nn.Module) -> None:
    """Freeze a model's own scale and bias: the temperature belongs to the loss here."""
    for name, parameter in module.named_parameters():
        if name.removeprefix("model.") in {"logit_scale", "logit_bias"}:
            parameter.requires_grad_(False)


def weights_sha256(module: nn.Module) -> str:
    """SHA-256 over the names, types, shapes and bytes of all parameters and buffers."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        digest.update(np.ascontiguousarray(flat.view(torch.uint8).numpy()).data)
    return digest.hexdigest()
