"""Parallel and memory-saving training: DDP, FSDP2, gradient checkpointing, compilation."""

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

from drrho.runtime.randomness import preserved_generators

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


def replicate(
    module: nn.Module, device: torch.device, *, inputs: Sequence[Tensor]
) -> DistributedDataParallel:
    """Wrap a module in DistributedDataParallel: a whole model per process, averaged gradients.

    DistributedDataParallel would wait for the gradients of parameters that no backward pass reaches
    (a mask token, the bias of another loss). They are left out, and stay as one process leaves
    them.

    Args:
        module: module on its device.
        device: of this process.
        inputs: arguments of one forward pass, which show what a backward pass reaches.
    """
    unreached = unreached_parameters(module, inputs)
    # It asks for a parameter of the module itself by either name.
    names = [*unreached, *(f".{name}" for name in unreached)]
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(module, names)
    return DistributedDataParallel(
        module, device_ids=None if device.type == "cpu" else [device], gradient_as_bucket_view=True
    )


def unreached_parameters(module: nn.Module, inputs: Sequence[Tensor]) -> list[str]:
    """Name the trainable parameters that the gradient of a module's outputs does not reach.

    Gradients, buffers and random states are left as they were.
    """
    buffers = {name: buffer.clone() for name, buffer in module.named_buffers()}
    trained = {name: p for name, p in module.named_parameters() if p.requires_grad}
    # Blocks that are compiled would be compiled for these inputs too.
    with preserved_generators(), torch.compiler.set_stance("force_eager"):
        outputs = torch.stack([output.float().sum() for output in module(*inputs)])
        found = torch.autograd.grad(outputs.sum(), list(trained.values()), allow_unused=True)
    for name, buffer in module.named_buffers():
        buffer.copy_(buffers[name])
    return [name for name, gradient in zip(trained, found, strict=True) if gradient is None]


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
