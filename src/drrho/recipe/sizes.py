"""What a run takes of memory and disk, before it is started."""

from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from drrho.contrastive.objectives.config import GLOBAL_METHODS, ObjectiveConfig
from drrho.models.two_tower import TwoTower
from drrho.recipe.recipe import Recipe
from drrho.runtime.randomness import preserved_generators
from drrho.training.config import Precision

FLOAT = 4  # bytes
MEASURED = (2, 4)  # pairs of the two forward passes that activations are measured with


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """Bytes of one process, but for the disk.

    Attributes:
        parameters: numbers, trainable or not; of the whole model.
        model_and_optimizer: parameters, gradients and AdamW's moments in float32.
        activations: of the pairs that are encoded at once; None if it is not known.
        images: of the loaded pairs, and the same again that wait.
        per_sample: averages and individual temperatures.
        checkpoints: on disk, with the one that is being written.
    """

    parameters: int
    model_and_optimizer: int
    activations: int | None
    images: int
    per_sample: int
    checkpoints: int


def sizes_of(recipe: Recipe, model: TwoTower, *, num_samples: int, num_processes: int) -> Sizes:
    """An estimate from the model, which is on the CPU, and the formats of drrho's files.

    Activations are what autograd keeps of two small forward passes of both towers, per pair,
    times the pairs that a process encodes at once.
    """
    trainable = sum(p.numel() for p in model.module.parameters() if p.requires_grad)
    parameters = sum(p.numel() for p in model.module.parameters())
    shares = num_processes if recipe.parallel == "sharded" else 1
    state = per_sample_bytes(recipe.objective) * num_samples
    one_checkpoint = FLOAT * (parameters + 2 * trainable) + state
    trained, loaded = (
        -(-size // num_processes) for size in (recipe.trained_batch_size, recipe.loading.batch_size)
    )
    at_once = trained if recipe.micro_batch_size is None else recipe.micro_batch_size
    kept = None
    if not recipe.gradient_checkpointing:
        kept = activation_bytes(model, precision=recipe.training.precision) * at_once
    return Sizes(
        parameters=parameters,
        model_and_optimizer=FLOAT * (parameters + 3 * trainable) // shares,
        activations=kept,
        images=2 * loaded * FLOAT * _pixels(model).numel(),
        per_sample=state // num_processes,
        checkpoints=(recipe.training.keep_checkpoints + 1) * one_checkpoint,
    )


def per_sample_bytes(objective: ObjectiveConfig) -> int:
    """Of a sample of the data set, in memory and in a checkpoint."""
    averages = 2 * FLOAT if objective.method in GLOBAL_METHODS else 0
    temperatures = 4 * FLOAT if objective.temperature.kind == "per_sample" else 0
    return averages + temperatures


def activation_bytes(model: TwoTower, *, precision: Precision) -> int:
    """Bytes that the backward pass of both towers needs of a pair."""
    fewer, more = (_saved_bytes(model, pairs, precision) for pairs in MEASURED)
    return max(0, more - fewer) // (MEASURED[1] - MEASURED[0])


def _saved_bytes(model: TwoTower, num_pairs: int, precision: Precision) -> int:
    """Of the distinct tensors that autograd saves, without the parameters."""
    module: Any = model.module
    own = {p.untyped_storage().data_ptr() for p in model.module.parameters()}
    saved: dict[int, int] = {}
    alive: list[Tensor] = []  # or a later tensor could take the memory of an earlier one

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            saved[storage.data_ptr()] = storage.nbytes()
            alive.append(tensor)
        return tensor

    images = _pixels(model).expand(num_pairs, -1, -1, -1).contiguous()
    tokens = model.tokenizer(["a caption"] * num_pairs)
    dtype = torch.bfloat16  # both half precisions are as large, and CPUs know this one
    training = [m for m in model.module.modules() if m.training]
    model.module.eval()  # a forward pass in training would move batch statistics
    try:
        with (
            preserved_generators(),
            torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor),
            torch.autocast("cpu", dtype=dtype, enabled=precision != "float32"),
        ):
            module.encode_image(images, normalize=False)
            module.encode_text(tokens, normalize=False)
    finally:
        _restore(training)
    return sum(saved.values())


def _restore(training: list[nn.Module]) -> None:
    for module in training:
        module.training = True


def _pixels(model: TwoTower) -> Tensor:
    """An image as training sees it."""
    with preserved_generators():
        return model.train_transform(Image.new("RGB", (64, 64)))[None]
