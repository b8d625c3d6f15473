"""Fine-tuning of a pretrained pair of towers, as a recipe at any scale."""

from dataclasses import dataclass

from drrho.contrastive.objectives.algorithms import ALGORITHMS
from drrho.data.loading import Loading
from drrho.models.build import Model
from drrho.recipe.recipe import Recipe
from drrho.runtime.checks import require_at_least, require_positive
from drrho.training.config import Training
from drrho.training.optimizer import Optimizer

FINETUNE = "finetune"
SUMMARY = "fine-tuning of a pretrained model, steered by a reference"
EPOCHS = 5.0
WARMUP_SHARE = 20  # of the steps


@dataclass(frozen=True, kw_only=True)
class FineTuningScale:
    """Size of a fine-tuning run, from which its steps and its warm-up follow.

    Attributes:
        batch_size: pairs trained on in a step.
        epochs: passes over the data, 5 where no length is given.
        samples_seen: pairs trained on in all, the other way to give the length. The warm-up is
            then a twentieth of the steps; a length in epochs has none.
        learning_rate: peak learning rate.
    """

    batch_size: int = 256
    epochs: float | None = None
    samples_seen: int | None = None
    learning_rate: float = 1e-5

    def __post_init__(self) -> None:
        require_at_least(2, **{"scale.batch_size": self.batch_size})
        require_positive(**{"scale.epochs": self.epochs, "scale.learning_rate": self.learning_rate})
        require_at_least(self.batch_size, **{"scale.samples_seen": self.samples_seen})
        if None not in (self.epochs, self.samples_seen):
            raise ValueError(
                f"scale.epochs = {self.epochs} and scale.samples_seen = {self.samples_seen} both "
                "give the length; leave one of them out"
            )


def finetune_recipe(scale: FineTuningScale | None = None, *, model: Model | None = None) -> Recipe:
    """Build the recipe that fine-tunes a pretrained model; DRRho-CLIP at temperature 0.01.

    Data, reference and output are `train.json`, `reference` and `runs/finetune`, to be replaced.

    Args:
        scale: size of the run; None is 5 epochs at batch 256.
        model: pretrained target; None is open_clip's ViT-B-32 of LAION. The reference's own model
            is as good a start where it has the architecture that is wanted.

    Source: the learning rate, the weight decay and the single cosine follow Goyal et al.,
        "Finetune like you pretrain", CVPR 2023, for CLIP ViT-B/16.
    """
    scale = FineTuningScale() if scale is None else scale
    steps = None if scale.samples_seen is None else scale.samples_seen // scale.batch_size
    return Recipe(
        output=f"runs/{FINETUNE}",
        data="train.json",
        loading=Loading(batch_size=scale.batch_size, workers=6),
        model=Model("ViT-B-32", pretrained="laion2b_s34b_b79k") if model is None else model,
        objective=ALGORITHMS["drrho_clip"].objective,
        training=Training(
            steps=steps,
            epochs=(scale.epochs or EPOCHS) if steps is None else None,
            optimizer=Optimizer(
                learning_rate=scale.learning_rate,
                warmup_steps=0 if steps is None else steps // WARMUP_SHARE,
                weight_decay=0.1,
            ),
        ),
        reference="reference",
    )
