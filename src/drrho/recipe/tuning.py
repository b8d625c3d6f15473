"""Learning rates by tower and layer, from a recipe's optimiser and a model's layers."""

from collections.abc import Mapping

from torch import nn

from drrho.models.layers import TOWERS, Tower, TowerLayers, layers_of
from drrho.models.tuning import tune
from drrho.models.two_tower import TwoTower
from drrho.recipe.recipe import Recipe
from drrho.training.optimizer import Optimizer, RateGroup


def prepare_target(model: TwoTower, recipe: Recipe) -> Mapping[str, RateGroup] | None:
    """Lock what the recipe locks, add its adapters, and give each parameter its learning rate.

    Returns:
        Group of each trained parameter; None where all have the same rate.

    Raises:
        ValueError: an option has no effect on this model.
    """
    optimizer = recipe.training.optimizer
    wanted = (optimizer.image_lr_scale, optimizer.text_lr_scale, optimizer.layer_decay)
    # Before anything is locked: a layer counts from the end of the whole tower.
    layers = None if wanted == (None, None, None) else layers_of(model)
    tune(model, recipe.tuning, seed=recipe.seed)
    return None if layers is None else rates_by_layer(model.module, layers, optimizer)


def rates_by_layer(
    module: nn.Module, layers: TowerLayers, optimizer: Optimizer
) -> dict[str, RateGroup]:
    """Give each trained parameter of a model its group.

    Layer l of L in a tower has the rate of the tower times `layer_decay^(L - l)`. An adapter has
    the rate of its layer.

    Raises:
        ValueError: an option has no effect.

    Source: the decay follows Bao et al., "BEiT: BERT pre-training of image transformers",
        2022, as `layer_decay` of timm has it.
    """
    trained = [name for name, p in module.named_parameters() if p.requires_grad]
    found: dict[str, RateGroup] = {}
    for tower in TOWERS:
        found |= _rates_of_tower(tower, trained, layers.of(tower), optimizer)
    if optimizer.layer_decay is not None and len({it.scale for it in found.values()}) < 2:
        raise ValueError(
            f"training.optimizer.layer_decay = {optimizer.layer_decay} has no effect: what is "
            "trained of this model is one layer; leave it out"
        )
    return found


def _rates_of_tower(
    tower: Tower, trained: list[str], layers: tuple[tuple[str, ...], ...], optimizer: Optimizer
) -> dict[str, RateGroup]:
    option = f"{tower}_lr_scale"
    scale = getattr(optimizer, option)
    decay = optimizer.layer_decay
    found: dict[str, RateGroup] = {}
    for number, layer in enumerate(layers):
        own = [name for name in trained if _belongs(name, layer)]
        name = tower if decay is None else f"{tower}/{number:02d}"
        share = 1.0 if decay is None else decay ** (len(layers) - 1 - number)
        rate = (1.0 if scale is None else scale) * share
        found |= dict.fromkeys(own, RateGroup(name, rate))
    if scale is not None and not found:
        raise ValueError(
            f"training.optimizer.{option} = {scale} has no effect: nothing of the {tower} tower is "
            "trained; leave it out"
        )
    return found


def _belongs(name: str, layer: tuple[str, ...]) -> bool:
    """Whether a parameter, or the weight that an adapter is for, is in a layer."""
    module, adapter, _ = name.partition(".lora_")
    if adapter:
        return any(it.startswith(f"{module}.") for it in layer)
    return name.replace("base_layer.", "") in layer
