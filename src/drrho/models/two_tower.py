"""A dual encoder with its transforms and tokenizer."""

import hashlib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from textwrap import shorten
from typing import Any, TypeVar

import numpy as np
import torch
from jaxtyping import Float, Int
from PIL.Image import Image
from PIL.Image import new as new_image
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from drrho.runtime.files import require_regular

ImageTransform = Callable[[Image], Float[Tensor, "3 height width"]]
# Prefixes anywhere in a name, by torch.compile, FSDP and checkpointing; and those of all names, by
# DistributedDataParallel and Lightning.
WRAPPERS = re.compile(r"(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
COMMON_PREFIXES = ("module.", "model.")
Built = TypeVar("Built")
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


def with_trained_weights(model: Built, path: Path, *, builder: str) -> Built:
    """Load the weights that a run wrote into a model; put their hash into its identity.

    Args:
        model: a `TwoTower`, or one tower.
        path: a safetensors file.
        builder: what built the model, for the message.

    Raises:
        ValueError: the weights do not fit.
    """
    towers: Any = model
    require_regular(path)
    try:
        weights = load_file(path)
        if weights.keys() != towers.module.state_dict().keys():
            weights = dict(zip(without_wrappers([*weights]), weights.values(), strict=True))
        towers.module.load_state_dict(weights)
    except (RuntimeError, SafetensorError) as error:
        raise ValueError(f"{path} does not fit {builder}: {shorten(str(error), 800)}") from error
    identity = towers.identity | {
        "pretrained": "trained with drrho",
        "weights_sha256": weights_sha256(towers.module),
    }
    return replace(towers, identity=identity)


def without_wrappers(names: Sequence[str]) -> list[str]:
    """Remove prefixes that compiling and wrapping put into the names of a model's tensors."""
    found = [WRAPPERS.sub("", name) for name in names]
    while names and all(name.startswith(COMMON_PREFIXES) for name in found):
        found = [name.partition(".")[2] for name in found]
    return found


def blank_image(model: TwoTower) -> Tensor:
    """Make an image that went through the training transform; of pairs of texts, an anchor."""
    takes_texts = getattr(model.train_transform, "takes_texts", False)
    transform: Callable[[Any], Tensor] = model.train_transform
    return transform("a" if takes_texts else new_image("RGB", (64, 64)))


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
