"""What is minimised, as plain data: the choice of a contrastive objective and its numbers."""

from dataclasses import dataclass, field
from typing import Literal, get_args

from drrho.contrastive.memory.temperature import TemperatureConfig

Method = Literal["clip", "siglip", "fastclip", "drrho_clip", "distillation"]
METHODS: tuple[Method, ...] = ("clip", "siglip", "fastclip", "drrho_clip", "distillation")
# With a memory of anchors: the global contrastive risk, in units of cosine similarity.
GLOBAL_METHODS = ("fastclip", "drrho_clip")

Algorithm = Literal[
    "openclip", "siglip", "sogclr", "isogclr", "fastclip_v1", "fastclip_v3", "drrho_clip"
]
SIGLIP_TEMPERATURE, SIGLIP_BIAS = 0.1, -10.0


@dataclass(frozen=True, kw_only=True)
class DistillationConfig:
    """Teachers' matching probabilities, imitated.

    Attributes:
        teacher_temperatures: the one each teacher was trained with, in units of cosine similarity
            (a CLIP's is 1 / logit_scale, often 0.01); in the order of the teachers, which are
            averaged after their softmax.
        weight: of the distillation loss beside the method's; None means 1. Losses in units of
            cosine similarity (FastCLIP, DRRho-CLIP) are given it times tau, so that the weight
            means the same for every method. Not for the method "distillation", which has no other.
    """

    teacher_temperatures: tuple[float, ...]
    weight: float | None = None

    def __post_init__(self):
        if not self.teacher_temperatures:
            raise ValueError("distillation.teacher_temperatures must name at least one")
        for temperature in self.teacher_temperatures:
            if not temperature > 0:
                raise ValueError(
                    f"distillation.teacher_temperatures must be positive, got {temperature}"
                )
        if self.weight is not None and not self.weight > 0:
            raise ValueError(f"distillation.weight must be positive, got {self.weight}")


@dataclass(frozen=True, kw_only=True)
class ObjectiveConfig:
    """What is minimised.

    Attributes:
        method: "clip", the symmetric cross-entropy of the batch; "siglip", the sigmoid loss;
            "fastclip", the global contrastive risk; "drrho_clip", the same on the excess over a
            reference; "distillation", teachers' probabilities alone.
        temperature: constant or learned.
        epsilon: floor of the sums of "fastclip" and "drrho_clip"; None means 1e-4 with a
            reference and 1e-14 without, as published.
        rho: radius of the ambiguity set in nats, of "fastclip" and "drrho_clip"; given exactly if
            the temperature is learned, since without it the temperature would grow for ever.
        gamma_min: of "fastclip" and "drrho_clip", where the weight of the newest batch in the
            per-sample averages ends; None means `recommended_gamma_min` of the run's epochs, 1
            means no averaging.
        gamma_schedule: "cosine" falls from 1 to gamma_min, "constant" is gamma_min throughout.
        reference_scale: of "drrho_clip", the reference's similarities count times this; None
            means 1. With tau / tau_ref the reference enters as its own logits, R / tau_ref.
        initial_bias: of "siglip", b at the start, which is then learned; None means -10.
        distillation: of the method "distillation", or added to any other.
    """

    method: Method
    temperature: TemperatureConfig = field(default_factory=TemperatureConfig)
    epsilon: float | None = None
    rho: float | None = None
    gamma_min: float | None = None
    gamma_schedule: Literal["cosine", "constant"] = "cosine"
    reference_scale: float | None = None
    initial_bias: float | None = None
    distillation: DistillationConfig | None = None

    def __post_init__(self):
        if self.method not in METHODS:
            raise ValueError(
                f"objective.method must be one of {', '.join(METHODS)}, got {self.method!r}"
            )
        self._require_effect()
        self._require_temperature_that_fits()
        if self.epsilon is not None and not self.epsilon > 0:
            raise ValueError(f"objective.epsilon must be positive, got {self.epsilon}")
        if self.rho is not None and not self.rho >= 0:
            raise ValueError(f"objective.rho must be at least 0, got {self.rho}")
        if self.gamma_min is not None and not 0 < self.gamma_min <= 1:
            raise ValueError(f"objective.gamma_min must be in (0, 1], got {self.gamma_min}")
        if self.gamma_schedule == "constant" and self.gamma_min is None:
            raise ValueError(
                "objective.gamma_schedule = 'constant' needs objective.gamma_min, which it is"
            )
        if self.reference_scale is not None and not self.reference_scale > 0:
            raise ValueError(
                f"objective.reference_scale must be positive, got {self.reference_scale}"
            )

    def _require_effect(self) -> None:
        owners = {
            "epsilon": GLOBAL_METHODS,
            "rho": GLOBAL_METHODS,
            "gamma_min": GLOBAL_METHODS,
            "reference_scale": ("drrho_clip",),
            "initial_bias": ("siglip",),
        }
        for name, methods in owners.items():
            if (value := getattr(self, name)) is not None and self.method not in methods:
                raise ValueError(
                    f"objective.{name} = {value} has no effect on method {self.method!r}; leave "
                    "it out"
                )
        if self.gamma_schedule != "cosine" and self.method not in GLOBAL_METHODS:
            raise ValueError(
                f"objective.gamma_schedule = {self.gamma_schedule!r} has no effect on method "
                f"{self.method!r}; leave it out"
            )
        if self.method == "distillation":
            if self.distillation is None:
                raise ValueError("method 'distillation' needs objective.distillation")
            if self.distillation.weight is not None:
                raise ValueError(
                    f"objective.distillation.weight = {self.distillation.weight} has no effect on "
                    "method 'distillation', which has no other loss; leave it out"
                )

    def _require_temperature_that_fits(self) -> None:
        kind = self.temperature.kind
        if self.method in GLOBAL_METHODS:
            if self.rho is not None and not self.temperature.learned:
                raise ValueError(
                    f"objective.rho = {self.rho} only acts through a learned temperature; set "
                    "objective.temperature.kind, or leave rho out"
                )
            if self.rho is None and self.temperature.learned:
                raise ValueError(
                    f"method {self.method!r} with a temperature that is learned ({kind}) needs "
                    "objective.rho: without it every step raises the temperature. FastCLIP was "
                    "published with 6.5 to 11; it must lie below log(batch size - 1) to be reached"
                )
        elif kind == "per_sample" or (kind == "per_direction" and self.method == "siglip"):
            raise ValueError(
                f"objective.temperature.kind = {kind!r} does not fit method {self.method!r}; take "
                "'learned' or 'constant'"
            )

    def final_gamma(self, *, epochs: float) -> float:
        """Where gamma ends in a run of so many epochs; 1, no averaging, of other methods."""
        if self.method not in GLOBAL_METHODS:
            return 1.0
        return recommended_gamma_min(epochs) if self.gamma_min is None else self.gamma_min

    @property
    def needs_reference(self) -> bool:
        """Whether a reference's similarities are subtracted."""
        return self.method == "drrho_clip"

    @property
    def num_teachers(self) -> int:
        """Whose probabilities are imitated."""
        return 0 if self.distillation is None else len(self.distillation.teacher_temperatures)


def named_objective(
    algorithm: Algorithm,
    *,
    temperature: float = 0.07,
    rho: float | None = None,
    gamma: float | None = None,
) -> ObjectiveConfig:
    """An algorithm of the literature as an `ObjectiveConfig`.

    | algorithm | method | temperature | gamma |
    |---|---|---|---|
    | openclip | clip | learned | |
    | siglip | siglip | learned, and a bias | |
    | sogclr | fastclip | constant | constant |
    | isogclr | fastclip | per sample | constant |
    | fastclip_v1 | fastclip | constant | cosine |
    | fastclip_v3 | fastclip | learned | cosine |
    | drrho_clip | drrho_clip | constant | cosine |

    Args:
        algorithm: its name.
        temperature: the constant, or where a learned one starts.
        rho: of isogclr and fastclip_v3.
        gamma: the constant of sogclr and isogclr; gamma_min of fastclip and drrho_clip.

    Raises:
        ValueError: a number is missing or has no effect.

    Source: Yuan et al. 2022 (SogCLR), Qiu et al. 2023 (iSogCLR), Wei et al. 2024 (FastCLIP).
    """
    constant = TemperatureConfig(initial=temperature)
    learned = TemperatureConfig(initial=temperature, kind="learned")
    per_sample = TemperatureConfig(initial=temperature, kind="per_sample")

    def of(method: Method, tau: TemperatureConfig) -> ObjectiveConfig:
        return ObjectiveConfig(method=method, temperature=tau, rho=rho, gamma_min=gamma)

    def with_constant_gamma(tau: TemperatureConfig) -> ObjectiveConfig:
        return ObjectiveConfig(
            method="fastclip",
            temperature=tau,
            rho=rho,
            gamma_min=gamma,
            gamma_schedule="constant",
        )

    match algorithm:
        case "openclip":
            return of("clip", learned)
        case "siglip":
            return of("siglip", learned)
        case "sogclr":
            return with_constant_gamma(constant)
        case "isogclr":
            return with_constant_gamma(per_sample)
        case "fastclip_v1":
            return of("fastclip", constant)
        case "fastclip_v3":
            return of("fastclip", learned)
        case "drrho_clip":
            return of("drrho_clip", constant)
        case _:
            raise ValueError(
                f"no algorithm is called {algorithm!r}; there are {', '.join(get_args(Algorithm))}"
            )


def default_epsilon(method: Method) -> float:
    """What `epsilon` None means, of the methods in `GLOBAL_METHODS`."""
    return 1e-4 if method == "drrho_clip" else 1e-14


def recommended_gamma_min(epochs: float) -> float:
    """`min(1, 4.177 E^-0.7265)`: the longer a run, the longer its averages.

    Source: docs/mathematics.md, "Per-sample estimators".
    """
    if not epochs > 0:
        raise ValueError(f"epochs must be positive, got {epochs}")
    return min(1.0, 4.177 * epochs**-0.7265)
