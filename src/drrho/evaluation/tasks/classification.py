"""Classification: the class of each image, by the prompts of the class names."""

from collections.abc import Mapping
from dataclasses import replace

from drrho.encoding.shared import Encoder
from drrho.evaluation.metrics.classification import classification_metrics, predicted_classes
from drrho.evaluation.sets import EmbeddedSet, EvaluationSet, open_evaluation_set
from drrho.evaluation.tasks.task import ListedTask, Scored, TaskKind


def score_classification(
    encoder: Encoder, evaluation_set: EvaluationSet, task: ListedTask
) -> Scored:
    """Score the class of each image, over all and by the groups that the task names."""
    if len(evaluation_set.tasks) != 1:
        names = [zero_shot.name for zero_shot in evaluation_set.tasks]
        raise ValueError(f"task {task.key!r} needs one set of classes, its folder has {names}")
    zero_shot = evaluation_set.tasks[0]
    embedded = EmbeddedSet.encode(encoder, replace(evaluation_set, with_captions=False))
    images, labels = embedded.images, embedded.read_each(zero_shot.label)
    classes = embedded.class_embeddings(zero_shot)
    metrics = classification_metrics(
        embedded.label_ranks(classes, labels),
        labels,
        predicted=predicted_classes(images.embeddings, classes),
        num_classes=len(classes),
        groups={name: embedded.read_column(name, place) for name, place in task.group_by.items()},
    )
    return Scored(
        metrics=metrics,
        images=images,
        size=len(images.embeddings),
        chance=_chance(metrics, num_classes=len(classes)),
    )


def _metrics(task: ListedTask) -> list[str]:
    names = ["acc1", "acc5", "mean_per_class_recall", "F1-macro_all"]
    for division in task.group_by:
        names.append(f"count_{division}:<n>")
        for hits in ("acc", "acc_top5"):
            names += [f"{hits}_{division}:<n>", f"{hits}_worst_{division}"]
    return names + ["acc_wg", "acc_top5_wg"] * (len(task.group_by) == 1)


def _chance(metrics: Mapping[str, float | None], *, num_classes: int) -> dict[str, float]:
    """Share that guessing gets right: of all images, of every class and of every group."""
    first, top_5 = 1 / num_classes, min(1.0, 5 / num_classes)
    return {
        name: top_5 if name == "acc5" or name.startswith("acc_top5_") else first
        for name in metrics
        if name == "mean_per_class_recall" or name.startswith("acc")
    }


CLASSIFICATION = TaskKind(
    open=open_evaluation_set, score=score_classification, metrics=_metrics, takes_groups=True
)
