"""The temperature of a contrastive loss: a constant, or a learned scalar."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn


@dataclass(frozen=True, kw_only=True)
class TemperatureConfig:
    """How the temperature is set.

    Attributes:
        initial: tau, in units of cosine similarity.
        learned: whether tau follows its gradient.
        minimum: smallest tau that learning may reach (CLIP: 0.01).
    """

    initial: float = 0.07
    learned: bool = False
    minimum: float = 0.01

    def __post_init__(self):
        if not self.minimum > 0:
            raise ValueError(f"temperature.minimum must be positive, got {self.minimum}")
        if not self.initial >= self.minimum:
            raise ValueError(
                f"temperature.initial must be at least temperature.minimum = {self.minimum}, "
                f"got {self.initial}"
            )


class Temperature(nn.Module):
    """tau = exp(s), with s a parameter or a constant; calling it gives tau, a scalar.

    Learning the logarithm keeps tau positive and its steps relative, as CLIP's logit scale
    does. Below `minimum` tau is held, and so that it can rise again its gradient is not
    cut off there.
    """

    log_temperature: Tensor

    def __init__(self, config: TemperatureConfig):
        super().__init__()
        initial = torch.tensor(math.log(config.initial))
        if config.learned:
            self.log_temperature = nn.Parameter(initial)
        else:
            self.register_buffer("log_temperature", initial)
        self._log_minimum = math.log(config.minimum)

    def forward(self) -> Float[Tensor, ""]:
        if isinstance(self.log_temperature, nn.Parameter):
            with torch.no_grad():
                self.log_temperature.clamp_(min=self._log_minimum)
        return self.log_temperature.exp()
