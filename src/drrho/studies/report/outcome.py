"""The result of a page, first thing on it: who scored what, beside guessing."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from drrho.contrastive.objectives.algorithms import method_title
from drrho.evaluation.metrics.chance import reciprocal_rank_chance
from drrho.plotting.palette import places
from drrho.studies.compare.results import Interval, Metrics, Results
from drrho.studies.compare.tables import (
    DIRECTIONS,
    differences_in_words,
    score_column,
    score_table,
    units_of,
)
from drrho.studies.report.content import Group

HEADLINE = 4  # scores that the first line names
MRR = "mean reciprocal rank"


@dataclass(frozen=True, kw_only=True)
class OutcomeRow:
    """A model with its scores.

    Attributes:
        name: name of the method, or of a reference.
        place: place in the palette; None for references, which are grey.
        score: main score.
        interval: 95 % interval of it.
        validation: mean reciprocal rank on the evaluation set of training.
        note: what is missing of it, such as seeds that are not finished.
        cells: other scores, as text.
    """

    name: str
    place: int | None
    score: float | None
    interval: Interval | None = None
    validation: float | None = None
    note: str = ""
    cells: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """Scores of all models on one test or validation set, the best first.

    Attributes:
        title: name of the set.
        metric: name of the main score.
        on: what it was measured on: "test, 1,000 pairs".
        chance: what guessing reaches of it; None where that is not known.
        interval: what intervals are over.
        header: heads of the other scores.
        chance_cells: what guessing reaches of these.
        words: who is ahead of whom, in sentences.
    """

    title: str
    metric: str
    on: str
    rows: tuple[OutcomeRow, ...]
    chance: float | None
    interval: str = ""
    header: tuple[str, ...] = ()
    chance_cells: tuple[str, ...] = ()
    words: tuple[str, ...] = ()

    @property
    def short(self) -> str:
        """The main score, in the head of a column."""
        return "MRR" if self.metric == MRR else self.metric

    @property
    def has_validation(self) -> bool:
        """Whether a model has a score on the evaluation set of training too."""
        return any(row.validation is not None for row in self.rows)

    @property
    def all_cells(self) -> list[tuple[str, ...]]:
        """The other scores, a row for each model, and one for guessing."""
        rows = [(row.name, *row.cells) for row in self.rows]
        return [*rows, ("guessing", *self.chance_cells)] if any(self.chance_cells) else rows

    @property
    def headline(self) -> str:
        """The methods with their scores: "DRRho-CLIP 0.609, CLIP 0.246"."""
        scored = [row for row in self.rows if row.place is not None and row.score is not None]
        shown = ", ".join(f"{row.name} {row.score:.3f}" for row in scored[:HEADLINE])
        more = len(scored) - HEADLINE
        return f"{shown}, and {more} more" if more > 0 else shown

    @property
    def beside(self) -> str:
        """What the headline is a number of, with the references and guessing beside it."""
        references = [row for row in self.rows if row.place is None and row.score is not None]
        metric = f"{MRR} (MRR)" if self.metric == MRR else self.metric
        parts = [f"{metric} on {self.on}"]
        parts += [f"{row.name} {row.score:.3f}" for row in references]
        parts += [] if self.chance is None else [f"guessing {self.chance:.3f}"]
        return "; ".join(parts)

    @property
    def top(self) -> float:
        """End of the axis of the bars."""
        ends = [row.interval[1] if row.interval else row.score or 0.0 for row in self.rows]
        return max([*ends, self.chance or 0.0, 1e-9]) * 1.02


def outcomes_of(
    results: Results, groups: Sequence[Group], chance: Mapping[str, Metrics]
) -> list[Outcome]:
    """List the outcomes of a comparison, one for each test set on which a model has a score."""
    words = differences_in_words(results)
    validation = {group.method: group.validation for group in groups}
    models = [*results.references.values(), *results.methods.values()]
    tests = dict.fromkeys(test for model in models for test in model.tests)
    found = [_outcome(results, test, validation, chance.get(test, {})) for test in tests]
    if len(found) == 1:
        found = [_with_words(found[0], words)]
    else:
        found = [
            _with_words(it, [line for line in words if line.startswith(f"On {it.title}: ")])
            for it in found
        ]
    return found


def _with_words(outcome: Outcome, words: Sequence[str]) -> Outcome:
    return Outcome(**{**vars(outcome), "words": tuple(words)})


def _outcome(
    results: Results, test: str, validation: Mapping[str, float | None], chance: Metrics
) -> Outcome:
    table = score_table(test, results)
    metrics = [*(["mrr"] if table.with_mrr else []), *table.metrics]
    main = metrics[0] if metrics else "mrr"
    others = metrics[1:]
    colours = places(results.methods)
    rows = []
    units, wanted = units_of(results), len(results.setup.seeds)
    named = [(name, None) for name in results.references]
    named += [(name, method) for name, method in results.methods.items()]
    # Behind them may be a row of guessing, which has its own here.
    for (name, method), (scores, interval) in zip(named, table.rows.values(), strict=False):
        if not scores:
            continue
        cells = [f"{scores[other]:.3f}" if other in scores else "" for other in others]
        done = wanted if method is None else len(method.runs)
        rows.append(
            OutcomeRow(
                name=_reference_name(name) if method is None else method_title(name),
                place=None if method is None else colours[name],
                score=scores.get(main),
                interval=interval if main == "mrr" else None,
                validation=None if method is None else validation.get(name),
                note="" if done == wanted else f"{done} of {wanted} {units}",
                cells=tuple(cells),
            )
        )
    pairs = results.setup.test_pairs.get(test)
    known = {**chance, **results.setup.chance.get(test, {})}
    if pairs and "mrr" not in known:
        known["mrr"] = reciprocal_rank_chance(pairs)
    return Outcome(
        title=test,
        metric=MRR if main == "mrr" else score_column(main, DIRECTIONS),
        on=test if pairs is None else f"{test}, {pairs:,} pairs",
        rows=tuple(sorted(rows, key=lambda row: -(row.score or 0.0))),
        chance=known.get(main),
        interval=table.interval,
        header=tuple(score_column(name, DIRECTIONS) for name in others),
        chance_cells=tuple(_chance_cell(known, name, pairs) for name in others),
    )


def _chance_cell(known: Mapping[str, float], name: str, pairs: int | None) -> str:
    chance = known.get(name)
    if chance is None and "/R@" in name and pairs:
        chance = min(1.0, int(name.rpartition("@")[2]) / pairs)
    return "" if chance is None else f"{chance:.3f}"


def _reference_name(name: str) -> str:
    return "the reference" if name == "reference" else f"reference {name.replace('_', ' ')}"


def validation_outcome(groups: Sequence[Group]) -> Outcome | None:
    """The scores of runs on their evaluation set; None where none was evaluated."""
    rows = [
        OutcomeRow(
            name=group.name,
            place=group.place,
            score=score,
            note="" if group.runs[0].folder.results is not None else "not finished",
        )
        for group in groups
        if (score := group.validation) is not None
    ]
    if not rows:
        return None
    sizes = {_evaluated(run.folder.rows) for group in groups for run in group.runs} - {None}
    pairs = sizes.pop() if len(sizes) == 1 else None
    return Outcome(
        title="validation",
        metric=MRR,
        on="validation" if pairs is None else f"validation, {pairs:,} pairs",
        rows=tuple(sorted(rows, key=lambda row: -(row.score or 0.0))),
        chance=reciprocal_rank_chance(pairs) if pairs else None,
    )


def _evaluated(rows: Sequence[Mapping[str, float | None]]) -> int | None:
    """Number of images of the last evaluation."""
    images = (row.get("evaluation/images") for row in reversed(rows))
    return next((int(number) for number in images if number is not None), None)
