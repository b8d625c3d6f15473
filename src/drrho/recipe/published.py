"""The published DRRho-CLIP run and its counterparts, by name and at any scale.

The numbers are those of the scripts published with the paper (repository
Optimization-AI/DRRho-CLIP, README) for ViT-B/16 on DFN-192M at batch 5,120; where a counterpart
has no published script the choice is said beside it. docs/guides/recipes.md lists what is known to
differ.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

from drrho.contrastive.memory.temperature import TemperatureConfig
from drrho.contrastive.objectives.config import DistillationConfig, ObjectiveConfig
from drrho.data.loading import Loading
from drrho.models.build import Model
from drrho.recipe.filtering import Filtering
from drrho.recipe.recipe import Recipe
from drrho.recipe.selection import Selection
from drrho.training.config import Training
from drrho.training.optimizer import Optimizer

Name = Literal[
    "openclip",
    "siglip",
    "sogclr",
    "isogclr",
    "fastclip_v1",
    "fastclip_v3",
    "drrho_clip",
    "jest",
    "jest_top_k",
    "rho_top_k",
    "distillation",
    "drrho_clip_distillation",
    "openclip_filtered",
]
SUMMARIES: Mapping[Name, str] = {
    "openclip": "InfoNCE of the batch, learned temperature",
    "siglip": "sigmoid loss, learned temperature and bias",
    "sogclr": "global contrastive loss, constant temperature and gamma",
    "isogclr": "global contrastive loss, a temperature for each sample",
    "fastclip_v1": "global contrastive loss, constant temperature, gamma by cosine",
    "fastclip_v3": "the published FastCLIP run: learned temperature, rho 11",
    "drrho_clip": "the published DRRho-CLIP run: excess over a reference, temperature 0.01",
    "jest": "OpenCLIP on a fifth of a super-batch, drawn by JEST",
    "jest_top_k": "the same with the largest scores of each chunk",
    "rho_top_k": "OpenCLIP on the fifth of a super-batch with the largest excess loss",
    "distillation": "a reference's matching probabilities alone (MobileCLIP)",
    "drrho_clip_distillation": "DRRho-CLIP, and the reference as a teacher",
    "openclip_filtered": "OpenCLIP on the 30 % of the pairs that a reference finds most alike",
}
SAMPLES_OF_EPOCH, EPOCHS = 192_160_462, 7
LEARNING_RATE = 3.125e-4
WARMUP_STEPS, WARMUP_SHARE = 500, 20
OPENAI_TEMPERATURE = 0.01  # 1 / logit_scale of the published reference, OpenAI's ViT-B/32
SUPER_BATCH = 5  # batches: JEST keeps a fifth
DATACOMP_FRACTION = 0.3  # that DataComp's filter by CLIP similarity keeps


@dataclass(frozen=True, kw_only=True)
class Scale:
    """Size of a run, from which its steps, warm-up and gamma follow.

    Attributes:
        batch_size: pairs trained on in a step. A selection loads five times as many.
        samples_seen: pairs trained on in all; the published run has 7 epochs of 192,160,462. The
            steps are this over the batch size. The warm-up is 500 steps, or a twentieth of a run
            that is shorter than 10,000. The end of gamma follows from the epochs
            (`recommended_gamma_min`).
        learning_rate: peak learning rate, as published for batch 5,120. None was published for
            others, so it is not scaled.
    """

    batch_size: int = 5120
    samples_seen: int = EPOCHS * SAMPLES_OF_EPOCH
    learning_rate: float = LEARNING_RATE

    def __post_init__(self):
        if self.batch_size < 2:
            raise ValueError(f"scale.batch_size must be at least 2, got {self.batch_size}")
        if self.samples_seen < self.batch_size:
            raise ValueError(
                f"scale.samples_seen = {self.samples_seen} is less than one batch of "
                f"{self.batch_size}"
            )

    @property
    def steps(self) -> int:
        return self.samples_seen // self.batch_size

    @property
    def warmup_steps(self) -> int:
        return min(WARMUP_STEPS, self.steps // WARMUP_SHARE)


def is_name(text: str) -> bool:
    """Whether a recipe has this name."""
    return text in get_args(Name)


def named_recipe(name: Name, scale: Scale | None = None) -> Recipe:
    """A published run, or the counterpart of one that differs in the objective alone.

    Data, reference and output are `train.json`, `reference` and `runs/NAME`, to be replaced.

    Raises:
        ValueError: there is no recipe of this name, or the scale does not fit.

    Source: arXiv 2505.06699 and its repository; Wei et al. 2024 (FastCLIP); Evans et al. 2024
        (JEST); Vasu et al. 2023 (MobileCLIP); Gadre et al. 2023 (DataComp, the filter).
    """
    scale = Scale() if scale is None else scale
    if not is_name(name):
        raise ValueError(f"no recipe is called {name!r}; there are {', '.join(get_args(Name))}")
    objective = _objective(name)
    selection = _selection(name, scale)
    reads_reference = objective.needs_reference or selection is not None
    learned = objective.temperature.kind == "learned"
    return Recipe(
        output=f"runs/{name}",
        data="train.json",
        loading=Loading(
            batch_size=scale.batch_size * (1 if selection is None else SUPER_BATCH), workers=6
        ),
        model=Model(name="ViT-B-16"),
        objective=objective,
        training=Training(
            steps=scale.steps,
            precision="bfloat16",
            optimizer=Optimizer(
                learning_rate=scale.learning_rate,
                warmup_steps=scale.warmup_steps,
                betas=(0.9, 0.98),
                epsilon=1e-6,
                weight_decay=0.2,
                temperature_lr_scale=0.25 if name == "fastclip_v3" and learned else None,
            ),
        ),
        reference="reference" if reads_reference else None,
        teachers=("reference",) * objective.num_teachers,
        selection=selection,
        filtering=(
            Filtering(kept_fraction=DATACOMP_FRACTION, reference="reference")
            if name == "openclip_filtered"
            else None
        ),
        seed=2025,
    )


def _objective(name: Name) -> ObjectiveConfig:
    learned = TemperatureConfig(initial=0.07, kind="learned")
    constant = TemperatureConfig(initial=OPENAI_TEMPERATURE)
    imitate = DistillationConfig(teacher_temperatures=(OPENAI_TEMPERATURE,))
    match name:
        case "siglip":
            tau = TemperatureConfig(initial=0.1, kind="learned")
            return ObjectiveConfig(method="siglip", temperature=tau)
        case "sogclr" | "isogclr":
            individual = name == "isogclr"
            kind = "per_sample" if individual else "constant"
            return ObjectiveConfig(
                method="fastclip",
                temperature=TemperatureConfig(initial=0.03, kind=kind),
                rho=8.0 if individual else None,
                gamma_min=0.8,
                gamma_schedule="constant",
            )
        case "fastclip_v1":
            return ObjectiveConfig(
                method="fastclip", temperature=TemperatureConfig(initial=0.03), epsilon=1e-14
            )
        case "fastclip_v3":
            return ObjectiveConfig(method="fastclip", temperature=learned, epsilon=1e-14, rho=11.0)
        case "drrho_clip":
            return ObjectiveConfig(method="drrho_clip", temperature=constant, epsilon=1e-4)
        case "drrho_clip_distillation":
            return ObjectiveConfig(
                method="drrho_clip", temperature=constant, epsilon=1e-4, distillation=imitate
            )
        case "distillation":
            return ObjectiveConfig(method="distillation", temperature=learned, distillation=imitate)
        case "openclip" | "jest" | "jest_top_k" | "rho_top_k" | "openclip_filtered":
            return ObjectiveConfig(method="clip", temperature=learned)


def _selection(name: Name, scale: Scale) -> Selection | None:
    rules: dict[str, Literal["sample", "top_k", "rho_top_k"]] = {
        "jest": "sample",
        "jest_top_k": "top_k",
        "rho_top_k": "rho_top_k",
    }
    if name not in rules:
        return None
    return Selection(
        batch_size=scale.batch_size,
        selection=rules[name],
        reference_temperature=OPENAI_TEMPERATURE,
    )
