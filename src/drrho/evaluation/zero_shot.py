"""Zero-shot classification: the class whose prompts are most similar to the image."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import normalize

from drrho.evaluation.ranks import positive_ranks, require_embeddings

PLACEHOLDER = "{}"


@dataclass(frozen=True, kw_only=True)
class ZeroShotTask:
    """A classification task in words.

    Two classes may share a name where labels are indices, as two pairs of ImageNet's do: they are
    tied, and half of their images count as right.

    Attributes:
        name: for metrics and messages.
        class_names: as they stand in a prompt; a class's index is its position.
        templates: prompts with `{}` where the class name goes, such as "a photo of a {}."
        field: the entry of a sample's metadata that holds its label: a class name, or an index as
            a number or as text. "cls" is where the content of a `.cls` file stands.

    Raises:
        ValueError: fewer than two classes, an empty name, no template, or a template without `{}`.
    """

    name: str
    class_names: tuple[str, ...]
    templates: tuple[str, ...]
    field: str = "cls"

    def __post_init__(self) -> None:
        if len(self.class_names) < 2:
            raise ValueError(
                f"task {self.name!r} needs at least two classes, got {list(self.class_names)}"
            )
        if not all(map(str.strip, self.class_names)):
            raise ValueError(
                f"task {self.name!r}: class names must not be empty, got {list(self.class_names)}"
            )
        unusable = [t for t in self.templates if PLACEHOLDER not in t]
        if unusable or not self.templates:
            raise ValueError(
                f"task {self.name!r}: each template needs {PLACEHOLDER} where the class name "
                f"goes, got {unusable or 'no template'}"
            )

    def prompts(self, class_name: str) -> list[str]:
        """The class name in each of the templates."""
        return [template.replace(PLACEHOLDER, class_name) for template in self.templates]

    def label(self, metadata: Mapping[str, object]) -> int:
        """Index of the class of the sample with this metadata.

        Raises:
            ValueError: the metadata has no such field, or its value is no class of the task.
        """
        if self.field not in metadata:
            raise ValueError(
                f"task {self.name!r} reads labels from {self.field!r}, but the sample has only "
                f"{sorted(metadata)}"
            )
        value = metadata[self.field]
        if isinstance(value, str) and self.class_names.count(value) == 1:
            return self.class_names.index(value)
        text = str(value).strip()
        if text.isdecimal() and int(text) < len(self.class_names):
            return int(text)
        raise ValueError(
            f"task {self.name!r}: the label {value!r} of {self.field!r} is neither the name "
            f"of one class nor an index below {len(self.class_names)}; the first classes are "
            f"{list(self.class_names[:10])}"
        )


def class_embeddings(
    prompt_embeddings: Float[Tensor, "classes templates dim"],
) -> Float[Tensor, "classes dim"]:
    """One unit embedding per class: the normalised mean of its normalised prompt embeddings.

    Raises:
        ValueError: there are none, or one is not finite.

    Source: A. Radford et al., "Learning Transferable Visual Models From Natural Language
        Supervision", 2021, section 3.1.4 (ensembling of prompts in embedding space).
    """
    require_embeddings("prompt embeddings", prompt_embeddings.flatten(end_dim=1))
    return normalize(normalize(prompt_embeddings.float(), dim=-1).mean(dim=1), dim=-1)


def zero_shot(
    image_embeddings: Float[Tensor, "images dim"],
    classes: Float[Tensor, "classes dim"],
    labels: Int[Tensor, " images"],
    *,
    chunk_size: int = 4096,
) -> dict[str, float]:
    """Accuracy of assigning each image to the class of highest cosine similarity.

    An image is right at k if its class is among the first k; ties are ordered at random, as
    `PositiveRanks` explains, so a model that cannot tell the classes apart scores as guessing.

    Args:
        classes: from `class_embeddings`.
        labels: index of each image's class.
        chunk_size: images compared at once; memory is O(chunk_size x classes).

    Returns:
        `top1`, `top5` if there are more than 5 classes, and `mean_per_class_recall`, top-1
        averaged over the classes that occur in `labels`; all between 0 and 1.

    Raises:
        ValueError: no images or classes, an embedding that is not finite, or a label that is no
            class.
    """
    unknown = (labels < 0) | (labels >= len(classes))
    if unknown.any():
        raise ValueError(
            f"labels must be indices of the {len(classes)} classes, got {int(labels[unknown][0])}"
        )
    ranks = positive_ranks(
        image_embeddings,
        classes,
        query_labels=labels,
        candidate_labels=torch.arange(len(classes), device=labels.device),
        chunk_size=chunk_size,
    )
    right = ranks.hits(1)
    images = torch.bincount(labels, minlength=len(classes))
    recall = torch.bincount(labels, weights=right, minlength=len(classes)) / images
    metrics = {"top1": float(right.mean())}
    if len(classes) > 5:
        metrics["top5"] = float(ranks.hits(5).mean())
    metrics["mean_per_class_recall"] = float(recall[images > 0].mean())
    return metrics
