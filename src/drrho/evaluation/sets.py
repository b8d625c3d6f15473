"""Evaluation sets, and their embeddings, captions and labels over several processes.

A folder with `zero_shot.json`, or with clip_benchmark's `classnames.txt` and templates, has
zero-shot tasks; shards with captions are scored by retrieval. What a set has decides.
"""

import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from drrho.data.examples import Part
from drrho.data.indexing import open_manifest
from drrho.data.manifest import Manifest
from drrho.data.reading.cache import OpenShards
from drrho.data.reading.shards import ANCHOR_EXTENSION, decode_captions
from drrho.encoding.shared import Encoder, SharedImages
from drrho.evaluation.metrics.associations import Question
from drrho.evaluation.metrics.information_retrieval import both_directions, queries_of
from drrho.evaluation.metrics.ranks import PositiveRanks, positive_ranks
from drrho.evaluation.metrics.retrieval import Pairs, RetrievalRanks, retrieval_ranks
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
from drrho.runtime.distributed import equal_partition
from drrho.runtime.errors import without_secrets

ZERO_SHOT_FILE = "zero_shot.json"
MANIFEST_FILE = "manifest.json"  # what `drrho index FOLDER` writes into the folder
CAPTIONS_READ = 4096  # samples read at once
CLASS_TEMPLATE = "a photo of a {}."  # for class folders, which come without templates


@dataclass(frozen=True, kw_only=True)
class EvaluationSet:
    """Samples with the tasks they can be scored by.

    Attributes:
        name: name of the folder or file without its ending, for tables.
        tasks: zero-shot tasks.
        with_captions: whether the samples have captions, for retrieval.
        captions_in_lines: whether each line is a caption, as clip_benchmark writes several.
        caption_templates: texts with `{}` where the caption goes, whose embeddings are averaged;
            without any, captions are encoded as they are.
        questions: cues; the samples are their candidates, one question after the other.
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
        return (*captions, "metadata") if self.tasks or self.of_texts else captions

    @property
    def of_texts(self) -> bool:
        """Whether the samples are pairs of texts; their anchors are in the metadata."""
        return self.with_captions and self.manifest.has_texts


def open_evaluation_set(
    source: str | Path, *, caption_templates: tuple[str, ...] = (), objectives: bool = False
) -> EvaluationSet:
    """Open an evaluation set: find its shards and tasks.

    Args:
        source: what `drrho index` takes, a manifest, or a folder in clip_benchmark's layout,
            whose shards are in `test/`. Folders of images without captions are classes of their
            names.
        objectives: whether an image has several labels, each a task; then each line of
            `classnames.txt` begins with the name of its task.

    Raises:
        FileNotFoundError: nothing is there, or a shard that `nshards.txt` counts is not.
        ValueError: there are neither captions nor tasks, or a file of the layout is wrong.
    """
    require_templates("caption_templates", caption_templates)
    path = Path(source).expanduser()
    folder = path if path.is_dir() else path.parent
    retrieval = is_retrieval_folder(path)
    layout = retrieval or is_class_folder(path)
    # A URL is no path, which would lose one of its slashes.
    manifest = open_manifest(shards_of_test(path) if layout else os.path.expanduser(str(source)))
    tasks: tuple[ZeroShotTask, ...] = ()
    if (folder / ZERO_SHOT_FILE).is_file():
        tasks = read_zero_shot_json(folder / ZERO_SHOT_FILE)
    elif objectives:
        tasks = read_objectives(folder)
    elif (folder / CLASS_NAMES_FILE).is_file():
        tasks = (read_clip_benchmark_task(folder),)
    with_captions = len(manifest.usable_ids(with_captions=True)) > 0
    name = _name_of(path)
    if not tasks and not with_captions:
        tasks = _class_folders(manifest, name)
    if not with_captions and (retrieval or not tasks):
        raise ValueError(
            f"{source} has neither captions nor class names: retrieval needs a .txt in each "
            f"sample, zero-shot classification {ZERO_SHOT_FILE} or {CLASS_NAMES_FILE} beside the "
            "shards, or a folder of images for each of two classes or more"
        )
    if caption_templates and not with_captions:
        raise ValueError(f"caption_templates have no effect on {source}: it has no captions")
    return EvaluationSet(
        name=name,
        manifest=manifest,
        tasks=tasks,
        with_captions=with_captions,
        captions_in_lines=retrieval,
        caption_templates=caption_templates,
    )


def _name_of(path: Path) -> str:
    """Name a set: by its folder, or by its file or pattern without ending and place holders.

    A `manifest.json` is called by its folder, and so is what has no name of its own (`*.tar`).
    """
    path = Path(os.path.abspath(path))
    if path.is_dir():
        return path.name
    stem = re.split(r"[*?\[{]", path.name.removesuffix(path.suffix))[0].rstrip("-_. ")
    return stem if stem and path.name != MANIFEST_FILE else path.parent.name


def _class_folders(manifest: Manifest, name: str) -> tuple[ZeroShotTask, ...]:
    """Make a task of folders of images whose names are the classes; none if these are not two."""
    folders = [
        shard.url for shard in manifest.shards if (shard.layout or {}).get("kind") == "folder"
    ]
    labels = tuple(dict.fromkeys(os.path.basename(folder) for folder in folders))
    if len(folders) < len(manifest.shards) or len(labels) < 2:
        return ()
    if nested := [f for f in folders if any(other.startswith(f"{f}/") for other in folders)]:
        raise ValueError(
            f"{nested[0]} holds images and folders of images: for classes of the folders' names "
            "each image must be in the folder of its class; move the images, or the folders, away"
        )
    return (
        ZeroShotTask(
            name=name,
            class_names=tuple(re.sub(r"[_\s]+", " ", label).strip() or label for label in labels),
            templates=(CLASS_TEMPLATE,),
            field="folder",
            labels=labels,
        ),
    )


def read_all_captions(evaluation_set: EvaluationSet) -> list[Sequence[str]]:
    """Read the captions of every sample that has some, without decoding images."""
    manifest = evaluation_set.manifest
    shards, found = OpenShards(manifest), []
    for ids in manifest.usable_ids().split(CAPTIONS_READ):
        found += [texts for _, texts in shards.readable(ids.tolist(), [], decode=decode_captions)]
    return [_lines(texts) for texts in found] if evaluation_set.captions_in_lines else found


@dataclass(frozen=True)
class EmbeddedSet:
    """An evaluation set whose images are encoded, shared by several processes.

    Its methods are collectives.
    """

    encoder: Encoder
    evaluation_set: EvaluationSet
    images: SharedImages

    @classmethod
    def encode(cls, encoder: Encoder, evaluation_set: EvaluationSet) -> "EmbeddedSet":
        """Encode the set's images; read captions and metadata as the scores need them."""
        name, parts = evaluation_set.name, evaluation_set.parts
        images = encoder.images(evaluation_set.manifest, name=name, parts=parts)
        return cls(encoder, evaluation_set, images)

    def captions(self) -> list[Sequence[str]]:
        """Gather the captions of every image, from all processes."""
        own: list[Sequence[str]] = self.images.own_captions
        if self.evaluation_set.captions_in_lines:
            own = [_lines(captions) for captions in own]
        parts = self.encoder.processes.all_gather_object(own)
        return [captions for part in parts for captions in part]

    def read_each(self, read: Callable[[Mapping[str, Any]], int]) -> Int[Tensor, " images"]:
        """Read a number from every image's metadata, such as `ZeroShotTask.label`.

        Raises:
            ValueError: on all processes, if `read` raised one; the message says where the sample
                is.
        """

        def read_own() -> list[int]:
            numbers = []
            own = zip(self.images.own_ids.tolist(), self.images.own_metadata, strict=True)
            for sample_id, metadata in own:
                try:
                    numbers.append(read(metadata))
                except ValueError as error:
                    shard, row = self.evaluation_set.manifest.locate(sample_id)
                    url = self.evaluation_set.manifest.shards[shard].url
                    where = f"{without_secrets(url)}, row {row}"
                    raise ValueError(f"{where}: {error}") from error
            return numbers

        processes = self.encoder.processes
        parts = processes.all_gather_object(processes.on_each(read_own))
        return torch.tensor([number for part in parts for number in part])

    def read_column(
        self, name: str, place: int, *, below: int | None = None
    ) -> Int[Tensor, " images"]:
        """Read the number of a group or class from a column of each image's .npy.

        Args:
            name: of the column, for messages.
            place: of the column, from 0.
            below: how many groups or classes there are; None if any number is one.
        """
        allowed = "from 0" if below is None else f"from 0 to {below - 1}"

        def number(metadata: Mapping[str, Any]) -> int:
            row = metadata.get("npy", [])
            if place >= len(row):
                raise ValueError(
                    f"{name!r} stands in column {place} of a sample's .npy, it has {len(row)} "
                    "columns; mend the data, or the task's group_by or kind"
                )
            value = row[place]
            if not 0 <= value < (below or torch.inf) or value != int(value):
                raise ValueError(
                    f"{name!r}, column {place} of the .npy, must be a whole number {allowed}, got "
                    f"{value}"
                )
            return int(value)

        return self.read_each(number)

    def class_embeddings(self, task: ZeroShotTask) -> Float[Tensor, "classes dim"]:
        """Encode the classes of a task: the mean of each class's prompts, to unit length."""
        prompts, classes = task.all_prompts()
        return ensemble(self.encoder.texts(prompts), classes)

    def label_ranks(
        self, classes: Float[Tensor, "classes dim"], labels: Int[Tensor, " images"]
    ) -> PositiveRanks:
        """Rank each image's class, the images divided among the processes."""
        return label_ranks(self.images.embeddings, classes, labels, rank=self._ranks)

    def caption_embeddings(self, texts: list[str]) -> Float[Tensor, "texts dim"]:
        """Encode captions, or the mean of each one's templates."""
        if templates := self.evaluation_set.caption_templates:
            prompts = [t.replace(PLACEHOLDER, text) for text in texts for t in templates]
            owners = torch.arange(len(texts)).repeat_interleave(len(templates))
            return ensemble(self.encoder.texts(prompts), owners)
        return self.encoder.texts(texts)

    def text_retrieval(
        self, texts: list[str], embeddings: Float[Tensor, "texts dim"]
    ) -> Mapping[str, float]:
        """Compute the metrics of information retrieval of pairs of texts.

        Args:
            texts, embeddings: the positives, as `distinct_texts` lists them.
        """
        own = [str(metadata[ANCHOR_EXTENSION]) for metadata in self.images.own_metadata]
        anchors = [one for part in self.encoder.processes.all_gather_object(own) for one in part]
        rows, documents, pairs = queries_of(anchors, self.captions())
        assert documents == texts
        return both_directions(self.images.embeddings[rows], embeddings, pairs)

    def caption_ranks(
        self, texts: list[str], pairs: Pairs, embeddings: Float[Tensor, "texts dim"] | None = None
    ) -> RetrievalRanks:
        """Rank images and texts in both directions, the queries divided among the processes.

        Args:
            embeddings: `caption_embeddings` of the texts; None encodes them.
        """
        embeddings = self.caption_embeddings(texts) if embeddings is None else embeddings
        return retrieval_ranks(self.images.embeddings, embeddings, pairs, rank=self._ranks)

    def _ranks(
        self,
        queries: Float[Tensor, "queries dim"],
        candidates: Float[Tensor, "candidates dim"],
        *,
        positives: Pairs,
    ) -> PositiveRanks:
        """Rank all queries; each process ranks its share."""
        rank = partial(positive_ranks, queries, candidates, positives=positives)
        processes = self.encoder.processes
        if processes.size == 1:
            return rank()
        part = equal_partition(len(queries), group=processes.host)
        own = rank(rows=(part.start, part.start + part.sizes[part.rank]))
        return PositiveRanks(*map(part.all_gather, own))


def _lines(captions: Sequence[str]) -> list[str]:
    return [line.strip() for text in captions for line in text.splitlines() if line.strip()]
