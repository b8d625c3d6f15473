"""Temperatures of a contrastive loss: constant, learned for all anchors, or for each of them."""

import math
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Literal, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from drrho.contrastive.memory.sample_table import SampleBatch, SampleTable
from drrho.runtime.checks import require_choice, require_positive
from drrho.runtime.distributed import ProcessGroup

CLIP_MINIMUM, CLIP_MAXIMUM = 0.01, 1.0  # CLIP's logit scale stops at 100 and at 1
Rule = Literal["momentum", "adam"]
ADAM_CLIP, ADAM_SQUARES, ADAM_EPSILON = 5.0, 0.999, 1e-8  # of the published code of FastCLIP


def require_temperature(name: str, value: float) -> None:
    """Raise ValueError unless a number can be a temperature in units of cosine similarity."""
    require_positive(**{name: value})
    if value > 1:
        raise ValueError(
            f"{name} = {value}: this looks like a logit scale; a temperature is in units of cosine "
            f"similarity, give its inverse 1 / {value} = {1 / value:.3g}"
        )


Tau = Float[Tensor, "..."] | float


def as_tau(temperature: Tau, like: Tensor) -> Float[Tensor, "..."]:
    """Make a temperature that is given as a number a tensor, beside embeddings."""
    if isinstance(temperature, Tensor):
        return temperature
    require_temperature("temperature", temperature)
    wide = torch.promote_types(like.dtype, torch.float32)
    return torch.tensor(temperature, dtype=wide, device=like.device)


@dataclass(frozen=True, kw_only=True)
class Constant:
    """A constant temperature.

    Attributes:
        initial: tau, in units of cosine similarity.
    """

    kind: ClassVar = "constant"
    learned: ClassVar = False
    initial: float = 0.07

    def __post_init__(self):
        require_temperature("temperature.initial", self.initial)


@dataclass(frozen=True, kw_only=True)
class Moving:
    """Fields of temperatures that are learned.

    Attributes:
        initial: tau at the start, in units of cosine similarity.
        minimum: smallest tau that learning may reach; CLIP's is 0.01.
        maximum: largest tau that learning may reach; CLIP's is 1. None and infinity are no limit.
    """

    learned: ClassVar = True
    initial: float = 0.07
    minimum: float = CLIP_MINIMUM
    maximum: float | None = math.inf

    def __post_init__(self):
        require_temperature("temperature.initial", self.initial)
        if not 0 < self.minimum <= self.initial:
            raise ValueError(
                "temperature.minimum must be positive and at most temperature.initial = "
                f"{self.initial}, got {self.minimum}"
            )
        # A file has null for infinity. An object of its own, which is not the default's, is kept
        # where the class is changed to one with a limit.
        maximum = float("inf") if self.maximum is None else self.maximum
        object.__setattr__(self, "maximum", maximum)
        if not self.initial <= maximum:
            raise ValueError(
                f"temperature.maximum must be at least temperature.initial = {self.initial}, got "
                f"{self.maximum}"
            )


@dataclass(frozen=True, kw_only=True)
class Learned(Moving):
    """A temperature that follows its gradient by the optimiser.

    Attributes:
        per_direction: one tau for image anchors and one for text anchors, instead of one for both.
    """

    kind: ClassVar = "learned"
    maximum: float | None = CLIP_MAXIMUM
    per_direction: bool = False


@dataclass(frozen=True, kw_only=True)
class PerSample(Moving):
    """A temperature for each sample and direction, which `SampleTemperatures` moves.

    Attributes:
        learning_rate: step size in units of cosine similarity, per nat with "momentum".
        momentum: share of the old direction, in [0, 1); 1 - beta_u of iSogCLR's and LibAUC's code.
        rule: "momentum" moves by the averaged gradient, "adam" by the gradient over its root mean
            square, clipped to 5 nats, as the published code of FastCLIP does.
    """

    kind: ClassVar = "per_sample"
    learning_rate: float = 0.01
    momentum: float = 0.9
    rule: Rule = "momentum"

    def __post_init__(self):
        super().__post_init__()
        require_choice("temperature.rule", self.rule, Rule)
        require_positive(**{"temperature.learning_rate": self.learning_rate})
        if not 0 <= self.momentum < 1:
            raise ValueError(f"temperature.momentum must be in [0, 1), got {self.momentum}")


OneTemperature = Constant | Learned  # the same for all samples
AnyTemperature = Constant | Learned | PerSample

if TYPE_CHECKING:
    Kind = TypeVar("Kind", bound=AnyTemperature)

    class OrFloat(Generic[Kind]):
        """A field that takes a float too, and holds a temperature: see `as_temperature`."""

        def __get__(self, instance: object, owner: Any) -> Kind: ...

        def __set__(self, instance: object, value: Kind | float) -> None: ...

    OneTemperatureOrFloat = OrFloat[OneTemperature]
    AnyTemperatureOrFloat = OrFloat[AnyTemperature]
else:
    OneTemperatureOrFloat = OneTemperature | float
    AnyTemperatureOrFloat = AnyTemperature | float

DEFAULT_TEMPERATURE: Any = Constant()


def as_temperature(objective: object) -> None:
    """Make `objective.temperature`, where it was given as a float, a `Constant`."""
    given: object = vars(objective)["temperature"]
    if isinstance(given, int | float):
        require_temperature("temperature", given)
        object.__setattr__(objective, "temperature", Constant(initial=given))
    elif not isinstance(given, AnyTemperature):
        raise TypeError(
            "temperature must be a number, Constant, Learned or PerSample, got "
            f"{type(given).__name__}"
        )


class Temperature(nn.Module):
    """tau = exp(s), with s a parameter or a constant; a scalar, or (2, 1) per direction.

    Learning the logarithm keeps tau positive and its steps relative, as CLIP's logit scale does.
    At `minimum` and `maximum` tau is held, with its gradient, so that it can come back.
    """

    log_temperature: Tensor

    def __init__(self, config: OneTemperature):
        super().__init__()
        if isinstance(config, Learned):
            shape = (2, 1) if config.per_direction else ()
            self.log_temperature = nn.Parameter(torch.full(shape, math.log(config.initial)))
            self._log_range = math.log(config.minimum), math.log(config.maximum or math.inf)
        else:
            self.register_buffer("log_temperature", torch.full((), math.log(config.initial)))

    def forward(self) -> Float[Tensor, "..."]:
        if isinstance(self.log_temperature, nn.Parameter):
            with torch.no_grad():
                self.log_temperature.clamp_(*self._log_range)
        return self.log_temperature.exp()


class SampleTemperatures(nn.Module):
    """A tau per data-set sample and direction, moved by its exact gradient.

        v_i <- momentum v_i + (1 - momentum) G_i,   tau_i <- clip(tau_i - learning_rate v_i)
        G_i = dF_i / dtau_i,   F_i = tau_i (rho + log(epsilon + g_i(tau_i)))

    with the estimator's U_i in the place of epsilon + g_i. G_i, in nats, is zero where the weights
    of the anchor's negatives are rho nats from uniform. State: four floats per sample, shared by
    the processes as in `SampleTable`.

    The rule "adam" is the published code's. At visit k of a sample, from 0, with G_i clipped to
    [-5, 5], both shares 0 and no correction at visit 0, and four floats more per sample:

        v_i <- 0.9 v_i + 0.1 G_i,   s_i <- 0.999 s_i + 0.001 G_i^2
        tau_i <- clip(tau_i - learning_rate v'_i / (sqrt(s'_i) + 1e-8))
        v'_i = v_i / (1 - 0.9^(k + 1)),   s'_i = s_i / (1 - 0.999^(k + 1))

    Source: Qiu et al., "Not all semantics are created equal: contrastive self-supervised learning
    with automatic temperature individualization" (iSogCLR), 2023; docs/mathematics.md,
    "Temperature". "adam": `FastCLIPLossIndividual` of the repository Optimization-AI/fast_clip,
    whose 0.9 is `momentum` here, and which counts epochs where this counts visits. 0.999 and 1e-8
    are those of its script, which trains a ResNet-50; it takes them from AdamW's options, whose
    defaults for a ViT are 0.98 and 1e-6.
    """

    def __init__(self, config: PerSample, *, num_samples: int, group: ProcessGroup | None = None):
        super().__init__()
        self.temperatures = SampleTable(num_samples, initial=config.initial, group=group)
        self.directions = SampleTable(num_samples, initial=0.0, group=group)
        self._range = (config.minimum, config.maximum)
        self._rate = config.learning_rate
        self._weight = 1 - config.momentum  # of the newest gradient
        self._adam = config.rule == "adam"
        if self._adam:
            self.squares = SampleTable(num_samples, initial=0.0, group=group)
            self.visits = SampleTable(num_samples, initial=0.0, group=group)

    def forward(self, batch: SampleBatch, *, dtype: torch.dtype) -> Float[Tensor, "2 batch"]:
        """Read the temperatures of a batch's anchors; the backward pass moves them, once.

        It must come from the mean over the batch's anchors, as `GlobalContrastiveLoss` computes it,
        neither scaled nor repeated.
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
        gradients = batch.owned_means(of_anchors)
        if self._adam:
            directions = self._adam_directions(batch, gradients)
        else:
            directions = self.directions.update_owned(
                batch, gradients, lambda before, values: before.lerp(values, self._weight)
            )
        self.temperatures.update_owned(
            batch,
            directions,
            lambda before, values: (before - self._rate * values).clamp(*self._range),
        )

    def _adam_directions(self, batch: SampleBatch, gradients: Tensor) -> Tensor:
        # What is nan leaves an entry as it was, in every table.
        clipped = gradients.clamp(-ADAM_CLIP, ADAM_CLIP)
        gradients = clipped.where(gradients.isfinite(), math.nan)
        visits = self.visits.update_owned(batch, gradients, lambda k, g: k + 1 + 0 * g)

        def averaged(table: SampleTable, values: Tensor, weight: float) -> Tensor:
            first = visits == 1
            after = table.update_owned(
                batch, values, lambda old, new: torch.where(first, new, old.lerp(new, weight))
            )
            return torch.where(first, after, after / (1 - (1 - weight) ** visits))

        mean = averaged(self.directions, gradients, self._weight)
        square = averaged(self.squares, gradients.square(), 1 - ADAM_SQUARES)
        return mean / (square.sqrt() + ADAM_EPSILON)


def warn_if_unreachable(rho: float, *, num_pairs: int) -> None:
    """Warn of a radius beyond `log(B - 1)`, the most that weights on B - 1 negatives can reach."""
    reachable = math.log(max(1, num_pairs - 1))
    if rho > reachable:
        warnings.warn(
            f"rho = {rho} cannot be reached: weights on the {num_pairs - 1} negatives of a batch "
            f"of {num_pairs} are at most {reachable:.2f} nats from uniform, so that a learned "
            "temperature falls to its minimum; lower rho or enlarge the batch",
            stacklevel=2,
        )
