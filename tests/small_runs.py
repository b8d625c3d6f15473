"""A data set, a reference and a recipe small enough to train in a second."""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from drrho.contrastive.objectives.clip import CLIP
from drrho.contrastive.objectives.global_risk import DRRhoCLIP
from drrho.data.index import IndexConfig, write_manifest
from drrho.data.loading import Loading
from drrho.data.scenes import ScenesConfig, write_scenes
from drrho.evaluation.metrics.hierarchical import hierarchical_interval
from drrho.models.build import Model
from drrho.models.small import SmallConfig
from drrho.recipe.recipe import Evaluation, Recipe
from drrho.recipe.train import train_recipe
from drrho.reference.build import PrecomputeConfig, precompute_reference
from drrho.training.config import Training
from drrho.training.optimizer import Optimizer

TINY = Model(
    name="small",
    small=SmallConfig(embed_dim=8, image_width=2, text_width=8, text_layers=1, text_heads=1),
)


@pytest.fixture(scope="session")
def scenes(tmp_path_factory) -> Path:
    """Folders `train` (40 pairs, some mismatched, in 2 shards) and `test` (12), indexed."""
    folder = tmp_path_factory.mktemp("scenes")
    write_scenes(
        folder / "train",
        ScenesConfig(num_samples=40, seed=0, mismatch_rate=0.3, samples_per_shard=20),
    )
    write_scenes(folder / "test", ScenesConfig(num_samples=12, seed=1))
    for name in ("train", "test"):
        write_manifest(IndexConfig(data=str(folder / name)))
    return folder


@pytest.fixture(scope="session")
def plain_recipe(scenes) -> Recipe:
    """CLIP for 6 steps; `output` is to be replaced."""
    return Recipe(
        output="nowhere",
        data=str(scenes / "train" / "manifest.json"),
        loading=Loading(batch_size=8),
        model=TINY,
        objective=CLIP(),
        training=Training(
            steps=6,
            optimizer=Optimizer(learning_rate=1e-3, warmup_steps=2),
            log_every=1,
            checkpoint_every=2,
            evaluate_every=3,
        ),
        evaluation=Evaluation(data=str(scenes / "test" / "manifest.json")),
        device="cpu",
    )


@pytest.fixture(scope="session")
def reference(plain_recipe, tmp_path_factory) -> Path:
    """Folder of the stored embeddings of a briefly trained reference."""
    folder = tmp_path_factory.mktemp("reference")
    train_recipe(replace(plain_recipe, output=str(folder / "run"), seed=9))
    precompute_reference(
        PrecomputeConfig(
            data=plain_recipe.data,
            model=f"run:{folder / 'run'}",
            output=str(folder / "embeddings"),
            device="cpu",
        )
    )
    return folder / "embeddings"


@pytest.fixture(scope="session")
def steered_recipe(plain_recipe, reference) -> Recipe:
    """DRRho-CLIP for 6 steps."""
    return replace(
        plain_recipe,
        objective=DRRhoCLIP(gamma_min=0.5),
        reference=str(reference),
    )


@pytest.fixture(scope="module")
def few_resamples() -> Iterator[None]:
    """Intervals of comparisons from 50 resamples: their width is tested with the metrics."""
    few = partial(hierarchical_interval, resamples=50)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("drrho.studies.compare.collect.hierarchical_interval", few)
        yield


def draw_no_pictures(patch: pytest.MonkeyPatch) -> None:
    """Has comparisons write their tables alone."""
    for name in ("draw_curves", "draw_differences", "draw_costs"):
        patch.setattr(f"drrho.studies.compare.compare.{name}", lambda *_, **__: None)
