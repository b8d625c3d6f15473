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
    chance = {
        f"acc_{name}_avg": 1 / len(classes[objective])
        for name, objective in (("gender", "gender"), ("gender_x", "gender"), ("age", "age"))
    }
    return Scored(metrics=metrics, images=images, size=len(images.embeddings), chance=chance)


def _metrics(_task: ListedTask) -> list[str]:
    binary, race = ["race_binary:<n>"], ["race:<n>"]
    divisions = {
        **{f"acc_{name}": binary for name in ("race", "gender", "age")},
        "acc_gender_x": ["race:<n>_gender:<n>"],
        **{f"toxicity_{name}": race for name in ("crime", "nonhuman")},
    }
    groups = dict.fromkeys(group for several in divisions.values() for group in several)
    names = [f"count_{group}" for group in groups]
    for name, several in divisions.items():
        names += [f"{name}_avg", f"{name}_wg", *(f"{name}_{group}" for group in several)]
    return names


FACES = TaskKind(
    open=partial(open_evaluation_set, objectives=True), score=score_faces, metrics=_metrics
)
