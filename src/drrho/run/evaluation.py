"""Evaluating a model on a data set: retrieval where it has captions, zero-shot where it has tasks.

A folder with `zero_shot.json`, or with clip_benchmark's `classnames.txt` and templates, has
zero-shot tasks; shards with captions are scored by retrieval. What a set has decides.
"""

import warnings
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from tyro.conf import Positional

from drrho.data.indexing import open_manifest
from drrho.data.loading import Part, evaluation_batches
from drrho.data.manifest import Manifest
from drrho.evaluation.embed import EmbeddedImages, embed_classes, embed_images, embed_texts
from drrho.evaluation.retrieval import (
    distinct_texts,
    reciprocal_rank_of_images,
    retrieval_ranks,
    summarise_ranks,
)
from drrho.evaluation.tasks import CLASS_NAMES_FILE, read_clip_benchmark_task, read_zero_shot_json
from drrho.evaluation.zero_shot import ZeroShotTask, zero_shot
from drrho.models.build import ModelConfig, build_model
from drrho.models.two_tower import TwoTower
from drrho.run.recipe import Device, resolve_device

ZERO_SHOT_FILE = "zero_shot.json"


@dataclass(frozen=True, kw_only=True)
class EvaluationSet:
    """Samples and what can be asked of them.

    Attributes:
        name: of the folder or file, for tables.
        manifest: the samples.
        tasks: zero-shot tasks, perhaps none.
        with_captions: whether the samples have captions, for retrieval.
    """

    name: str
    manifest: Manifest
    tasks: tuple[ZeroShotTask, ...]
    with_captions: bool

    @property
    def parts(self) -> tuple[Part, ...]:
        """What the scores need beside the images."""
        captions: tuple[Part, ...] = ("caption",) if self.with_captions else ()
        return (*captions, "metadata") if self.tasks else captions


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """The scores of a model on a set.

    Attributes:
        metrics: flat; `mrr`, `image_to_text/R@1`, ..., `zero_shot/TASK/top1`, ..., and how many
            `images` were scored and `skipped`.
        reciprocal_ranks: one value per image whose mean is `mrr`, for intervals and paired
            differences; empty without captions.
    """

    metrics: dict[str, float]
    reciprocal_ranks: Float[Tensor, " images"]


def open_evaluation_set(source: str | Path) -> EvaluationSet:
    """Finds shards and tasks.

    Args:
        source: what `drrho index` takes, a manifest, or a folder in clip_benchmark's layout,
            whose shards are in `test/`.

    Raises:
        FileNotFoundError: nothing is there.
        ValueError: there are neither captions nor tasks.
    """
    path = Path(source).expanduser()
    folder = path if path.is_dir() else path.parent
    shards = path / "test" if (path / CLASS_NAMES_FILE).is_file() else path
    manifest = open_manifest(shards)
    tasks: tuple[ZeroShotTask, ...] = ()
    if (folder / ZERO_SHOT_FILE).is_file():
        tasks = read_zero_shot_json(folder / ZERO_SHOT_FILE)
    elif (folder / CLASS_NAMES_FILE).is_file():
        tasks = (read_clip_benchmark_task(folder),)
    with_captions = len(manifest.usable_ids(with_captions=True)) > 0
    if not tasks and not with_captions:
        raise ValueError(
            f"{source} has neither captions nor class names: retrieval needs a .txt in each "
            f"sample, zero-shot classification {ZERO_SHOT_FILE} or {CLASS_NAMES_FILE} beside the "
            "shards"
        )
    name = folder.name if path.suffix == ".json" or path.is_dir() else path.name
    return EvaluationSet(name=name, manifest=manifest, tasks=tasks, with_captions=with_captions)


def evaluate_model(
    model: TwoTower,
    evaluation_set: EvaluationSet,
    *,
    device: torch.device,
    batch_size: int,
    workers: int = 0,
) -> Evaluation:
    """All scores that the set allows. The model must be on `device` and in evaluation mode.

    Samples that cannot be decoded are left out, counted in `skipped` and warned of.
    """
    module: Any = model.module
    skipped = []

    def counted(batches):
        for batch in batches:
            skipped.extend(batch.skipped)
            yield batch

    def encode_texts(texts: list[str]) -> Tensor:
        return module.encode_text(model.tokenizer(texts).to(device), normalize=True)

    images = embed_images(
        counted(
            evaluation_batches(
                evaluation_set.manifest,
                model.eval_transform,
                batch_size=batch_size,
                workers=workers,
                parts=evaluation_set.parts,
            )
        ),
        lambda pixels: module.encode_image(pixels.to(device), normalize=True),
    )
    metrics: dict[str, float] = {}
    reciprocal_ranks = torch.empty(0)
    if evaluation_set.with_captions:
        texts, text_of_image = distinct_texts(images.captions)
        ranks = retrieval_ranks(
            images.image_embeddings,
            embed_texts(texts, encode_texts, batch_size=batch_size),
            text_of_image,
        )
        metrics |= summarise_ranks(ranks)
        reciprocal_ranks = reciprocal_rank_of_images(ranks, text_of_image)
    for task in evaluation_set.tasks:
        classes = embed_classes(task, encode_texts, batch_size=batch_size)
        scores = zero_shot(images.image_embeddings, classes, _labels(task, images))
        metrics |= {f"zero_shot/{task.name}/{name}": value for name, value in scores.items()}
    if skipped:
        reasons = Counter(reason for _, reason in skipped)
        warnings.warn(
            f"{evaluation_set.name}: {len(skipped):,} samples could not be evaluated: "
            f"{dict(reasons)}",
            stacklevel=2,
        )
    counts = {"images": float(len(images.image_embeddings)), "skipped": float(len(skipped))}
    return Evaluation(metrics=metrics | counts, reciprocal_ranks=reciprocal_ranks)


def _labels(task: ZeroShotTask, images: EmbeddedImages) -> Tensor:
    return torch.tensor([task.label(metadata) for metadata in images.metadata])


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """Retrieval where the data have captions, zero-shot classification where they have classes.

    Attributes:
        run: folder of a finished run, or a model as `drrho reference precompute` takes it.
        data: one or more sets: shards, a manifest, or a folder in clip_benchmark's layout.
        pretrained: open_clip tag or checkpoint file of an architecture.
        output: JSON file to write as well.
        batch_size: images embedded at once.
        workers: processes that decode.
        device: where to compute.
    """

    run: Positional[str]
    data: tuple[str, ...]
    pretrained: str | None = None
    output: str | None = None
    batch_size: int = 256
    workers: int = 0
    device: Device = "auto"


def evaluate_named_model(config: EvaluateConfig) -> dict[str, dict[str, float]]:
    """Set name -> metrics of the model.

    Raises:
        FileNotFoundError: the run is not finished, or a set is not there.
        ValueError: no such model, or a set has nothing to evaluate.
    """
    is_run = Path(config.run).is_dir() and config.pretrained is None
    name = f"run:{config.run}" if is_run else config.run
    named = ModelConfig(name=name, pretrained=config.pretrained)
    named.require_trained()
    model = build_model(named, seed=0)
    device = resolve_device(config.device)
    model.module.to(device).eval()
    scores: dict[str, dict[str, float]] = {}
    for source in config.data:
        held_out = open_evaluation_set(source)
        label = held_out.name if held_out.name not in scores else source
        scores[label] = evaluate_model(
            model,
            held_out,
            device=device,
            batch_size=config.batch_size,
            workers=config.workers,
        ).metrics
    return scores
