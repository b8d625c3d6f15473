"""Retrieval: captions and images for each other."""

from dataclasses import replace

from drrho.encoding.shared import Encoder
from drrho.evaluation.metrics.retrieval import clip_benchmark_recalls, separate_texts
from drrho.evaluation.sets import EmbeddedSet, EvaluationSet, open_evaluation_set
from drrho.evaluation.tasks.task import ListedTask, Scored, TaskKind


def score_retrieval(encoder: Encoder, evaluation_set: EvaluationSet, task: ListedTask) -> Scored:
    """Score retrieval in both directions."""
    if not evaluation_set.with_captions:
        raise ValueError(f"task {task.key!r} is one of retrieval, and its samples have no captions")
    embedded = EmbeddedSet.encode(encoder, replace(evaluation_set, tasks=()))
    ranks = embedded.caption_ranks(*separate_texts(embedded.captions()))
    images = embedded.images
    metrics = clip_benchmark_recalls(ranks)
    return Scored(metrics=metrics, images=images, size=len(images.embeddings))


RETRIEVAL = TaskKind(open=open_evaluation_set, score=score_retrieval)
