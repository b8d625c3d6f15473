"""Classification: the class of each image, by the prompts of the class names."""

from dataclasses import replace

from drrho.encoding.shared import Encoder
from drrho.evaluation.metrics.classification import classification_metrics, predicted_classes
from drrho.evaluation.sets import (
    EvaluationSet,
    column_of,
    embedded_set,
    ensemble_of,
    label_ranks_of,
    labels_of,
    open_evaluation_set,
)
from drrho.evaluation.tasks.task import ListedTask, Scored, TaskKind


def score_classification(
    encoder: Encoder, evaluation_set: EvaluationSet, task: ListedTask
) -> Scored:
    """Score the class of each image, and of the groups that the task names.

    Raises:
        ValueError: the folder has not one set of classes, or a sample has no label or group.
    """
    if len(evaluation_set.tasks) != 1:
        names = [zero_shot.name for zero_shot in evaluation_set.tasks]
        raise ValueError(f"task {task.key!r} needs one set of classes, its folder has {names}")
    zero_shot = evaluation_set.tasks[0]
    chosen = replace(evaluation_set, with_captions=False)
    images = embedded_set(encoder, chosen)
    labels = labels_of(encoder, chosen, images, task=zero_shot)
    classes = ensemble_of(encoder, *zero_shot.all_prompts())
    metrics = classification_metrics(
        label_ranks_of(encoder, images, classes, labels),
        labels,
        predicted=predicted_classes(images.embeddings, classes),
        num_classes=len(classes),
        groups={
            name: column_of(encoder, chosen, images, column=(place, name))
            for name, place in task.group_by.items()
        },
    )
    return Scored(metrics=metrics, images=images, size=len(images.embeddings))


CLASSIFICATION = TaskKind(open=open_evaluation_set, score=score_classification, takes_groups=True)
