"""The temperature of a contrastive loss: constant, or learned for all anchors or for each."""

import math
import warnings
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from drrho.contrastive.memory.sample_table import SampleBatch, SampleTable
from drrho.runtime.distributed import ProcessGroup

CLIP_MINIMUM = 0.01  # CLIP's logit scale stops at 100
PER_SAMPLE_RATE = 0.01
PER_SAMPLE_MOMENTUM = 0.9

TemperatureKind = Literal["constant", "learned", "per_direction", "per_sample"]


@dataclass(frozen=True, kw_only=True)
class TemperatureConfig:
    """How the temperature is set.

    Attributes:
        initial: tau, in units of cosine similarity.
        kind: "constant"; "learned", one tau that follows its gradient by the optimiser;
            "per_direction", one for image anchors and one for text anchors; "per_sample", one for
            each sample and direction, which follow their gradients by `SampleTemperatures`.
        minimum: smallest tau that learning may reach; None means CLIP's 0.01.
        maximum: largest, of "per_sample"; None is without a limit.
        learning_rate: of "per_sample", in units of cosine similarity per nat; None means 0.01.
        momentum: of "per_sample", in [0, 1): share of the old direction; None means 0.9.
    """

    initial: float = 0.07
    kind: TemperatureKind = "constant"
    minimum: float | None = None
    maximum: float | None = None
    learning_rate: float | None = None
    momentum: float | None = None

    def __post_init__(self):
        if self.kind not in ("constant", "learned", "per_direction", "per_sample"):
            raise ValueError(
                "temperature.kind must be constant, learned, per_direction or per_sample, got "
                f"{self.kind!r}"
            )
        if self.minimum is not None and not self.learned:
            raise ValueError(
                f"temperature.minimum = {self.minimum} has no effect on a constant temperature; "
                "set temperature.kind, or leave it out"
            )
        for name in ("maximum", "learning_rate", "momentum"):
            if (value := getattr(self, name)) is not None and self.kind != "per_sample":
                raise ValueError(
                    f"temperature.{name} = {value} has no effect on temperature.kind = "
                    f"{self.kind!r}; it belongs to 'per_sample'"
                )
        if not 0 < self.initial < math.inf:
            raise ValueError(f"temperature.initial must be positive, got {self.initial}")
        if self.learned and not 0 < self.floor <= self.initial:
            raise ValueError(
                f"temperature.minimum must be positive and at most temperature.initial = "
                f"{self.initial}, got {self.floor}"
            )
        if self.maximum is not None and not self.initial <= self.maximum:
            raise ValueError(
                f"temperature.maximum must be at least temperature.initial = {self.initial}, got "
                f"{self.maximum}"
            )
        if self.learning_rate is not None and not 0 < self.learning_rate < math.inf:
            raise ValueError(
                f"temperature.learning_rate must be positive, got {self.learning_rate}"
            )
        if self.momentum is not None and not 0 <= self.momentum < 1:
            raise ValueError(f"temperature.momentum must be in [0, 1), got {self.momentum}")

    @property
    def learned(self) -> bool:
        return self.kind != "constant"

    @property
    def floor(self) -> float:
        """The smallest tau that learning may reach."""
        return CLIP_MINIMUM if self.minimum is None else self.minimum


class Temperature(nn.Module):
    """tau = exp(s), with s a parameter or a constant; calling it gives tau.

    tau is a scalar, or (2, 1) for the kind "per_direction". Learning the logarithm keeps tau
    positive and its steps relative, as CLIP's logit scale does. Below `minimum` tau is held, and
    so that it can rise again its gradient is not cut off there.
    """

    log_temperature: Tensor

    def __init__(self, config: TemperatureConfig):
        super().__init__()
        shape = (2, 1) if config.kind == "per_direction" else ()
        initial = torch.full(shape, math.log(config.initial))
        if config.learned:
            self.log_temperature = nn.Parameter(initial)
        else:
            self.register_buffer("log_temperature", initial)
        self._log_minimum = math.log(config.floor)

    def forward(self) -> Float[Tensor, "..."]:
        if isinstance(self.log_temperature, nn.Parameter):
            with torch.no_grad():
                self.log_temperature.clamp_(min=self._log_minimum)
        return self.log_temperature.exp()


class SampleTemperatures(nn.Module):
    """A tau per data-set sample and direction, moved by its exact gradient.

        v_i <- momentum v_i + (1 - momentum) G_i,   tau_i <- clip(tau_i - learning_rate v_i)
        G_i = dF_i / dtau_i,   F_i = tau_i (rho + log(epsilon + g_i(tau_i)))

    with the estimator's U_i in the place of epsilon + g_i. G_i is in nats; it is zero where the
    weights of the anchor's negatives are rho nats from uniform. A reference changes g_i and
    nothing else. State: four floats per sample, shared by the processes as `SampleTable` says.

    Source: Qiu et al., "Not all semantics are created equal: contrastive self-supervised learning
    with automatic temperature individualization" (iSogCLR), 2023; docs/mathematics.md,
    "Temperature".
    """

    def __init__(
        self, config: TemperatureConfig, *, num_samples: int, group: ProcessGroup | None = None
    ):
        super().__init__()
        self.temperatures = SampleTable(num_samples, initial=config.initial, group=group)
        self.directions = SampleTable(num_samples, initial=0.0, group=group)
        self._range = (config.floor, config.maximum)
        self._rate = PER_SAMPLE_RATE if config.learning_rate is None else config.learning_rate
        self._momentum = PER_SAMPLE_MOMENTUM if config.momentum is None else config.momentum

    def forward(self, batch: SampleBatch, *, dtype: torch.dtype) -> Float[Tensor, "2 batch"]:
        """The temperatures of a batch's image and text anchors.

        The backward pass through them moves them, once: it must come from the mean over the
        batch's anchors, as `GlobalContrastiveLoss` computes it, and neither scaled nor repeated.
        """
        taken = self.temperatures.read(batch).to(dtype).clone()
        if torch.is_grad_enabled():
            taken.requires_grad_()
            taken.register_hook(lambda gradient: self._move(batch, gradient))
        return taken

    @torch.no_grad()
    def _move(self, batch: SampleBatch, gradient: Tensor) -> None:
        pairs = batch.pairs
        of_anchors = gradient * (2 * pairs.num_rows / pairs.num_processes)
        directions = self.directions.update_owned(
            batch,
            batch.owned_means(of_anchors),
            lambda before, arriving: before.lerp(arriving, self._weight),
        )
        self.temperatures.update_owned(
            batch,
            directions,
            lambda before, arriving: (before - self._rate * arriving).clamp(*self._range),
        )

    @property
    def _weight(self) -> float:
        return 1 - self._momentum


def warn_if_unreachable(rho: float, *, num_pairs: int) -> None:
    """Warns of a radius beyond `log(B - 1)`, the most that weights on B - 1 negatives can reach."""
    reachable = math.log(max(1, num_pairs - 1))
    if rho > reachable:
        warnings.warn(
            f"rho = {rho} cannot be reached: weights on the {num_pairs - 1} negatives of a batch "
            f"of {num_pairs} are at most {reachable:.2f} nats from uniform, so that a learned "
            "temperature falls to its minimum; lower rho or enlarge the batch",
            stacklevel=2,
        )
