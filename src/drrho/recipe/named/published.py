"""Published DRRho-CLIP run and its counterparts, by name and at any scale.

The numbers come from the scripts published with the paper (repository
Optimization-AI/DRRho-CLIP, README) for ViT-B/16 on DFN-192M at batch 5,120; where a counterpart
has no published script the choice is said beside it. docs/guides/recipes.md lists what is known to
differ.
"""

from dataclasses import dataclass, replace
from typing import Literal

from drrho.contrastive.objectives.algorithms import ALGORITHMS, OPENAI_TEMPERATURE
from drrho.contrastive.objectives.distillation import converted_weight
from drrho.contrastive.objectives.global_risk import GlobalRisk
from drrho.data.loading import Loading
from drrho.models.build import Model
from drrho.recipe.filtering import Filtering
from drrho.recipe.recipe import Recipe
from drrho.recipe.selection import Selection
from drrho.training.config import Training
from drrho.training.optimizer import Optimizer, ThresholdDecay

SAMPLES_OF_EPOCH, EPOCHS = 192_160_462, 7
LEARNING_RATE = 3.125e-4
WARMUP_STEPS, WARMUP_SHARE = 500, 20
ADAMW_EPSILON = 1e-6
SUPER_BATCH = 5  # batches: JEST keeps a fifth
DATACOMP_FRACTION = 0.3  # that DataComp's filter by CLIP similarity keeps


@dataclass(frozen=True, kw_only=True)
class Scale:
    """Size of a run, from which its steps, warm-up and gamma follow.

    Attributes:
        batch_size: pairs trained on in a step. A selection loads five times as many.
        samples_seen: pairs trained on in all; the published run has 7 epochs of 192,160,462. The
            steps are this over the batch size. The warm-up is 500 steps, or a twentieth of a run
            that is shorter than 10,000.
        learning_rate: peak learning rate; by default the rate published for batch size
            5,120, not scaled.
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


def named_recipe(name: str, scale: Scale | None = None) -> Recipe:
    """Build the recipe of a published run, or of its counterpart with another objective.

    Data, reference and output are `train.json`, `reference` and `runs/NAME`, to be replaced.

    Args:
        name: one of `drrho.contrastive.objectives.algorithms.ALGORITHMS`.
        scale: size of the run; None is as published.

    Raises:
        ValueError: there is no recipe of this name, or the scale does not fit.

    Source: arXiv 2505.06699 and its repository; of each other algorithm, its `citation`.
    """
    scale = Scale() if scale is None else scale
    if name not in ALGORITHMS:
        raise ValueError(f"no recipe is called {name!r}; there are {', '.join(ALGORITHMS)}")
    objective = ALGORITHMS[name].objective
    if isinstance(objective, GlobalRisk) and objective.distillation is not None:
        term = objective.distillation
        weight = converted_weight(term.weight, batch_size=scale.batch_size)
        objective = replace(objective, distillation=replace(term, weight=weight))
    selection = _selection(name, scale)
    reads_reference = objective.needs_reference or selection is not None
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
                epsilon=ADAMW_EPSILON / _published_factor(name, scale.batch_size),
                temperature_lr_scale=0.25 if name == "fastclip_v3" else None,
                temperature_schedule=ThresholdDecay() if name == "fastclip_v3" else None,
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


def _published_factor(name: str, batch_size: int) -> float:
    """Return how many times the exact loss the published one is, where it is another.

    AdamW takes the same steps for k times a loss as for the loss with epsilon / k, so that
    published learning rates carry over.

    Source: docs/mathematics.md, "The official code".
    """
    other = name in ("drrho_clip", "drrho_clip_distillation", "fastclip_v3")
    return 2 * batch_size / (batch_size - 1) if other else 1.0


def _selection(name: str, scale: Scale) -> Selection | None:
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
        score="contrastive" if name == "rho_top_k" else "published",
        reference_temperature=OPENAI_TEMPERATURE,
    )
