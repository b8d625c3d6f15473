"""What is found in a folder, as plain data."""

from collections.abc import Mapping
from dataclasses import dataclass

MRR = "mrr"


@dataclass(frozen=True, kw_only=True)
class Score:
    """A score with its name, and what guessing reaches; None where that is not known."""

    value: float
    metric: str
    chance: float | None = None


@dataclass(frozen=True, kw_only=True)
class Found:
    """A run, a store, a manifest, a result or another thing that drrho wrote.

    Attributes:
        path: where it is, seen from the folder that is listed.
        kind: "run", "comparison", "replicates", "steering", "reference", "losses", "manifest", ...
        state: "finished", "interrupted at step 120 of 200", "damaged: ..." and the like.
        what: description in a few words: method, model, number of pairs.
        score: best known score; None where there is none.
        size: bytes of all its files.
        modified: time of the last change, as ISO 8601 in local time.
        part_of: path of the study that it belongs to; None where it belongs to none.
    """

    path: str
    kind: str
    state: str
    what: str = ""
    score: Score | None = None
    size: int = 0
    modified: str = ""
    part_of: str | None = None

    @property
    def is_damaged(self) -> bool:
        """Whether a file of it cannot be read."""
        return self.state.startswith("damaged")


def score_of(metrics: Mapping[str, float | None], *, prefix: str = "") -> Score | None:
    """Pick the mean reciprocal rank or, without captions, the first accuracy.

    The chance of the mean reciprocal rank is computed for as many texts as images, where the
    metrics have no other.
    """
    names = [name for name, value in metrics.items() if value is not None]
    wanted = f"{prefix}{MRR}"
    accuracies = [name for name in names if name.startswith(prefix) and name.endswith("/top1")]
    name = wanted if wanted in names else next(iter(accuracies), None)
    value = None if name is None else metrics[name]
    if name is None or value is None:
        return None
    chance = metrics.get(f"{name}/chance")
    images = metrics.get(f"{prefix}images")
    if chance is None and name == wanted and images is not None and 1 <= images < 1e7:
        chance = chance_of_mrr(int(images))
    return Score(value=value, metric=name.removeprefix(prefix), chance=chance)


def chance_of_mrr(candidates: int) -> float:
    """Compute the mean reciprocal rank of one right candidate among so many in random order.

    `evaluation.metrics.chance.reciprocal_rank_chance` without PyTorch; a test compares them.
    """
    return sum(1 / rank for rank in range(1, candidates + 1)) / candidates
