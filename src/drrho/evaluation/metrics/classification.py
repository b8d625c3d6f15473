"""Classification metrics under the names of clip_benchmark, WILDS and DataComp."""

from collections.abc import Mapping

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import normalize

from drrho.evaluation.metrics.ranks import TILE, PositiveRanks
from drrho.evaluation.metrics.zero_shot import group_means

FEWEST_CLASSES_FOR_TOP_5 = 5


def predicted_classes(
    image_embeddings: Float[Tensor, "images dim"], classes: Float[Tensor, "classes dim"]
) -> Int[Tensor, " images"]:
    """Choose the class of highest cosine similarity; of several that are equal the first.

    Args:
        image_embeddings: embeddings of any length, finite.
        classes: unit embeddings.
    """
    chunks = image_embeddings.float().split(max(1, TILE // len(classes)))
    # The length of an image's embedding does not change which class is closest.
    return torch.cat([(normalize(chunk, dim=-1) @ classes.T).argmax(dim=1) for chunk in chunks])


def classification_metrics(
    ranks: PositiveRanks,
    labels: Int[Tensor, " images"],
    *,
    predicted: Int[Tensor, " images"],
    num_classes: int,
    groups: Mapping[str, Int[Tensor, " images"]],
) -> dict[str, float | None]:
    """Compute accuracies of all images, of classes and of groups.

    Args:
        ranks: of the right classes, from `label_ranks`.
        labels: index of each image's class.
        predicted: from `predicted_classes`, for F1.
        groups: name of a division (such as "region") -> each image's group in it, from 0.

    Returns:
        All between 0 and 1:

        * `acc1`, `acc5` (None with fewer than 5 classes) and `mean_per_class_recall`, over the
          classes that occur;
        * `F1-macro_all`, the mean over the classes that occur of
          `2 TP / (images of the class + images said to be of it)`;
        * for each division D and each group g of it that occurs `acc_D:g` and `count_D:g`, and
          `acc_worst_D`, the least of them; with top-5 accuracies as `acc_top5_...`;
        * with one division alone `acc_wg` and `acc_top5_wg`, the same as `..._worst_D`.

    Source: clip_benchmark 1.6.2, metrics.zeroshot_classification; P. W. Koh et al., "WILDS: A
        Benchmark of in-the-Wild Distribution Shifts", 2021, and the names of its package; DataComp,
        eval_utils/wilds_eval.py and fairness_eval.py.
    """
    hits: dict[str, Float[Tensor, " images"]] = {"acc": ranks.hits(1)}
    if num_classes >= FEWEST_CLASSES_FOR_TOP_5:
        hits["acc_top5"] = ranks.hits(5)
    recall, occurs = group_means(hits["acc"], labels)
    metrics: dict[str, float | None] = {
        "acc1": float(hits["acc"].mean()),
        "acc5": float(hits["acc_top5"].mean()) if "acc_top5" in hits else None,
        "mean_per_class_recall": float(recall[occurs].mean()),
        "F1-macro_all": macro_f1(predicted, labels, num_classes=num_classes),
    }
    for division, group in groups.items():
        counts = torch.bincount(group)
        occurring = counts.nonzero()[:, 0].tolist()
        metrics |= {f"count_{division}:{g}": float(counts[g]) for g in occurring}
        for name, values in hits.items():
            means, _ = group_means(values, group)
            metrics |= {f"{name}_{division}:{g}": float(means[g]) for g in occurring}
            metrics[f"{name}_worst_{division}"] = worst = float(means[occurring].min())
            if len(groups) == 1:
                metrics[f"{name}_wg"] = worst
    return metrics


def macro_f1(
    predicted: Int[Tensor, " images"], labels: Int[Tensor, " images"], *, num_classes: int
) -> float:
    """Average the harmonic mean of precision and recall over the classes that occur."""
    said, there, right = (
        torch.bincount(classes, minlength=num_classes).double()
        for classes in (predicted, labels, labels[predicted == labels])
    )
    f1 = 2 * right / (said + there)
    return float(f1[there > 0].mean())
