"""Tasks of a list, and what a kind of task has to provide."""

import difflib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from drrho.encoding.shared import Encoder, SharedImages
from drrho.evaluation.sets import EvaluationSet


@dataclass(frozen=True, kw_only=True)
class ListedTask:
    """A task of a list.

    Attributes:
        key: name in the list, such as "vtab/eurosat".
        kind: a key of `scores.KINDS`; None chooses "classification" or "retrieval" by the data.
        main_metric: metric that enters the average; None leaves the task out of it.
        size: number of samples, or of cues of associations; None if the list does not say.
        folder: data folder, relative to the folder of all tasks; None tries the usual names.
        suite: name of a group of tasks whose scores are averaged too.
        group_by: name of a division -> column of a sample's .npy that holds its group; for
            classification.
    """

    key: str
    name: str
    kind: str | None = None
    main_metric: str | None = "acc1"
    size: int | None = None
    folder: str | None = None
    suite: str | None = None
    group_by: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Scored:
    """Metrics of a task, the scored images, and the number of samples as a list counts it.

    Attributes:
        chance: metric -> what guessing reaches, where that is known.
    """

    metrics: Mapping[str, float | None]
    images: SharedImages
    size: int
    chance: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class TaskKind:
    """How tasks of one kind are opened and scored.

    Attributes:
        open: makes the evaluation set of a folder.
        score: computes the metrics; a collective.
        metrics: the names of the metrics of a task, with `<n>` for the number of a group.
        in_shards: whether the data are WebDataset shards, whose folders are called wds_NAME.
        takes_groups: whether `group_by` has an effect.
    """

    open: Callable[[Path], EvaluationSet]
    score: Callable[[Encoder, EvaluationSet, ListedTask], Scored]
    metrics: Callable[[ListedTask], Sequence[str]]
    in_shards: bool = True
    takes_groups: bool = False

    def require_metric(self, task: ListedTask, *, where: str) -> None:
        """Raise ValueError if the task's main metric is none of this kind's."""
        names = self.metrics(task)
        patterns = [re.escape(name).replace("<n>", "[0-9]+") for name in names]
        main = task.main_metric
        if main is not None and not any(re.fullmatch(it, main) for it in patterns):
            near = difflib.get_close_matches(main, names, n=1)
            raise ValueError(
                f"{where} has the main metric {main!r}, there are {sorted(names)}"
                + (f"; did you mean {near[0]!r}?" if near else "")
            )
