"""Exponential moving average of a model's weights, by torch.optim.swa_utils."""

from dataclasses import dataclass

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn


@dataclass(frozen=True, kw_only=True)
class EMA:
    """Exponential moving average of the weights: after a step, a = decay * a + (1 - decay) * w.

    It begins with the weights after the first step. The statistics of BatchNorm are averaged too.

    Attributes:
        decay: share of the average that a step keeps.
    """

    decay: float = 0.999

    def __post_init__(self) -> None:
        if not 0 < self.decay < 1:
            raise ValueError(f"ema.decay must be in (0, 1), got {self.decay}")


def build_average(module: nn.Module, config: EMA) -> AveragedModel:
    """Build the average of a module's weights, a copy in evaluation mode.

    Args:
        module: module that is not wrapped, compiled or sharded yet.
    """
    average = AveragedModel(module, multi_avg_fn=get_ema_multi_avg_fn(config.decay))
    average.requires_grad_(False)
    return average.eval()


@torch.no_grad()
def update_average(average: AveragedModel, module: nn.Module) -> None:
    """Add the present weights and buffers to the average.

    They are matched by name: adapters change the order in which a module lists its parameters.
    """
    own, theirs = average.module.state_dict(), module.state_dict()
    moving = [name for name, value in own.items() if value.is_floating_point()]
    if average.n_averaged == 0:
        moving = []
    if moving:
        assert average.multi_avg_fn is not None
        average.multi_avg_fn(
            [own[name] for name in moving],
            [theirs[name] for name in moving],
            average.n_averaged,
        )
    for name in own.keys() - set(moving):
        own[name].copy_(theirs[name])
    average.n_averaged += 1
