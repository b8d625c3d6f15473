"""Associations: which of several images belong to a cue, as in WinoGAViL."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import comb

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import normalize

from drrho.evaluation.metrics.ranks import TIE, require_embeddings

VOWELS = tuple("aeiou")
# Metric -> whether questions of so many candidates enter its mean.
GROUPS: Mapping[str, Callable[[int], bool]] = {
    "avg_jaccard_score": lambda _: True,
    "jaccard_score_5": lambda size: size == 5,
    "jaccard_score_6": lambda size: size == 6,
    "jaccard_score_10": lambda size: size == 10,
    "jaccard_score_12": lambda size: size == 12,
    "jaccard_score_5-6": lambda size: size <= 6,
    "jaccard_score_10-12": lambda size: size >= 10,
}


@dataclass(frozen=True, kw_only=True)
class Question:
    """A cue and the images to choose from.

    Attributes:
        cue: a word or a few.
        candidates: name of each image.
        associations: names of the images that belong to the cue.
    """

    cue: str
    candidates: tuple[str, ...]
    associations: tuple[str, ...]

    def __post_init__(self) -> None:
        if not self.cue.strip():
            raise ValueError("the cue is empty")
        if not self.associations:
            raise ValueError(f"the cue {self.cue!r} has no associations; remove the row")
        if len(set(self.associations)) > len(self.candidates):
            raise ValueError(
                f"the cue {self.cue!r} has {len(set(self.associations))} associations, more than "
                f"its {len(self.candidates)} candidates"
            )
        if not any(self.right):
            raise ValueError(
                f"none of the candidates of the cue {self.cue!r}, {list(self.candidates)}, is an "
                f"association: {list(self.associations)}"
            )

    @property
    def prompt(self) -> str:
        """The cue with its article."""
        cue = self.cue.lower()
        return f"{'An' if cue.startswith(VOWELS) else 'A'} {cue}"

    @property
    def right(self) -> list[bool]:
        """Mask of the candidates that are associations; as many are chosen."""
        return [name in self.associations for name in self.candidates]


def parse_question(cue: object, candidates: object, associations: object) -> Question:
    """Parse a row of WinoGAViL's columns of these names; raises ValueError if it is none."""
    if not isinstance(cue, str):
        raise ValueError(f"cue must be a text, got {cue!r}")
    return Question(
        cue=cue,
        candidates=_names("candidates", candidates),
        associations=_names("associations", associations),
    )


def jaccard_scores(
    image_embeddings: Float[Tensor, "images dim"],
    cue_embeddings: Float[Tensor, "questions dim"],
    questions: Sequence[Question],
) -> list[float]:
    """Compute `expected_jaccard` of each question.

    Args:
        image_embeddings: embeddings of the candidates, question by question; of any length.
        cue_embeddings: embeddings of the questions' prompts, of any length.
    """
    require_embeddings("image embeddings", image_embeddings)
    require_embeddings("cue embeddings", cue_embeddings)
    ends = torch.tensor([0] + [len(question.candidates) for question in questions]).cumsum(0)
    scores = []
    for (start, end), cue, question in zip(
        pairwise(ends.tolist()), normalize(cue_embeddings.float(), dim=-1), questions, strict=True
    ):
        images = normalize(image_embeddings[start:end].float(), dim=-1)
        scores.append(expected_jaccard(images @ cue, torch.tensor(question.right)))
    return scores


def guessed_jaccard(question: Question) -> float:
    """Return what guessing reaches: the score where all images are equally similar."""
    return expected_jaccard(torch.zeros(len(question.candidates)), torch.tensor(question.right))


def expected_jaccard(
    similarity: Float[Tensor, " candidates"], right: Bool[Tensor, " candidates"]
) -> float:
    r"""Jaccard index of the right candidates and as many with the highest similarity.

    $|P \cap T| / |P \cup T| = h / (2k - h)$ for k right candidates, h of them chosen.
    Candidates as similar as the k-th, within 1e-6, are ordered at random, and the expected index
    is returned: a model that finds all images equally similar scores as guessing.

    Args:
        similarity: cosines.
        right: at least one.
    """
    k = int(right.sum())
    gap = similarity - similarity.topk(k).values[-1]
    ahead, tied = gap > TIE, gap.abs() <= TIE
    certain, places = int((ahead & right).sum()), k - int(ahead.sum())
    num_tied, tied_right = int(tied.sum()), int((tied & right).sum())
    ways = [  # to fill the places with so many right ones of the tied
        comb(tied_right, hits) * comb(num_tied - tied_right, places - hits)
        for hits in range(places + 1)
    ]
    index = [(certain + hits) / (2 * k - certain - hits) for hits in range(places + 1)]
    return sum(w * value for w, value in zip(ways, index, strict=True)) / sum(ways)


def association_metrics(scores: Sequence[float], sizes: Sequence[int]) -> dict[str, float | None]:
    """Average the questions' scores under DataComp's names.

    Args:
        scores: scores from `jaccard_scores`.
        sizes: number of each question's candidates, which decides which of `GROUPS` it is in.

    Returns:
        The mean of each group; None where it has no question.

    Source: Y. Bitton et al., "WinoGAViL: Gamified Association Benchmark to Challenge
        Vision-and-Language Models", 2022; DataComp, eval_utils/wino_eval.py.
    """
    metrics: dict[str, float | None] = {}
    for name, belongs in GROUPS.items():
        chosen = [score for score, size in zip(scores, sizes, strict=True) if belongs(size)]
        metrics[name] = sum(chosen) / len(chosen) if chosen else None
    return metrics


def _names(column: str, cell: object) -> tuple[str, ...]:
    if not isinstance(cell, list) or not all(isinstance(name, str) for name in cell):
        raise ValueError(f"{column} must be a list of names, got {cell!r}")
    return tuple(cell)
