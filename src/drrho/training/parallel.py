"""Parallel and memory-saving training: DDP, FSDP2, gradient checkpointing, compilation."""

from collections.abc import Iterator
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

Parallel = Literal["replicated", "sharded"]


def repeated_blocks(module: nn.Module) -> Iterator[nn.Module]:
    """List the stacked blocks of a model: its transformers' layers, a convolutional net's stages.

    A block is one of several modules of one type in a list; blocks within blocks are not listed.
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
    """Store only the input of each block, and recompute it in the backward pass.

    Raises:
        ValueError: there is no stack of blocks.
    """
    for block in _blocks_for("gradient_checkpointing", module):
        block.forward = partial(checkpoint, block.forward, use_reentrant=False)


def compile_blocks(module: nn.Module) -> None:
    """Compile every block, which is fast since they are alike; parameter names do not change.

    Raises:
        ValueError: there is no stack of blocks.
    """
    for block in _blocks_for("compile", module):
        block.compile()


def shard(module: nn.Module, *, methods: tuple[str, ...]) -> None:
    """Shard a module in place (FSDP2); its parameters become DTensors.

    Args:
        module: module on its device, before an optimiser is built. Scalars cannot be sharded and
            stay as they are; none may be trainable.
        methods: names of the module's methods that are called instead of `forward`.

    Raises:
        ValueError: a trainable parameter is a scalar.
    """
    scalars = {name: p for name, p in module.named_parameters() if p.ndim == 0}
    if trainable := [name for name, parameter in scalars.items() if parameter.requires_grad]:
        raise ValueError(
            f"parallel = 'sharded' needs parameters of one dimension or more; {trainable[0]} is a "
            "scalar that is trained; use parallel = 'replicated'"
        )
    # Takes a second to import.
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
    """Wrap a module in DistributedDataParallel: a whole model per process, averaged gradients."""
    return DistributedDataParallel(
        module, device_ids=None if device.type == "cpu" else [device], gradient_as_bucket_view=True
    )


def whole_weights(module: nn.Module) -> dict[str, Tensor]:
    """Gather the full state of a model in host memory; a collective if it is sharded.

    Of a sharded model only the first process gets it, the others an empty dictionary.
    """
    # Takes seconds to import, and only the end of a run needs it.
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
