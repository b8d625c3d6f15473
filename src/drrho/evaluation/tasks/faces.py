"""Faces: several labels of each image, scored by groups of people."""

from dataclasses import replace
from functools import partial

from drrho.encoding.shared import Encoder
from drrho.evaluation.metrics.faces import COLUMNS, OBJECTIVES, face_metrics, require_objectives
from drrho.evaluation.sets import EmbeddedSet, EvaluationSet, open_evaluation_set
from drrho.evaluation.tasks.task import ListedTask, Scored, TaskKind


def score_faces(encoder: Encoder, evaluation_set: EvaluationSet, _task: ListedTask) -> Scored:
    """Compute the metrics on every process from all embeddings, since there are few classes."""
    objectives = {task.name: task for task in evaluation_set.tasks}
    require_objectives(objectives)
    embedded = EmbeddedSet.encode(encoder, replace(evaluation_set, with_captions=False))
    below = {name: len(objectives[name].class_names) for name in ("age", "gender")}
    below |= {"race_binary": 2}  # how many races there are is not said
    labels = {
        name: embedded.read_column(name, place, below=below.get(name))
        for place, name in enumerate(COLUMNS)
    }
    classes = {name: embedded.class_embeddings(objectives[name]) for name in OBJECTIVES}
    images = embedded.images
    metrics = face_metrics(images.embeddings, classes, labels)
    return Scored(metrics=metrics, images=images, size=len(images.embeddings))


FACES = TaskKind(open=partial(open_evaluation_set, objectives=True), score=score_faces)
