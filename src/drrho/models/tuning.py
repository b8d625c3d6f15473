"""What of a pretrained model is trained: locked towers and layers, adapters of low rank."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from types import MethodType
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from drrho.models.layers import Tower, TowerLayers, layers_of
from drrho.models.lora import LoRA, add_adapters
from drrho.models.two_tower import TwoTower
from drrho.runtime.checks import require_at_least
from drrho.runtime.records import OPTIONAL

HAS_LAYER_NORM_OPTION = "HFTextEncoder"  # the text tower of open_clip that has it


@dataclass(frozen=True, kw_only=True)
class Tuning:
    """Parts of a pretrained model that are not trained; by default all are trained.

    The locks work as open_clip's options of the same names, by its own functions where a
    model has them. The towers of other models are locked layer by layer (`TowerLayers`).

    Attributes:
        lock_image: lock the image tower.
        lock_image_unlocked_groups: groups of layers at the end of the image tower that are trained
            all the same.
        lock_image_freeze_bn_stats: whether BatchNorm of the locked part keeps its statistics;
            False lets them follow the data, as open_clip does without its option. None is True
            where there is BatchNorm.
        lock_text: lock the text tower.
        lock_text_unlocked_layers: layers at the end of the text tower that are nevertheless
            trained.
        lock_text_freeze_layer_norm: whether LayerNorm of the locked part is locked too. False is
            only for Hugging Face text towers in open_clip, where it is the default (None); for
            others None is True.
        lora: adapters of low rank; of a layer with an adapter, only the adapter is trained. None
            trains the weights themselves.
    """

    lock_image: bool = False
    lock_image_unlocked_groups: int = 0
    lock_image_freeze_bn_stats: bool | None = None
    lock_text: bool = False
    lock_text_unlocked_layers: int = 0
    lock_text_freeze_layer_norm: bool | None = None
    lora: LoRA | None = field(default=None, metadata=OPTIONAL)

    def __post_init__(self) -> None:
        require_at_least(
            0,
            lock_image_unlocked_groups=self.lock_image_unlocked_groups,
            lock_text_unlocked_layers=self.lock_text_unlocked_layers,
        )
        for lock, own in (
            ("lock_image", ("lock_image_unlocked_groups", "lock_image_freeze_bn_stats")),
            ("lock_text", ("lock_text_unlocked_layers", "lock_text_freeze_layer_norm")),
        ):
            for name in own:
                value = getattr(self, name)
                if not getattr(self, lock) and value not in (None, 0):
                    raise ValueError(f"tuning.{name} = {value} has no effect without {lock}")

    @property
    def locks(self) -> bool:
        return self.lock_image or self.lock_text


def tune(model: TwoTower, config: Tuning, *, seed: int) -> None:
    """Lock parts of a model, and give it adapters; before it has an optimiser.

    Args:
        seed: random seed of the adapters; the global generator is untouched.

    Raises:
        ValueError: an option has no effect on this model, or nothing of it would be trained.
        ModuleNotFoundError: peft is needed and not installed.
    """
    # They are found before anything is locked, since a locked parameter has no gradient.
    layers = layers_of(model) if config.locks and not _locks_itself(model.module) else None
    if config.lock_image:
        _lock_image(model.module, config, layers)
    if config.lock_text:
        _lock_text(model.module, config, layers)
    if config.lora is not None:
        trained = _trained(model.module)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            add_adapters(model, config.lora)
        keep_statistics(_locked_batch_norms(model.module, trained))
    if not any(p.requires_grad for p in model.module.parameters()):
        raise ValueError(
            "tuning locks both towers wholly, so that nothing of the model would be trained; leave "
            "some layers unlocked (lock_image_unlocked_groups, lock_text_unlocked_layers)"
        )


def _locks_itself(module: Any) -> bool:
    """Whether a model has open_clip's functions."""
    return callable(getattr(module, "lock_image_tower", None))


def _lock_image(module: Any, config: Tuning, layers: TowerLayers | None) -> None:
    number, trained = config.lock_image_unlocked_groups, _trained(module)
    if layers is not None:
        _lock_layers(module, layers, "image", number, option="lock_image_unlocked_groups")
    else:
        try:
            module.lock_image_tower(unlocked_groups=number, freeze_bn_stats=False)
        except (AssertionError, KeyError, RuntimeError) as error:
            raise ValueError(
                f"tuning.lock_image_unlocked_groups = {number} does not fit this image tower: "
                f"{error or type(error).__name__}"
            ) from error
    _require_effect(module, trained, f"lock_image with lock_image_unlocked_groups = {number}")
    norms = _locked_batch_norms(module, trained)
    if config.lock_image_freeze_bn_stats is not None and not norms:
        raise ValueError(
            f"tuning.lock_image_freeze_bn_stats = {config.lock_image_freeze_bn_stats} has no "
            "effect: the locked part of the image tower has no BatchNorm; leave it out"
        )
    if config.lock_image_freeze_bn_stats is not False:
        keep_statistics(norms)


def _lock_text(module: Any, config: Tuning, layers: TowerLayers | None) -> None:
    number, trained = config.lock_text_unlocked_layers, _trained(module)
    freeze = config.lock_text_freeze_layer_norm
    has_choice = type(getattr(module, "text", None)).__name__ == HAS_LAYER_NORM_OPTION
    if freeze is False and not has_choice:
        raise ValueError(
            "tuning.lock_text_freeze_layer_norm = False has no effect: this text tower has no "
            "LayerNorm that could be trained alone; only those of Hugging Face in open_clip do"
        )
    if layers is not None:
        _lock_layers(module, layers, "text", number, option="lock_text_unlocked_layers")
    else:
        if has_choice:
            _require_layers_of_hugging_face(module.text, number)
        module.lock_text_tower(
            unlocked_layers=number, freeze_layer_norm=(not has_choice) if freeze is None else freeze
        )
    _require_effect(module, trained, f"lock_text with lock_text_unlocked_layers = {number}")
    keep_statistics(_locked_batch_norms(module, trained))


def _require_layers_of_hugging_face(tower: Any, number: int) -> None:
    """Raise ValueError where open_clip would take more layers than there are for none at all."""
    config = tower.config
    total = getattr(config, "num_hidden_layers", None) or getattr(config, "num_layers", None)
    if total is not None and number > total:
        raise ValueError(
            f"tuning.lock_text_unlocked_layers = {number} leaves nothing locked: the text tower "
            f"has {total} layers and the embeddings; give fewer, or leave lock_text out"
        )


def _lock_layers(
    module: nn.Module, layers: TowerLayers, tower: Tower, number: int, *, option: str
) -> None:
    own = layers.of(tower)
    if number >= len(own):
        raise ValueError(
            f"tuning.{option} = {number} leaves nothing locked: the {tower} tower has "
            f"{len(own)} {'layer' if len(own) == 1 else 'groups of layers'}"
        )
    for layer in own[: len(own) - number]:
        for name in layer:
            module.get_parameter(name).requires_grad_(False)


def _trained(module: nn.Module) -> set[str]:
    return {name for name, p in module.named_parameters() if p.requires_grad}


def _require_effect(module: nn.Module, before: set[str], what: str) -> None:
    if _trained(module) == before:
        raise ValueError(
            f"tuning.{what} locks nothing of this model: the tower has no more groups of layers "
            "than that; give fewer, or leave the lock out"
        )


def _locked_batch_norms(module: nn.Module, before: set[str]) -> list[nn.Module]:
    """List the BatchNorms all of whose parameters were trained before and are no more."""
    locked = before - _trained(module)
    found = []
    for name, part in module.named_modules():
        own = [f"{name}.{parameter}" for parameter, _ in part.named_parameters(recurse=False)]
        if isinstance(part, _BatchNorm) and own and locked.issuperset(own):
            found.append(part)
    return found


def keep_statistics(norms: Iterable[nn.Module]) -> None:
    """Keep BatchNorms in evaluation mode, whatever mode the model is put into."""
    for norm in norms:
        norm.eval()
        norm.train = MethodType(_stay, norm)


def _stay(norm: nn.Module, _mode: bool = True) -> nn.Module:
    return norm


def describe_tuning(config: Tuning, module: nn.Module) -> Sequence[str]:
    """Describe what is locked, in words; nothing where nothing is."""
    words = []
    for tower, locked, number, unit in (
        ("image", config.lock_image, config.lock_image_unlocked_groups, "groups of layers"),
        ("text", config.lock_text, config.lock_text_unlocked_layers, "layers"),
    ):
        if locked:
            kept = f" but for its last {number} {unit}" if number else ""
            words.append(f"the {tower} tower is locked{kept}")
    if config.lora is not None:
        words.append(f"adapters of rank {config.lora.rank} alone are trained")
    if words:
        total = sum(p.numel() for p in module.parameters())
        trained = sum(p.numel() for p in module.parameters() if p.requires_grad)
        words.append(f"{trained:,} of {total:,} parameters are trained")
    return words
