"""Associations: cues and images to choose from, as `save_to_disk` of datasets wrote WinoGAViL."""

from pathlib import Path

import torch

from drrho.data.indexing import Columns, index_shards
from drrho.data.reading.columns import NO_COLUMN
from drrho.data.reading.sources import DATASET_FILE, dataset_columns, list_lengths
from drrho.encoding.shared import Encoder
from drrho.evaluation.metrics.associations import (
    GROUPS,
    association_metrics,
    guessed_jaccard,
    jaccard_scores,
    parse_question,
)
from drrho.evaluation.sets import EmbeddedSet, EvaluationSet
from drrho.evaluation.tasks.task import ListedTask, Scored, TaskKind

IMAGES = "candidate_images"
COLUMNS = ["cue", "candidates", "associations"]


def open_association_set(folder: Path) -> EvaluationSet:
    """Read the questions of a dataset on disk; each of a row's `candidate_images` is a sample."""
    if not (folder / DATASET_FILE).is_file():
        raise ValueError(
            f"{folder} has no {DATASET_FILE}, so it is no dataset of one split; write it with "
            f"`datasets.load_dataset(NAME, split='test').save_to_disk({str(folder)!r})`"
        )
    columns = dataset_columns(str(folder), COLUMNS)
    lengths = list_lengths(str(folder), IMAGES)
    questions = []
    for row, (num_images, *cells) in enumerate(zip(lengths, *columns, strict=True)):
        try:
            question = parse_question(*cells)
            if num_images != len(question.candidates):
                raise ValueError(
                    f"there are {num_images} {IMAGES} of {len(question.candidates)} candidates"
                )
        except ValueError as error:
            raise ValueError(f"{folder}, row {row}: {error}") from error
        questions.append(question)
    return EvaluationSet(
        name=folder.name,
        manifest=index_shards(folder, columns=Columns(image=IMAGES, caption=NO_COLUMN)),
        tasks=(),
        with_captions=False,
        questions=tuple(questions),
    )


def score_associations(
    encoder: Encoder, evaluation_set: EvaluationSet, _task: ListedTask
) -> Scored:
    """Score the questions whose images could all be decoded.

    Every process scores all questions, which takes no time beside encoding their images.
    """
    images = EmbeddedSet.encode(encoder, evaluation_set).images
    found = set(encoder.sample_ids(images).tolist())
    questions, kept, start = [], [], 0
    for question in evaluation_set.questions:
        places = range(start, start + len(question.candidates))  # the ids of its images
        start = places.stop
        is_whole = found.issuperset(places)
        if is_whole:
            questions.append(question)
        kept += [is_whole] * len(found.intersection(places))
    if not questions:
        raise ValueError(f"not one question of {evaluation_set.name} has all its images")
    scores = jaccard_scores(
        images.embeddings[torch.tensor(kept)],
        encoder.texts([question.prompt for question in questions]),
        questions,
    )
    sizes = [len(question.candidates) for question in questions]
    chance = association_metrics([guessed_jaccard(question) for question in questions], sizes)
    return Scored(
        metrics=association_metrics(scores, sizes),
        images=images,
        size=len(questions),
        chance={name: value for name, value in chance.items() if value is not None},
    )


ASSOCIATIONS = TaskKind(
    open=open_association_set,
    score=score_associations,
    metrics=lambda _task: [*GROUPS],
    in_shards=False,
)
