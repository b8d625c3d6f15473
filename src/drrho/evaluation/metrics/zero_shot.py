"""Zero-shot classification: the class whose prompts are most similar to the image."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import chain

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import normalize

from drrho.evaluation.metrics.ranks import PositiveRanks, positive_ranks, require_embeddings

PLACEHOLDER = "{}"


@dataclass(frozen=True, kw_only=True)
class ZeroShotTask:
    """A classification task in words.

    Two classes may share a name where labels are indices, as two pairs of ImageNet's do: they are
    tied, and half of their images count as right.

    Attributes:
        name: name in metrics and messages.
        class_names: names in the order of the classes' indices.
        templates: prompts with `{}` where the class name goes, such as "a photo of a {}."
        field: entry of a sample's metadata that holds its label: a class name, or an index as a
            number or as text; "cls" is the content of a `.cls` file.
        other_names: further names of each class, whose prompts are averaged with those of the
            first; empty, or one entry for each class.
        labels: what metadata call the classes, where that is not their names; empty, or one entry
            for each class.
    """

    name: str
    class_names: tuple[str, ...]
    templates: tuple[str, ...]
    field: str = "cls"
    other_names: tuple[tuple[str, ...], ...] = ()
    labels: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if len(self.class_names) < 2:
            raise ValueError(
                f"task {self.name!r} needs at least two classes, got {list(self.class_names)}"
            )
        if self.other_names and len(self.other_names) != len(self.class_names):
            raise ValueError(
                f"task {self.name!r}: other_names must have one entry for each of the "
                f"{len(self.class_names)} classes, got {len(self.other_names)}"
            )
        if self.labels and len(self.labels) != len(self.class_names):
            raise ValueError(
                f"task {self.name!r}: labels must have one entry for each of the "
                f"{len(self.class_names)} classes, got {len(self.labels)}"
            )
        if not all(name.strip() for name in chain(self.class_names, *self.other_names)):
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
        """Insert the class name into each template."""
        return [template.replace(PLACEHOLDER, class_name) for template in self.templates]

    def all_prompts(self) -> tuple[list[str], Int[Tensor, " prompts"]]:
        """List the prompts of all classes, and the index of each prompt's class."""
        others = self.other_names or ((),) * len(self.class_names)
        prompts, classes = [], []
        for index, names in enumerate(zip(self.class_names, others, strict=True)):
            of_class = [prompt for name in (names[0], *names[1]) for prompt in self.prompts(name)]
            prompts += of_class
            classes += [index] * len(of_class)
        return prompts, torch.tensor(classes)

    def label(self, metadata: Mapping[str, object]) -> int:
        """Return the index of a sample's class; raises ValueError if the metadata name none."""
        if self.field not in metadata:
            raise ValueError(
                f"task {self.name!r} reads labels from {self.field!r}, but the sample has only "
                f"{sorted(metadata)}"
            )
        value = metadata[self.field]
        labels = self.labels or self.class_names
        if isinstance(value, str) and labels.count(value) == 1:
            return labels.index(value)
        text = str(value).strip()
        if text.isdecimal() and int(text) < len(self.class_names):
            return int(text)
        raise ValueError(
            f"task {self.name!r}: the label {value!r} of {self.field!r} is neither the name "
            f"of one class nor an index below {len(self.class_names)}; the first classes are "
            f"{list(self.class_names[:10])}"
        )


def ensemble(
    prompt_embeddings: Float[Tensor, "prompts dim"], owners: Int[Tensor, " prompts"]
) -> Float[Tensor, "owners dim"]:
    """Average the normalised prompt embeddings of each class, to unit length.

    Args:
        prompt_embeddings: embeddings of any length, all finite.
        owners: index of each prompt's class, or of its caption; each has at least one prompt.

    Source: A. Radford et al., "Learning Transferable Visual Models From Natural Language
        Supervision", 2021, section 3.1.4 (ensembling of prompts in embedding space).
    """
    require_embeddings("prompt embeddings", prompt_embeddings)
    unit = normalize(prompt_embeddings.float(), dim=-1)
    sums = unit.new_zeros(int(owners.max()) + 1, unit.shape[1]).index_add_(0, owners, unit)
    return normalize(sums, dim=-1)


def label_ranks(
    image_embeddings: Float[Tensor, "images dim"],
    classes: Float[Tensor, "classes dim"],
    labels: Int[Tensor, " images"],
    *,
    rank: Callable[..., PositiveRanks] = positive_ranks,
) -> PositiveRanks:
    """Rank each image's class among all classes, by cosine similarity.

    Args:
        classes: from `ensemble`.
        labels: index of each image's class.
        rank: called as `positive_ranks(queries, candidates, positives=...)`.

    Raises:
        ValueError: no images or classes, an embedding that is not finite, or a label that is no
            class.
    """
    unknown = (labels < 0) | (labels >= len(classes))
    if unknown.any():
        raise ValueError(
            f"labels must be indices of the {len(classes)} classes, got {int(labels[unknown][0])}"
        )
    images = torch.arange(len(labels), device=labels.device)
    return rank(image_embeddings, classes, positives=torch.stack([images, labels]))


def summarise_labels(
    ranks: PositiveRanks, labels: Int[Tensor, " images"], *, num_classes: int
) -> dict[str, float]:
    """Compute accuracies from the ranks of the right classes.

    An image is right at k if its class is among the first k; ties are ordered at random, as
    `PositiveRanks` explains, so a model that cannot tell the classes apart scores as guessing.

    Returns:
        `top1`, `top5` if there are more than 5 classes, and `mean_per_class_recall`, top-1
        averaged over the classes that occur in `labels`; all between 0 and 1.
    """
    right = ranks.hits(1)
    metrics = {"top1": float(right.mean())}
    if num_classes > 5:
        metrics["top5"] = float(ranks.hits(5).mean())
    recall, occurs = group_means(right, labels)
    metrics["mean_per_class_recall"] = float(recall[occurs].mean())
    return metrics


def group_means(
    values: Float[Tensor, " images"], groups: Int[Tensor, " images"]
) -> tuple[Float[Tensor, " groups"], Bool[Tensor, " groups"]]:
    """Average each group's values, nan without any; and mark the groups that have some."""
    counts = torch.bincount(groups)
    return torch.bincount(groups, weights=values) / counts, counts > 0
