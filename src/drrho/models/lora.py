"""Adapters of low rank (LoRA) by peft, merged into the weights at export."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from drrho.models.hugging_face import import_transformers
from drrho.models.layers import sample_inputs
from drrho.models.two_tower import TwoTower
from drrho.runtime.checks import require_at_least, require_positive
from drrho.runtime.optional import import_optional
from drrho.runtime.randomness import preserved_generators

ADAPTER = "default"  # the name that peft gives it
BASE = "base_layer."  # what peft puts into the names of weights that have an adapter
PACKED = "in_proj_weight"  # of an attention: one for queries, keys and values


@dataclass(frozen=True, kw_only=True)
class LoRA:
    """Adapters of low rank: a layer's weight is W + (alpha / rank) B A, and only A, B are trained.

    Attributes:
        rank: rank of B A.
        alpha: factor of B A, over the rank; None is the rank, which makes the factor 1.
        dropout: share of the adapter's inputs that is left out in training.
        targets: ends of the names of the linear layers and attentions that get an adapter, such as
            "c_fc" or "q_proj"; without any, all trained layers get one.

    Source: Hu et al., "LoRA: low-rank adaptation of large language models", 2021 (arXiv
        2106.09685), by the library peft.
    """

    rank: int = 8
    alpha: float | None = None
    dropout: float = 0.0
    targets: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        require_at_least(1, **{"lora.rank": self.rank})
        require_positive(**{"lora.alpha": self.alpha})
        if not 0 <= self.dropout < 1:
            raise ValueError(f"lora.dropout must be in [0, 1), got {self.dropout}")


def import_peft() -> ModuleType:
    """Import peft, also where torchvision's compiled operators cannot be loaded."""
    import_transformers()
    return import_optional("peft", user="tuning.lora", extra="peft")


def add_adapters(model: TwoTower, config: LoRA) -> None:
    """Give trainable linear layers and attentions adapters, and lock all else, in place.

    Raises:
        ValueError: `targets` names no such layer, or there is none; or the rank is above that of
            all of them.
        ModuleNotFoundError: peft is not installed.
    """
    peft, module = import_peft(), model.module
    names = _targets(model, config.targets)
    attentions = [name for name in names if hasattr(module.get_submodule(name), PACKED)]
    widest = max(min(_weight(module.get_submodule(name)).shape) for name in names)
    if config.rank > widest:
        raise ValueError(
            f"lora.rank = {config.rank:,} is above {widest:,}, the rank of the widest layer that "
            "gets an adapter; adapters of low rank have a few, such as 8"
        )
    if attentions and config.dropout:
        raise ValueError(
            f"lora.dropout = {config.dropout} does not fit {attentions[0]}, whose weight is one "
            "for queries, keys and values; leave it out, or give lora.targets without attention"
        )
    for name in names:
        owner = module.get_submodule(name.rpartition(".")[0])
        if isinstance(owner, nn.TransformerEncoderLayer):
            # In evaluation its fast path would take the weights and pass the adapters over.
            owner.activation_relu_or_gelu = 0
    settings = {
        "r": config.rank,
        "lora_alpha": config.rank if config.alpha is None else config.alpha,
        "lora_dropout": config.dropout,
    }
    # A list of names would also match longer ones with the same end, of the other tower.
    linear = "|".join(re.escape(name) for name in names if name not in attentions)
    if linear:
        peft.inject_adapter_in_model(peft.LoraConfig(target_modules=linear, **settings), module)
    for name in attentions:
        owner, _, own = name.rpartition(".")
        lora = peft.LoraConfig(target_parameters=[f"{own}.{PACKED}"], **settings)
        peft.inject_adapter_in_model(lora, module.get_submodule(owner))
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(".lora_" in name)


def _targets(model: TwoTower, ends: tuple[str, ...]) -> list[str]:
    """List the layers that get an adapter: those whose weight is trained and which are called.

    A layer that is not called is one whose weight another module reads.
    """
    module = model.module
    found = [
        name
        for name in _called(model)
        if (part := module.get_submodule(name)) is not None
        and (isinstance(part, nn.Linear) or _is_packed(part))
        and all(p.requires_grad for p in part.parameters() if p.ndim >= 2)
        and not (
            _is_packed(part)
            # It looks at the parts of its attention, which an adapter hides.
            and isinstance(
                module.get_submodule(name.rpartition(".")[0]), nn.TransformerEncoderLayer
            )
        )
    ]
    for end in ends:
        if not any(_ends(name, end) for name in found):
            raise ValueError(
                f"lora.targets: no linear layer or attention that is trained is called {end!r}; "
                f"there are {sorted({name.rpartition('.')[2] for name in found})}"
            )
    names = [name for name in found if not ends or any(_ends(name, end) for end in ends)]
    if not names:
        raise ValueError("tuning.lora has no effect: no linear layer or attention is trained")
    return names


def _ends(name: str, end: str) -> bool:
    return name == end or name.endswith(f".{end}")


def _weight(part: nn.Module) -> Tensor:
    return getattr(part, PACKED) if hasattr(part, PACKED) else part.weight  # pyright: ignore[reportReturnType]


def _is_packed(part: nn.Module) -> bool:
    weight = part._parameters.get(PACKED)
    return weight is not None and weight.ndim == 2


def _called(model: TwoTower) -> list[str]:
    """Name the modules that a forward pass of both towers calls, in their order."""
    module: Any = model.module
    called: dict[str, None] = {}
    hooks = [
        part.register_forward_hook(lambda *_, name=name: called.setdefault(name))
        for name, part in module.named_modules()
    ]
    images, tokens = sample_inputs(model)
    modes = [(part, part.training) for part in module.modules()]
    module.eval()  # statistics stay as they are
    try:
        with preserved_generators(), torch.enable_grad():
            module.encode_image(images)
            module.encode_text(tokens)
    finally:
        for hook in hooks:
            hook.remove()
        for part, mode in modes:
            part.training = mode
    return list(called)


@torch.no_grad()
def merged_weights(module: nn.Module, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Add adapters to weights, which get the names of the model without adapters.

    Args:
        module: model with adapters, which hold the same values as `weights`; or without, whose
            weights are returned as they are.
        weights: its whole state.
    """
    found = {name.replace(BASE, ""): it for name, it in weights.items() if ".lora_" not in name}
    for name, part in module.named_modules():
        if ADAPTER not in getattr(part, "lora_A", {}):
            continue
        adapter: Any = part
        weight = f"{name}.{getattr(adapter, 'parameter_name', 'weight')}"
        delta = adapter.get_delta_weight(ADAPTER)
        found[weight] = found[weight] + delta.to(found[weight].device)
    return found
