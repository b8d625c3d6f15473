"""`drrho demo`: all steps on captioned scenes, in minutes on a laptop's CPU."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch

from drrho.contrastive.objectives.clip import CLIP
from drrho.contrastive.objectives.global_risk import DRRhoCLIP, FastCLIP
from drrho.data.indexing import index_shards
from drrho.data.loading import Loading
from drrho.data.manifest import Manifest
from drrho.data.scenes import ScenesConfig, write_scenes
from drrho.models.build import Model
from drrho.models.small import SmallConfig
from drrho.recipe.recipe import Evaluation, Recipe
from drrho.runtime.files import expand_paths
from drrho.studies.compare.compare import compare, comparison_report
from drrho.studies.compare.results import Results
from drrho.studies.compare.spec import Comparison
from drrho.studies.report.write import ReportConfig, write_report
from drrho.training.config import Precision, Training, fastest_precision
from drrho.training.optimizer import Optimizer

# A thin model that reads the longest caption of a scene, 21 tokens.
MODEL = Model(
    name="small",
    small=SmallConfig(image_width=8, text_width=64, text_heads=2, context_length=24),
)
METHODS = (CLIP(), FastCLIP(), DRRhoCLIP())
PLAIN, STEERED = "clip", "drrho_clip"
TRAINED_ON = ("reference", "train")
UNION = "fastclip_union"  # plain training on the reference's data and the target's together


@dataclass(frozen=True, kw_only=True)
class DemoConfig:
    """Size of the demonstration.

    Attributes:
        output: folder of everything; finished parts found there are kept.
        mismatch_rate: share of the target's training pairs whose caption belongs to another scene.
        train_pairs: training scenes of the reference, and as many other scenes for the targets.
        test_pairs: clean scenes of the test set; a quarter as many are for validation.
        steps: optimiser steps of each of the five runs.
        batch_size: pairs in a batch.
        seed: random seed of the scenes, the initial weights and the order of the data.
        precision: floating-point type of the towers. "auto" takes bfloat16 where the processor
            multiplies in it, which halves the time, and float32 elsewhere.
    """

    output: str = "runs/demo"
    mismatch_rate: float = 0.3
    train_pairs: int = 4000
    test_pairs: int = 1000
    steps: int = 160
    batch_size: int = 128
    seed: int = 0
    precision: Precision | Literal["auto"] = "auto"

    def __post_init__(self) -> None:
        expand_paths(self)


def demo(config: DemoConfig) -> Results:
    """Draws the scenes and compares CLIP, FastCLIP and DRRho-CLIP on them, and FastCLIP on these
    and the reference's together; see `compare`.

    Raises:
        ValueError: `output` holds scenes of another configuration.
    """
    draw_demo_scenes(config)
    return compare(demo_comparison(config))


def draw_demo_scenes(config: DemoConfig) -> None:
    """Writes the four sets of scenes with their manifests; what is there already is kept.

    The sets have seeds of their own, so no scene of one is in another but by chance.
    """
    pairs, fewer = config.train_pairs, max(2, config.test_pairs // 4)
    sizes = {"reference": pairs, "train": pairs, "validation": fewer, "test": config.test_pairs}
    for number, (name, size) in enumerate(sizes.items()):
        folder = Path(config.output) / "scenes" / name
        rate = config.mismatch_rate if name == "train" else 0.0
        seed = 4 * config.seed + number
        write_scenes(folder, ScenesConfig(num_samples=size, seed=seed, mismatch_rate=rate))
        if not (folder / "manifest.json").exists():
            index_shards(folder).save(folder / "manifest.json")
    union = Path(config.output) / "scenes" / "union.json"
    if not union.exists():
        parts = (Manifest.load(union.parent / name / "manifest.json") for name in TRAINED_ON)
        Manifest(shards=tuple(shard for part in parts for shard in part.shards)).save(union)


def demo_comparison(config: DemoConfig) -> Comparison:
    """The comparison on scenes that `draw_demo_scenes` wrote."""
    training = Training(
        steps=config.steps,
        optimizer=Optimizer(
            learning_rate=2e-3, warmup_steps=min(20, config.steps // 4), weight_decay=0.1
        ),
        log_every=max(1, config.steps // 40),
        evaluate_every=max(1, config.steps // 4),
        checkpoint_every=max(1, config.steps // 2),
        precision=_fastest_precision() if config.precision == "auto" else config.precision,
    )
    scenes = f"{config.output}/scenes"
    target = Recipe(
        output=f"{config.output}/target",
        data=f"{scenes}/train/manifest.json",
        loading=Loading(batch_size=config.batch_size),
        model=MODEL,
        objective=METHODS[0],
        training=training,
        evaluation=Evaluation(data=f"{scenes}/validation/manifest.json"),
        seed=config.seed,
    )
    reference = replace(target, data=f"{scenes}/reference/manifest.json", seed=config.seed + 1)
    return Comparison(
        output=config.output,
        references={"reference": reference},
        methods={
            objective.method: replace(
                target,
                objective=objective,
                reference="reference" if objective.needs_reference else None,
            )
            for objective in METHODS
        }
        | {UNION: replace(target, objective=FastCLIP(), data=f"{scenes}/union.json")},
        test=f"{scenes}/test/manifest.json",
        seeds=(config.seed,),
    )


def _fastest_precision() -> Precision:
    """Choose bfloat16 where the processor has instructions for it, and there is no GPU."""
    return "float32" if torch.cuda.is_available() else fastest_precision(torch.device("cpu"))


def conclusion(results: Results) -> str:
    """Say what the demonstration shows by its own numbers, and what they leave out.

    A difference is called one where its paired interval excludes zero. Empty where a run has
    failed.
    """
    models = {**results.references, **results.methods}
    scores = {name: found.tests["test"]["mrr"] for name, found in models.items() if found.tests}
    found = {(it.method, it.minus): it for it in results.differences}
    steering, union = found.get((STEERED, PLAIN)), found.get((UNION, STEERED))
    if len(scores) < len(models) or steering is None or union is None:
        return ""
    by = f"from {scores[PLAIN]:.2f} to {scores[STEERED]:.2f} on the same pairs"
    if not steering.is_clear:
        steered = f"takes CLIP {by}, which is no clear difference"
    else:
        steered = f"{'lifts' if steering.mrr > 0 else 'lowers'} CLIP {by}"
    if not union.is_clear:
        advice = "these two cannot be told apart here"
    elif union.mrr > 0:
        advice = "train on all data where you have it, and steer where you have only a model"
    else:
        advice = "here the model was worth more than the data that it was trained on"
    return (
        f"A reference of MRR {scores['reference']:.2f} {steered}; plain training on the "
        f"reference's data too gives {scores[UNION]:.2f} after as many steps: {advice}. One seed, "
        "and the reference's own training is not counted; where it is, training on all data was "
        "ahead in eight replicates (docs/results/weak_to_strong.md)."
    )


def run_demo(config: DemoConfig) -> str:
    """Demonstrate all steps on procedural scenes, in minutes on a CPU."""
    said = conclusion(demo(config))
    page = write_report(
        ReportConfig(runs=(config.output,), output=str(Path(config.output) / "report.html")),
        conclusion=said,
    )
    return (
        f"{comparison_report(config.output)}\n\n{said}\n"
        f"Look at the pairs and the curves: {page.resolve().as_uri()}"
    )
