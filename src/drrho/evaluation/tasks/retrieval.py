"""Retrieval: captions and images for each other."""

from dataclasses import replace

from drrho.encoding.shared import Encoder
from drrho.evaluation.metrics.retrieval import clip_benchmark_recalls, separate_texts
from drrho.evaluation.sets import (
    EvaluationSet,
    captions_of,
    embedded_set,
    open_evaluation_set,
    ranks_of_captions,
)
from drrho.evaluation.tasks.task import ListedTask, Scored, TaskKind


def score_retrieval(encoder: Encoder, evaluation_set: EvaluationSet, task: ListedTask) -> Scored:
    """Score retrieval in both directions; raises ValueError if the samples have no captions."""
    if not evaluation_set.with_captions:
        raise ValueError(f"task {task.key!r} is one of retrieval, and its samples have no captions")
    chosen = replace(evaluation_set, tasks=())
    images = embedded_set(encoder, chosen)
    texts, pairs = separate_texts(captions_of(encoder, chosen, images))
    templates = chosen.caption_templates
    ranks = ranks_of_captions(encoder, images, texts, pairs=pairs, templates=templates)
    metrics = clip_benchmark_recalls(ranks)
    return Scored(metrics=metrics, images=images, size=len(images.embeddings))


RETRIEVAL = TaskKind(open=open_evaluation_set, score=score_retrieval)
