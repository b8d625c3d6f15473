"""The results of a comparison as tables and in plain words."""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass

from drrho.contrastive.objectives.algorithms import method_title
from drrho.plotting.table import markdown_table
from drrho.studies.compare.results import (
    Choice,
    Cost,
    Difference,
    Interval,
    Metrics,
    ReferenceCost,
    Results,
)
from drrho.studies.compare.statistics import mrr_interval, shown_differences, with_tests

SHORT_DIRECTIONS = {"image_to_text": "i>t", "text_to_image": "t>i"}
DIRECTIONS = {"image_to_text": "image to text", "text_to_image": "text to image"}


@dataclass(frozen=True, kw_only=True)
class ScoreTable:
    """The scores of references, methods and guessing on one test set.

    Attributes:
        rows: title -> metrics, and the 95 % interval of the mean reciprocal rank.
        metrics: names of the other columns.
        with_mrr: whether the set has captions.
        interval: head of the column of intervals, which says what they are over.
    """

    rows: Mapping[str, tuple[Metrics, Interval | None]]
    metrics: tuple[str, ...]
    with_mrr: bool
    interval: str = "95 % interval"

    def header(self, directions: Mapping[str, str]) -> list[str]:
        """The columns' heads, with these words for the directions of retrieval."""
        mrr = ["MRR", self.interval] if self.with_mrr else []
        return ["", *mrr, *(score_column(name, directions) for name in self.metrics)]

    def cells(self, to: str) -> list[list[str]]:
        """All rows in print, with this between the ends of an interval."""
        return [
            [
                title,
                *([_score(row, "mrr"), _range(interval, to)] if self.with_mrr else []),
                *(_score(row, name) for name in self.metrics),
            ]
            for title, (row, interval) in self.rows.items()
        ]


def score_table(test: str, results: Results) -> ScoreTable:
    """Collects the scores on a test set, a row per reference and method, then guessing's."""
    rows: dict[str, tuple[Metrics, Interval | None]] = {
        name: (found.tests.get(test, {}), None) for name, found in results.references.items()
    }
    wanted = len(results.setup.seeds)
    for name, method in results.methods.items():
        seeds, units = len(method.runs), units_of(results)
        title = method_title(name) + ("" if seeds == wanted else f" ({seeds} of {wanted} {units})")
        rows[title] = (method.tests.get(test, {}), mrr_interval(results, method, test))
    present = [metrics for metrics, _ in rows.values() if metrics]
    if test in results.setup.chance:
        rows["guessing"] = (results.setup.chance[test], None)
    return ScoreTable(
        rows=rows,
        metrics=tuple(_score_names(present[0])) if present else (),
        with_mrr=not present or any("mrr" in metrics for metrics in present),
        interval=interval_name(results),
    )


def comparison_table(results: Results) -> str:
    """Markdown tables of the scores on each test set; all scores are fractions."""
    tables = {}
    for test in results.setup.test:
        table = score_table(test, results)
        tables[test] = markdown_table(table.header(SHORT_DIRECTIONS), table.cells("-"))
    if len(tables) == 1:
        return next(iter(tables.values()))
    return "\n\n".join(f"**{test}**\n\n{table}" for test, table in tables.items())


def explain(results: Results) -> str:
    """Explains the numbers of a comparison in paragraphs and tables.

    Computed from the results alone: it says who is ahead only where the difference is told from
    zero, after Holm's correction where there are several seeds.
    """
    results = with_tests(results)
    paragraphs = [_opening(results), _costs_table(results), *differences_in_words(results)]
    paragraphs += [_by_seed(results), _gap_text(results), _choices(results)]
    paragraphs += [_absent(results), _intervals_text(results)]
    return "\n\n".join(paragraph for paragraph in paragraphs if paragraph)


def differences_in_words(results: Results) -> list[str]:
    """A sentence for each difference, from methods and from references: who is ahead, where it is
    told from zero.
    """
    results = with_tests(results)
    several = len(results.setup.test) > 1
    return [
        (f"On {test}: " if several else "") + _in_words(row, results)
        for test in results.setup.test
        for row in _primaries_first(results, test)
    ]


def interval_name(results: Results) -> str:
    """The intervals that tables and plots show, in a few words."""
    if not results.setup.seeds:
        return "95 % interval"  # a file of the first layout, which does not say
    return f"95 % over {'test images' if len(results.setup.seeds) == 1 else units_of(results)}"


def units_of(results: Results) -> str:
    """What is repeated: "seeds" or "replicates"."""
    return "replicates" if results.setup.replicated else "seeds"


def _primaries_first(results: Results, test: str) -> list[Difference]:
    rows = [*shown_differences(results, test)]
    rows += [row for row in results.from_references if row.test == test]
    primaries = {frozenset(pair) for pair in results.setup.primaries}
    return sorted(rows, key=lambda row: frozenset((row.method, row.minus)) not in primaries)


def _opening(results: Results) -> str:
    setup = results.setup
    data = sorted(set(setup.train.values()))
    pairs = ", ".join(f"{count:,} ({name})" for name, count in setup.test_pairs.items())
    guessing = "Guessing is the mean over all orders of the candidates. " if setup.chance else ""
    trained = [
        f"{name} on {found.data}"
        for name, found in results.references.items()
        if found.data is not None
    ]
    references = f" References were trained: {'; '.join(trained)}." if trained else ""
    return (
        "MRR is the mean reciprocal rank of the right partner, the mean of image-to-text and "
        f"text-to-image, over the held-out images and their distinct captions; pairs: {pairs}. "
        "R@k is the share of queries whose partner is among the first k (i>t: image to text). "
        f"{guessing}"
        "Columns after it are zero-shot accuracies. Runs of one seed started from the same weights "
        "and were given the same batches in the same order, where model and loading are the same. "
        f"The methods were trained on {', '.join(data)}.{references}"
    )


def _costs_table(results: Results) -> str:
    header = ["cost of a run", "trained on", "forward only", "GFLOP a sample", "seconds"]
    header += ["reference: passes", "seconds of them", "its training, samples", "seconds of it"]
    rows = [
        [
            method_title(name),
            f"{method.cost.samples_seen:,.0f}",
            f"{method.cost.forward_only:,.0f}",
            "" if method.gflop is None else f"{method.gflop.total:.4f}",
            f"{method.cost.seconds:,.0f}",
            *_reference_cells(method.reference_cost, method.cost),
        ]
        for name, method in results.methods.items()
        if method.cost is not None
    ]
    return markdown_table(header, rows) if rows else ""


def _reference_cells(costs: Mapping[str, ReferenceCost], own: Cost) -> list[str]:
    """Passes, seconds, and samples and seconds of training, added over the references.

    The passes and seconds of live references are those of a run.
    """
    precompute = [cost.precompute for cost in costs.values() if cost.precompute is not None]
    training = [cost.training for cost in costs.values() if cost.training is not None]
    columns = (
        [cost.samples or 0 for cost in precompute],
        [cost.seconds for cost in precompute],
        [cost.samples_seen for cost in training],
        [cost.seconds for cost in training],
    )
    cells = [f"{sum(column):,.0f}" if column else "" for column in columns]
    if own.live_pairs is not None:
        live = (f"{own.live_pairs:,.0f} in a run", f"{own.live_seconds or 0.0:,.1f} in a run")
        cells[:2] = (" + ".join(filter(None, both)) for both in zip(cells[:2], live, strict=True))
    return cells


def _in_words(row: Difference, results: Results) -> str:
    method, other = (
        _reference_title(name) if name in results.references else method_title(name)
        for name in (row.method, row.minus)
    )
    if row.shown_interval is None:
        return f"{method} less {other}: {row.mrr:+.3f} (one {units_of(results)[:-1]}, no interval)."
    certainty = _with_what_certainty(row, row.shown_interval, results)
    if results.setup.replicated and len(row.seeds) < len(results.setup.seeds):
        return f"No verdict yet, {method} less {other}: {row.mrr:+.3f} ({certainty})."
    size = f"{abs(row.mrr):.3f} ({certainty})"
    side = "ahead of" if row.mrr > 0 else "behind"
    if row.is_clear:
        return f"{method} is {side} {other} by {size}."
    if row.excludes_zero:
        return f"{method} seems {side} {other}, but not after Holm's correction: by {size}."
    return f"{method} and {other} cannot be told apart: they differ by {size}."


def _reference_title(name: str) -> str:
    return "the reference" if name == "reference" else f"the reference {name}"


def _with_what_certainty(row: Difference, ends: Interval, results: Results) -> str:
    seeds, units = len(row.seeds), units_of(results)
    notes = [f"interval of the difference: {ends[0]:+.3f} to {ends[1]:+.3f}"]
    if row.paired is not None:
        p = f"p = {row.paired.p:.2g}"
        notes.append(
            f"{p}, not adjusted: no primary"
            if row.paired.holm is None
            else f"{p}, adjusted {row.paired.holm:.2g}"
        )
    if seeds > 1:
        notes.append(f"higher in {row.won} of {seeds} {units}")
    return "; ".join(notes)


def _by_seed(results: Results) -> str:
    """MRR of every run or, on a set without captions, its zero-shot accuracies."""
    if len(results.setup.seeds) == 1:
        return ""
    methods = {name: found.runs for name, found in results.methods.items() if found.runs}
    sentences = []
    for test in results.setup.test:
        measured = [run.tests[test] for runs in methods.values() for run in runs]
        if not measured:
            continue
        where = "" if len(results.setup.test) == 1 else f" on {test}"
        for score in ["mrr"] if "mrr" in measured[0] else _score_names(measured[0]):
            scores = [
                f"{method_title(name)} "
                + ", ".join(f"{run.tests[test][score]:.3f}" for run in runs)
                for name, runs in methods.items()
            ]
            title = (
                "MRR" if score == "mrr" else f"Accuracy ({score_column(score, SHORT_DIRECTIONS)})"
            )
            sentences.append(f"{title} by {units_of(results)[:-1]}{where}: {'; '.join(scores)}.")
    return "\n\n".join(sentences)


def _gap_text(results: Results) -> str:
    gap = results.setup.gap
    if gap is None or not results.gap:
        return ""
    rows = [
        [
            method_title(row.method),
            row.test,
            "no gap" if row.recovered is None else f"{row.recovered:.2f}",
            _range(row.interval, " to ", digits=2),
        ]
        for row in results.gap
    ]
    table = markdown_table(["gap recovered", "test set", "share", "95 % interval"], rows)
    return (
        f"The share of the gap between {gap.weak} (0) and {method_title(gap.ceiling)} (1) "
        f"that each method recovers, in MRR:\n\n{table}"
    )


def _choices(results: Results) -> str:
    tuning = results.setup.tuning
    if tuning is None:
        return ""
    rows = []
    for name, choice in ((name, method.choice) for name, method in results.methods.items()):
        if choice is None or (choice.scores is None and results.setup.replicated):
            continue
        scores = choice.scores or (None,) * len(choice.settings)
        for place, (changes, score) in enumerate(zip(choice.settings, scores, strict=True)):
            rows.append(
                [
                    method_title(name),
                    "; ".join(map(_change, changes)) or "as written",
                    "" if score is None else f"{score:.4f}",
                    _chosen(choice, place),
                ]
            )
    table = markdown_table(["settings", "changed", tuning.metric, ""], rows)
    kind = "on replicate" if results.setup.replicated else "with seed"
    highest = f"highest {tuning.metric} of a run {kind} {tuning.seed}"
    if tuning.runs > 1:
        numbers = f"{kind}s {tuning.seeds[0]} to {tuning.seeds[-1]}"
        highest = f"highest mean {tuning.metric} of {tuning.runs} runs {numbers}"
    return f"Of each method's settings the one with the {highest} was taken:\n\n{table}"


def _chosen(choice: Choice, place: int) -> str:
    """Marks the chosen setting, and where it has the smallest or largest value of a field."""
    if place != choice.chosen:
        return ""
    edges = edges_of(choice)
    return f"chosen, at the edge of {', '.join(edges)}" if edges else "chosen"


def edges_of(choice: Choice) -> list[str]:
    """Names the numbers whose chosen value is the smallest or the largest that was tried."""
    values: dict[str, dict[int, float]] = {}
    firsts: dict[str, float] = {}
    for place, lines in enumerate(choice.settings):
        for line in lines:
            name, _, change = line.partition(": ")
            before, _, now = change.removesuffix(" now").rpartition(" before, ")
            with suppress(ValueError):  # it is no number
                firsts[name] = float(before)
                values.setdefault(name, {})[place] = float(now)
    edges = []
    for name, changed in values.items():
        tried = [changed.get(place, firsts[name]) for place in range(len(choice.settings))]
        if choice.chosen is not None and tried[choice.chosen] in (min(tried), max(tried)):
            edges.append(name.rpartition(".")[2])
    return edges


def _change(line: str) -> str:
    """`a.b: 1 before, 2 now` -> `b 2`."""
    name, _, values = line.partition(": ")
    return f"{name.rpartition('.')[2]} {values.rpartition(' before, ')[2].removesuffix(' now')}"


def _absent(results: Results) -> str:
    """Runs that failed, with their reason, and those that are not there yet."""
    sentences = [
        f"{method_title(name)}, {units_of(results)[:-1]} {seed}, failed: {reason}"
        for name, method in results.methods.items()
        for seed, reason in method.failed.items()
    ]
    missing = [
        f"{method_title(name)} {units_of(results)[:-1]} {', '.join(map(str, method.missing))}"
        for name, method in results.methods.items()
        if method.missing
    ]
    if missing:
        sentences.append(f"Not finished: {'; '.join(missing)}.")
    return "\n\n".join(sentences)


def _intervals_text(results: Results) -> str:
    seeds, units = len(results.setup.seeds), units_of(results)
    if seeds == 1:
        return (
            "Intervals: 95 %, bootstrap over the test images, pair by pair for differences. They "
            "say how far another test set could move the numbers, not how far another seed could: "
            "each method was trained once."
        )
    threads = results.setup.threads
    counted = (
        f" Threads: {threads}; another number moves scores by up to 0.01 in a run."
        if threads
        else ""
    )
    what = (
        "each replicate has its own data, references and targets"
        if results.setup.replicated
        else "data, test images and references are the same for all seeds, so that nothing is said "
        "of others"
    )
    family = (
        f"the {len(results.setup.primaries)} primaries, named beforehand"
        if results.setup.primaries
        else "all differences that are listed"
    )
    gap = " Shares of the gap: bootstrap over seeds and test images." if results.gap else ""
    return (
        f"Intervals and p: Student's t over the {units} (a mean), paired by {units[:-1]} "
        f"(a difference); {what}. p is two-sided; adjusted by Holm's rule for {family}, and "
        f'"ahead" and "behind" mean that this is below 0.05.{gap}{counted}'
    )


def _score_names(metrics: Metrics) -> list[str]:
    recalls = [name for name in metrics if "/R@" in name]
    tasks = [name for name in metrics if name.startswith("zero_shot/") and name.endswith("/top1")]
    return recalls + tasks


def score_column(name: str, directions: Mapping[str, str]) -> str:
    """`image_to_text/R@5` -> `i>t R@5`; `zero_shot/shape/top1` -> `shape`."""
    direction, _, rest = name.partition("/")
    if direction in directions:
        return f"{directions[direction]} {rest}"
    return rest.removesuffix("/top1")


def _score(metrics: Metrics, name: str) -> str:
    return f"{metrics[name]:.3f}" if name in metrics else ""


def _range(interval: Interval | None, to: str, *, digits: int = 3) -> str:
    return "" if interval is None else to.join(f"{end:.{digits}f}" for end in interval)
