"""Evaluation sets, and their embeddings, captions and labels over several processes.

A folder with `zero_shot.json`, or with clip_benchmark's `classnames.txt` and templates, has
zero-shot tasks; shards with captions are scored by retrieval. What a set has decides.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from drrho.data.indexing import open_manifest
from drrho.data.loading import Part
from drrho.data.manifest import Manifest
from drrho.encoding.shared import Encoder, SharedImages
from drrho.evaluation.metrics.associations import Question
from drrho.evaluation.metrics.ranks import PositiveRanks, positive_ranks
from drrho.evaluation.metrics.retrieval import Pairs, RetrievalRanks
from drrho.evaluation.metrics.zero_shot import PLACEHOLDER, ZeroShotTask, ensemble, label_ranks
from drrho.evaluation.tasks.zero_shot_files import (
    CLASS_NAMES_FILE,
    is_class_folder,
    is_retrieval_folder,
    read_clip_benchmark_task,
    read_objectives,
    read_zero_shot_json,
    require_templates,
    shards_of_test,
)
from drrho.runtime.distributed import Processes, equal_partition

ZERO_SHOT_FILE = "zero_shot.json"


@dataclass(frozen=True, kw_only=True)
class EvaluationSet:
    """Samples with the tasks they can be scored by.

    Attributes:
        name: of the folder or file, for tables.
        tasks: zero-shot tasks, perhaps none.
        with_captions: whether the samples have captions, for retrieval.
        captions_in_lines: whether each line of a caption is one, as clip_benchmark writes several.
        caption_templates: texts with `{}` where the caption goes, whose embeddings are averaged;
            none are the captions as they are.
        questions: cues, whose candidates one after the other are the samples; perhaps none.
    """

    name: str
    manifest: Manifest
    tasks: tuple[ZeroShotTask, ...]
    with_captions: bool
    captions_in_lines: bool = False
    caption_templates: tuple[str, ...] = ()
    questions: tuple[Question, ...] = ()

    @property
    def parts(self) -> tuple[Part, ...]:
        """Parts of a sample that the scores need beside the image."""
        captions: tuple[Part, ...] = ("caption",) if self.with_captions else ()
        return (*captions, "metadata") if self.tasks else captions


def open_evaluation_set(
    source: str | Path, *, caption_templates: tuple[str, ...] = (), objectives: bool = False
) -> EvaluationSet:
    """Open an evaluation set: find its shards and tasks.

    Args:
        source: what `drrho index` takes, a manifest, or a folder in clip_benchmark's layout,
            whose shards are in `test/`.
        objectives: whether an image has several labels, and `classnames.txt` says of each line
            which of them it is of: each is a task.

    Raises:
        FileNotFoundError: nothing is there, or a shard that `nshards.txt` counts is not.
        ValueError: there are neither captions nor tasks, or a file of the layout is wrong.
    """
    require_templates("caption_templates", caption_templates)
    path = Path(source).expanduser()
    folder = path if path.is_dir() else path.parent
    retrieval = is_retrieval_folder(path)
    layout = retrieval or is_class_folder(path)
    manifest = open_manifest(shards_of_test(path) if layout else path)
    tasks: tuple[ZeroShotTask, ...] = ()
    if (folder / ZERO_SHOT_FILE).is_file():
        tasks = read_zero_shot_json(folder / ZERO_SHOT_FILE)
    elif objectives:
        tasks = read_objectives(folder)
    elif (folder / CLASS_NAMES_FILE).is_file():
        tasks = (read_clip_benchmark_task(folder),)
    with_captions = len(manifest.usable_ids(with_captions=True)) > 0
    if not with_captions and (retrieval or not tasks):
        raise ValueError(
            f"{source} has neither captions nor class names: retrieval needs a .txt in each "
            f"sample, zero-shot classification {ZERO_SHOT_FILE} or {CLASS_NAMES_FILE} beside the "
            "shards"
        )
    if caption_templates and not with_captions:
        raise ValueError(f"caption_templates have no effect on {source}: it has no captions")
    return EvaluationSet(
        name=folder.name if path.suffix == ".json" or path.is_dir() else path.name,
        manifest=manifest,
        tasks=tasks,
        with_captions=with_captions,
        captions_in_lines=retrieval,
        caption_templates=caption_templates,
    )


def embedded_set(encoder: Encoder, evaluation_set: EvaluationSet) -> SharedImages:
    """Encode the set's images, with captions and metadata as it has them; a collective."""
    return encoder.images(
        evaluation_set.manifest, name=evaluation_set.name, parts=evaluation_set.parts
    )


def captions_of(
    encoder: Encoder, evaluation_set: EvaluationSet, images: SharedImages
) -> list[Sequence[str]]:
    """Gather the captions of every image, from all processes."""
    own: list[Sequence[str]] = images.own_captions
    if evaluation_set.captions_in_lines:
        own = [_lines(captions) for captions in own]
    return [captions for part in encoder.processes.all_gather_object(own) for captions in part]


def labels_of(
    encoder: Encoder, evaluation_set: EvaluationSet, images: SharedImages, *, task: ZeroShotTask
) -> Int[Tensor, " images"]:
    """Read the label of every image, as `of_each_image`."""
    return of_each_image(encoder, evaluation_set, images, task.label)


def of_each_image(
    encoder: Encoder,
    evaluation_set: EvaluationSet,
    images: SharedImages,
    read: Callable[[Mapping[str, object]], int],
) -> Int[Tensor, " images"]:
    """Read a number from every image's metadata, over all processes.

    Raises:
        ValueError: on all processes, if `read` raised one; the message says where the sample is.
    """

    def of_own() -> list[int]:
        numbers = []
        for sample_id, metadata in zip(images.own_ids.tolist(), images.own_metadata, strict=True):
            try:
                numbers.append(read(metadata))
            except ValueError as error:
                shard, row = evaluation_set.manifest.locate(sample_id)
                url = evaluation_set.manifest.shards[shard].url
                raise ValueError(f"{url}, row {row}: {error}") from error
        return numbers

    parts = encoder.processes.all_gather_object(encoder.processes.on_each(of_own))
    return torch.tensor([number for part in parts for number in part])


def column_of(
    encoder: Encoder,
    evaluation_set: EvaluationSet,
    images: SharedImages,
    *,
    column: tuple[int, str],
    below: int | None = None,
) -> Int[Tensor, " images"]:
    """Read the number of a group or class from a column of each image's .npy; a collective.

    Args:
        column: its place, from 0, and its name, for messages.
        below: how many groups or classes there are; None if any number is one.
    """
    place, name = column
    allowed = "from 0" if below is None else f"from 0 to {below - 1}"

    def number(metadata: Mapping[str, Any]) -> int:
        row = metadata.get("npy", [])
        if place >= len(row):
            raise ValueError(
                f"{name!r} stands in column {place} of a sample's .npy, it has {len(row)} columns; "
                "mend the data, or the task's group_by or kind"
            )
        value = row[place]
        if not 0 <= value < (below or torch.inf) or value != int(value):
            raise ValueError(
                f"{name!r}, column {place} of the .npy, must be a whole number {allowed}, got "
                f"{value}"
            )
        return int(value)

    return of_each_image(encoder, evaluation_set, images, number)


def label_ranks_of(
    encoder: Encoder,
    images: SharedImages,
    classes: Float[Tensor, "classes dim"],
    labels: Int[Tensor, " images"],
) -> PositiveRanks:
    """Rank each image's class, the images divided among the processes."""
    rank = partial(label_ranks, images.embeddings, classes, labels)
    return _shared_ranks(encoder.processes, len(labels), rank)


def ensemble_of(
    encoder: Encoder, texts: list[str], owners: Int[Tensor, " texts"]
) -> Float[Tensor, "owners dim"]:
    """Encode classes, or captions in templates: the mean of several texts, to unit length."""
    return ensemble(encoder.texts(texts), owners)


def ranks_of_captions(
    encoder: Encoder,
    images: SharedImages,
    texts: list[str],
    *,
    pairs: Pairs,
    templates: tuple[str, ...],
) -> RetrievalRanks:
    """Rank images and texts in both directions, the queries divided among the processes."""
    if templates:
        prompts = [template.replace(PLACEHOLDER, text) for text in texts for template in templates]
        owners = torch.arange(len(texts)).repeat_interleave(len(templates))
        embeddings = ensemble_of(encoder, prompts, owners)
    else:
        embeddings = encoder.texts(texts)

    def ranks(queries: Tensor, candidates: Tensor, positives: Pairs) -> PositiveRanks:
        rank = partial(positive_ranks, queries, candidates, positives=positives)
        return _shared_ranks(encoder.processes, len(queries), rank)

    return RetrievalRanks(
        image_to_text=ranks(images.embeddings, embeddings, pairs),
        text_to_image=ranks(embeddings, images.embeddings, pairs.flip(0)),
    )


def _lines(captions: Sequence[str]) -> list[str]:
    return [line.strip() for text in captions for line in text.splitlines() if line.strip()]


def _shared_ranks(
    processes: Processes, num_queries: int, rank: Callable[..., PositiveRanks]
) -> PositiveRanks:
    """Compute the ranks of all queries, of which each process computes its share; a collective.

    `rank` takes them as `rows`: the first, and the one after the last.
    """
    if processes.size == 1:
        return rank(rows=(0, num_queries))
    part = equal_partition(num_queries, group=processes.host)
    own = rank(rows=(part.start, part.start + part.sizes[part.rank]))
    return PositiveRanks(*map(part.all_gather, own))
