"""Retrieval: captions and images for each other."""

from collections.abc import Mapping
from dataclasses import replace

from drrho.encoding.shared import Encoder
from drrho.evaluation.metrics.chance import retrieval_chance
from drrho.evaluation.metrics.retrieval import clip_benchmark_recalls, separate_texts
from drrho.evaluation.sets import EmbeddedSet, EvaluationSet, open_evaluation_set
from drrho.evaluation.tasks.task import ListedTask, Scored, TaskKind

RECALL_AT = (1, 5, 10)


def score_retrieval(encoder: Encoder, evaluation_set: EvaluationSet, task: ListedTask) -> Scored:
    """Score retrieval in both directions."""
    if not evaluation_set.with_captions:
        raise ValueError(f"task {task.key!r} is one of retrieval, and its samples have no captions")
    embedded = EmbeddedSet.encode(encoder, replace(evaluation_set, tasks=()))
    texts, pairs = separate_texts(embedded.captions())
    metrics = clip_benchmark_recalls(embedded.caption_ranks(texts, pairs))
    images = embedded.images
    guessed = retrieval_chance(pairs, images=len(images.embeddings), texts=len(texts))
    return Scored(
        metrics=metrics, images=images, size=len(images.embeddings), chance=_named(guessed)
    )


def _named(guessed: Mapping[str, float]) -> dict[str, float]:
    """Give recalls the names of clip_benchmark."""
    found = {}
    for k in RECALL_AT:
        found[f"image_retrieval_recall@{k}"] = guessed[f"text_to_image/R@{k}"]
        found[f"text_retrieval_recall@{k}"] = guessed[f"image_to_text/R@{k}"]
    first = found["image_retrieval_recall@1"], found["text_retrieval_recall@1"]
    return found | {"mean_recall@1": sum(first) / 2}


def _metrics(_task: ListedTask) -> list[str]:
    sides = [f"{side}_retrieval_recall@{k}" for side in ("image", "text") for k in RECALL_AT]
    return [*sides, "mean_recall@1"]


RETRIEVAL = TaskKind(open=open_evaluation_set, score=score_retrieval, metrics=_metrics)
