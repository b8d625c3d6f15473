"""Evaluation of a model by retrieval where data have captions, and by their zero-shot tasks."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor
from tyro.conf import Positional

from drrho.encoding.encoder import EmbeddingModel
from drrho.encoding.shared import Encoder
from drrho.evaluation.metrics.chance import beside, label_chance, retrieval_chance
from drrho.evaluation.metrics.retrieval import (
    distinct_texts,
    reciprocal_rank_of_images,
    summarise_ranks,
)
from drrho.evaluation.metrics.zero_shot import summarise_labels
from drrho.evaluation.sets import (
    EmbeddedSet,
    EvaluationSet,
    open_evaluation_set,
    read_all_captions,
)
from drrho.evaluation.tasks.zero_shot_files import require_templates
from drrho.models.build import build_model, find_model
from drrho.models.program import trusting
from drrho.models.two_tower import TwoTower
from drrho.runtime.files import expand_paths, require_no_folder
from drrho.runtime.launch import Device, together


@dataclass(frozen=True, kw_only=True)
class EvaluationResult:
    """The scores of a model on a set.

    Attributes:
        metrics: `mrr`, `image_to_text/R@1`, ..., of pairs of texts `anchor_to_positive/ndcg@10`
            and the others of `information_retrieval`, `zero_shot/TASK/top1`, ..., and how many
            `images` were scored and `skipped`.
        reciprocal_ranks: one value per image whose mean is `mrr`, for intervals and paired
            differences; empty without captions.
        chance: metric -> what guessing reaches on this set.
    """

    metrics: dict[str, float]
    reciprocal_ranks: Float[Tensor, " images"]
    chance: dict[str, float] = field(default_factory=dict)


def evaluate_model(
    model: TwoTower, evaluation_set: EvaluationSet, *, device: torch.device, batch_size: int
) -> EvaluationResult:
    """Compute all scores of a set. The model must be on `device` and in evaluation mode."""
    encoder = Encoder(model=EmbeddingModel(model, device=device), batch_size=batch_size)
    return evaluate_encoder(encoder, evaluation_set)


def evaluate_encoder(encoder: Encoder, evaluation_set: EvaluationSet) -> EvaluationResult:
    """Compute all scores of a set.

    Samples that cannot be decoded are left out, counted in `skipped` and warned of. Of several
    processes each encodes its share of images and texts and ranks its share of the queries, and
    all have the result, the same as one process would have.
    """
    embedded = EmbeddedSet.encode(encoder, evaluation_set)
    metrics: dict[str, float] = {}
    chance: dict[str, float] = {}
    reciprocal_ranks = torch.empty(0)
    if evaluation_set.with_captions:
        texts, pairs = distinct_texts(embedded.captions())
        embeddings = embedded.caption_embeddings(texts)
        ranks = embedded.caption_ranks(texts, pairs, embeddings)
        metrics |= summarise_ranks(ranks)
        chance |= retrieval_chance(pairs, images=len(embedded.images.embeddings), texts=len(texts))
        reciprocal_ranks = reciprocal_rank_of_images(ranks, pairs)
        if evaluation_set.of_texts:
            metrics |= embedded.text_retrieval(texts, embeddings)
    for task in evaluation_set.tasks:
        classes, labels = embedded.class_embeddings(task), embedded.read_each(task.label)
        ranks_of_labels = embedded.label_ranks(classes, labels)
        scores = summarise_labels(ranks_of_labels, labels, num_classes=len(classes))
        guessed = label_chance(len(classes))
        metrics |= {f"zero_shot/{task.name}/{name}": value for name, value in scores.items()}
        chance |= {f"zero_shot/{task.name}/{name}": guessed[name] for name in scores}
    images = embedded.images
    counts = {"images": float(len(images.embeddings)), "skipped": float(images.num_skipped)}
    return EvaluationResult(
        metrics=metrics | counts, reciprocal_ranks=reciprocal_ranks, chance=chance
    )


def chance_on(evaluation_set: EvaluationSet) -> dict[str, float]:
    """Compute what guessing reaches on a set, without a model: `EvaluationResult.chance`.

    It assumes that all images can be decoded.
    """
    chance: dict[str, float] = {}
    if evaluation_set.with_captions:
        captions = read_all_captions(evaluation_set)
        texts, pairs = distinct_texts(captions)
        chance |= retrieval_chance(pairs, images=len(captions), texts=len(texts))
    for task in evaluation_set.tasks:
        guessed = label_chance(len(task.class_names))
        chance |= {f"zero_shot/{task.name}/{name}": value for name, value in guessed.items()}
    return chance


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """Score a model: retrieval on captions, zero-shot classification on classes.

    Attributes:
        run: folder of a finished run, or a model as `drrho reference precompute` takes it.
        data: evaluation sets, one or more: shards, a manifest, or a folder in clip_benchmark's
            layout. With `tasks`, the folder of the tasks' folders.
        tasks: task list in DataComp's form, or "datacomp" for its own; each task is scored by its
            metrics.
        pretrained: open_clip tag or checkpoint file, where the model is an open_clip architecture.
        output: file to write the scores to: JSON, or with `tasks` DataComp's results in JSON lines;
            tasks that are in it already are not done again.
        caption_templates: texts with {} in place of a caption; the embeddings of a caption's texts
            are averaged. None given takes captions unchanged. With `tasks`, only tasks with
            captions use them.
        batch_size: images embedded at once.
        workers: worker processes that decode images, for each process that encodes; 0 decodes in
            that process.
        device: device to compute on; "auto" takes the GPU if there is one.
        trust: run the program that the folder of a model names, and fetch what its recipe names;
            needed for runs of "python:FILE.py".
    """

    run: Positional[str] = field(kw_only=False)
    data: tuple[str, ...]
    tasks: str | None = None
    pretrained: str | None = None
    output: str | None = None
    caption_templates: tuple[str, ...] = ()
    batch_size: int = 256
    workers: int = 0
    device: Device = "auto"
    trust: bool = False

    def __post_init__(self):
        expand_paths(self, "run", "data")
        if not self.data:
            raise ValueError("data must name at least one set")
        if self.output is not None:  # before hours of scoring
            require_no_folder("output", self.output)
        if self.tasks is not None and len(self.data) > 1:
            raise ValueError(f"with tasks, data is one folder of folders, got {list(self.data)}")
        require_templates("caption_templates", self.caption_templates)


def evaluate_named_model(config: EvaluateConfig) -> dict[str, dict[str, float]]:
    """Score a model on sets, by name: the metrics of `evaluate_sets`."""
    return {name: found.metrics for name, found in evaluate_sets(config).items()}


def evaluate_sets(config: EvaluateConfig) -> dict[str, EvaluationResult]:
    """Score a model on sets, by name. Under torchrun or `srun` the processes share the work.

    Each score is followed by `METRIC/chance`, what guessing reaches; the scores of a zero-shot task
    by `zero_shot/TASK/chance`, what guessing reaches of `top1`.

    Raises:
        FileNotFoundError: the run is not finished, or a set is not there.
        ValueError: no such model, or a set has nothing to evaluate.
        ProcessFailed: with several processes, this one failed or lost another.
    """
    results: dict[str, EvaluationResult] = {}
    with named_encoder(config) as encoder:
        for source in config.data:
            opened = partial(
                open_evaluation_set, source, caption_templates=config.caption_templates
            )
            held_out = encoder.processes.on_first(opened)
            label = held_out.name if held_out.name not in results else source
            found = evaluate_encoder(encoder, held_out)
            metrics = beside(found.metrics, found.chance) | _chance(held_out)
            results[label] = replace(found, metrics=metrics)
    return results


def _chance(held_out: EvaluationSet) -> dict[str, float]:
    """Top-1 accuracy of guessing, for each zero-shot task."""
    return {f"zero_shot/{task.name}/chance": 1 / len(task.class_names) for task in held_out.tasks}


@contextmanager
def named_encoder(config: EvaluateConfig) -> Iterator[Encoder]:
    """Open the model on the device of this process, in evaluation mode; a collective."""
    named = find_model(config.run, pretrained=config.pretrained)
    if not named.names_weights:
        raise ValueError(
            f"{config.run!r} is no folder of a run, and without --pretrained no model with "
            "weights; give the folder of a finished run or of a model, --pretrained TAG_OR_FILE "
            "with an architecture, or a model such as local-dir:PATH"
        )
    with together(config.device, config) as (processes, device), trusting(everything=config.trust):
        model = build_model(named, seed=0)
        model.module.to(device).eval()
        yield Encoder(
            model=EmbeddingModel(model, device=device),
            batch_size=config.batch_size,
            workers=config.workers,
            processes=processes,
            progress=True,
        )
