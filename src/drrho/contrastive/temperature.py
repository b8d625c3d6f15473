"""The temperature of a contrastive loss: a constant, or a learned scalar."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

CLIP_MINIMUM = 0.01  # CLIP's logit scale stops at 100


@dataclass(frozen=True, kw_only=True)
class TemperatureConfig:
    """How the temperature is set.

    Attributes:
        initial: tau, in units of cosine similarity.
        learned: whether tau follows its gradient.
        minimum: smallest tau that learning may reach; None means CLIP's 0.01. Only if learned.
    """

    initial: float = 0.07
    learned: bool = False
    minimum: float | None = None

    def __post_init__(self):
        if self.minimum is not None and not self.learned:
            raise ValueError(
                f"temperature.minimum = {self.minimum} has no effect on a constant temperature; "
                "set temperature.learned, or leave it out"
            )
        if not 0 < self.initial < math.inf:
            raise ValueError(f"temperature.initial must be positive, got {self.initial}")
        if self.learned and not 0 < self.floor <= self.initial:
            raise ValueError(
                f"temperature.minimum must be positive and at most temperature.initial = "
                f"{self.initial}, got {self.floor}"
            )

    @property
    def floor(self) -> float:
        """The smallest tau that learning may reach."""
        return CLIP_MINIMUM if self.minimum is None else self.minimum


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
        self._log_minimum = math.log(config.floor)

    def forward(self) -> Float[Tensor, ""]:
        if isinstance(self.log_temperature, nn.Parameter):
            with torch.no_grad():
                self.log_temperature.clamp_(min=self._log_minimum)
        return self.log_temperature.exp()
