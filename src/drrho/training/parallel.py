"""A model on several processes and in less memory: replicas, shards, recomputation, compilation."""

from collections.abc import Iterator
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

Parallel = Literal["replicated", "sharded"]


def repeated_blocks(module: nn.Module) -> Iterator[nn.Module]:
    """The blocks that a deep model is a stack of: the layers of its transformers, the stages of a
    convolutional network. Each is one of several of a kind in a list; blocks in blocks are left
    out.
    """
    for child in module.children():
        siblings = list(child.children())
        stacked = isinstance(child, nn.ModuleList | nn.Sequential) and len(siblings) > 1
        weighted = all(any(True for _ in sibling.parameters()) for sibling in siblings)
        if stacked and weighted and len({type(sibling) for sibling in siblings}) == 1:
            yield from siblings
        else:
            yield from repeated_blocks(child)


def recompute_blocks(module: nn.Module) -> None:
    """Gradient checkpointing: a block keeps its input alone and is computed again going backward.

    Raises:
        ValueError: there is no stack of blocks.
    """
    for block in _blocks_for("gradient_checkpointing", module):
        block.forward = partial(checkpoint, block.forward, use_reentrant=False)


def compile_blocks(module: nn.Module) -> None:
    """torch.compile of every block, which is quick as they are alike; names stay what they are.

    Raises:
        ValueError: there is no stack of blocks.
    """
    for block in _blocks_for("compile", module):
        block.compile()


def shard(module: nn.Module, *, methods: tuple[str, ...]) -> None:
    """FSDP2: every process keeps its share of parameters, gradients and moments, and gathers a
    block's when it is computed. In place: the parameters become DTensors.

    Args:
        module: on its device; before an optimiser is made. Scalars, which cannot be shared out,
            stay as they are; none may be trainable.
        methods: the module's methods that are called in place of `forward`.

    Raises:
        ValueError: a trainable parameter is a scalar.
    """
    scalars = {name: p for name, p in module.named_parameters() if p.ndim == 0}
    if trainable := [name for name, parameter in scalars.items() if parameter.requires_grad]:
        raise ValueError(
            f"parallel = 'sharded' needs parameters of one dimension or more; {trainable[0]} is a "
            "scalar that is trained; use parallel = 'replicated'"
        )
    # A second of import, for those who need it.
    from torch.distributed.fsdp import (  # noqa: PLC0415
        fully_shard,
        register_fsdp_forward_method,
    )

    for block in repeated_blocks(module):
        fully_shard(block)
    fully_shard(module, ignored_params=set(scalars.values()) or None)
    for method in methods:
        register_fsdp_forward_method(module, method)


def replicate(module: nn.Module, device: torch.device) -> nn.Module:
    """DistributedDataParallel: every process has the whole model, gradients are averaged."""
    return DistributedDataParallel(
        module,
        device_ids=None if device.type == "cpu" else [device],
        gradient_as_bucket_view=True,
    )


def whole_weights(module: nn.Module) -> dict[str, Tensor]:
    """All of a model's state in host memory, on the first process; a collective if it is sharded.

    The other processes get nothing where it is sharded.
    """
    # Seconds of import that only the end of a run needs.
    from torch.distributed.checkpoint.state_dict import (  # noqa: PLC0415
        StateDictOptions,
        get_model_state_dict,
    )

    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    weights = get_model_state_dict(module, options=options)
    return {name: value for name, value in weights.items() if isinstance(value, Tensor)}


def _blocks_for(option: str, module: nn.Module) -> list[nn.Module]:
    blocks = list(repeated_blocks(module))
    if not blocks:
        raise ValueError(
            f"{option} has no effect: {type(module).__name__} is no stack of blocks; leave it out"
        )
    return blocks
