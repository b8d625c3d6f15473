"""The choice of a contrastive objective: CLIP, FastCLIP or DRRho-CLIP."""

from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from jaxtyping import Float, Int
from torch import Tensor, nn

from drrho.contrastive.diagnostics import contrastive_diagnostics
from drrho.contrastive.estimator import GlobalContrastiveLoss
from drrho.contrastive.risk import PairEmbeddings, clip_loss_of_means
from drrho.contrastive.temperature import Temperature, TemperatureConfig
from drrho.contrastive.tiles import tiled_log_gap_means

Method = Literal["clip", "fastclip", "drrho_clip"]


@dataclass(frozen=True, kw_only=True)
class ObjectiveConfig:
    """What is minimised.

    Attributes:
        method: "clip", the symmetric cross-entropy of the batch; "fastclip", the global
            contrastive risk; "drrho_clip", the same on the excess over a reference.
        temperature: constant or learned.
        epsilon: floor of the sums; None means 1e-4 with a reference and 1e-14 without, as
            published. CLIP has no such choice.
        rho: radius of the ambiguity set in nats; given exactly if the temperature is learned,
            since without it the temperature would grow for ever. Not for CLIP.
        gamma_min: where the weight of the newest batch in the per-sample averages ends; None
            means `recommended_gamma_min` of the run's epochs, 1 means no averaging. Not for
            CLIP.
    """

    method: Method
    temperature: TemperatureConfig = field(default_factory=TemperatureConfig)
    epsilon: float | None = None
    rho: float | None = None
    gamma_min: float | None = None

    def __post_init__(self):
        if self.method == "clip":
            for name in ("epsilon", "rho", "gamma_min"):
                if (value := getattr(self, name)) is not None:
                    raise ValueError(
                        f"objective.{name} = {value} has no effect on method 'clip'; leave it out"
                    )
        if self.rho is not None and not self.temperature.learned:
            raise ValueError(
                f"objective.rho = {self.rho} only acts through a learned temperature; set "
                "objective.temperature.learned, or leave rho out"
            )
        if self.rho is None and self.temperature.learned and self.method != "clip":
            raise ValueError(
                f"method {self.method!r} with a learned temperature needs objective.rho: without "
                "it every step raises the temperature. FastCLIP was published with 6.5 to 11; "
                "it must lie below log(batch size - 1) to be reached"
            )
        if self.epsilon is not None and not self.epsilon > 0:
            raise ValueError(f"objective.epsilon must be positive, got {self.epsilon}")
        if self.rho is not None and not self.rho >= 0:
            raise ValueError(f"objective.rho must be at least 0, got {self.rho}")
        if self.gamma_min is not None and not 0 < self.gamma_min <= 1:
            raise ValueError(f"objective.gamma_min must be in (0, 1], got {self.gamma_min}")

    @property
    def needs_reference(self) -> bool:
        return self.method == "drrho_clip"


def recommended_gamma_min(epochs: float) -> float:
    """`min(1, 4.177 E^-0.7265)`: the longer a run, the longer its averages.

    Source: docs/mathematics.md, "Per-sample estimators".
    """
    if not epochs > 0:
        raise ValueError(f"epochs must be positive, got {epochs}")
    return min(1.0, 4.177 * epochs**-0.7265)


class ObjectiveValue(NamedTuple):
    """A differentiable loss and, where they were asked for, the metrics that explain it."""

    loss: Float[Tensor, ""]
    metrics: dict[str, Tensor]


class ContrastiveObjective(nn.Module):
    """An objective with all that it remembers: temperature and per-sample averages.

    Args:
        config: what is minimised.
        num_samples: size of the data set, for the averages.
    """

    def __init__(self, config: ObjectiveConfig, *, num_samples: int):
        super().__init__()
        self.temperature = Temperature(config.temperature)
        match config.method:
            case "clip":
                self.estimator = None
            case "fastclip" | "drrho_clip":
                default = 1e-4 if config.needs_reference else 1e-14
                self.estimator = GlobalContrastiveLoss(
                    num_samples,
                    epsilon=default if config.epsilon is None else config.epsilon,
                    rho=config.rho or 0.0,
                )
            case _:
                raise ValueError(
                    f"objective.method must be clip, fastclip or drrho_clip, got {config.method!r}"
                )
        self._needs_reference = config.needs_reference

    def forward(
        self,
        target: PairEmbeddings,
        reference: PairEmbeddings | None = None,
        *,
        sample_ids: Int[Tensor, " batch"],
        gamma: float,
        diagnose: bool = False,
    ) -> ObjectiveValue:
        """The loss of one batch; updates the averages of its samples.

        Args:
            target: unit embeddings (B, d) of the model in training.
            reference: those of the reference; for "drrho_clip", and for nothing else.
            sample_ids: position of each pair in the data set.
            gamma: weight of this batch in the averages, in (0, 1]; CLIP has none.
            diagnose: also compute `contrastive_diagnostics`.

        Raises:
            ValueError: a reference is missing, or given to a method without one.
        """
        if self._needs_reference != (reference is not None):
            raise ValueError(
                "drrho_clip needs reference embeddings, and the other methods take none; "
                f"got {'none' if reference is None else 'some'}"
            )
        tau = self.temperature()
        if self.estimator is None:
            loss = clip_loss_of_means(tiled_log_gap_means(target, temperature=tau))
            epsilon = 1 / (len(target.image) - 1)
        else:
            epsilon = self.estimator.epsilon
            loss = self.estimator(
                target, reference, temperature=tau, sample_ids=sample_ids, gamma=gamma
            )
        if not diagnose:
            return ObjectiveValue(loss, {})
        metrics = contrastive_diagnostics(target, reference, temperature=tau, epsilon=epsilon)
        return ObjectiveValue(loss, metrics | {"temperature": tau.detach()})
