"""The results of a comparison as tables and in plain words."""

from collections.abc import Mapping
from typing import Any

from drrho.plotting.table import markdown_table, method_title

# With more methods than this, differences are told of the first method alone.
MOST_IN_PAIRS = 4


def comparison_table(results: Mapping[str, Any]) -> str:
    """For each test set a row per reference and method; all scores are shares of 1."""
    tests = list(results["setup"]["test"])
    tables = [_table_of(test, results) for test in tests]
    if len(tests) == 1:
        return tables[0]
    return "\n\n".join(f"**{test}**\n\n{table}" for test, table in zip(tests, tables, strict=True))


def explain(results: Mapping[str, Any]) -> str:
    """What the numbers of a comparison mean, as paragraphs and tables.

    Computed from the results alone: it says who is ahead only where the paired interval of the
    difference excludes zero.
    """
    paragraphs = [_opening(results), _costs_table(results), _differences_text(results)]
    paragraphs += [_by_seed(results), _gap_text(results), _choices(results)]
    paragraphs += [_absent(results), _intervals_text(results)]
    return "\n\n".join(paragraph for paragraph in paragraphs if paragraph)


def shown_differences(results: Mapping[str, Any], test: str) -> list[Mapping[str, Any]]:
    """Those of a test set to be shown: of all pairs, or from the first method if they are many."""
    rows = [row for row in results["differences"] if row["test"] == test]
    if len(results["methods"]) <= MOST_IN_PAIRS:
        return rows
    first = next(iter(results["methods"]))
    return [row for row in rows if row["minus"] == first]


def _table_of(test: str, results: Mapping[str, Any]) -> str:
    rows = {name: found["tests"][test] for name, found in results["references"].items()}
    for name, method in results["methods"].items():
        seeds = len(method["runs"])
        wanted = len(results["setup"]["seeds"])
        title = method_title(name) + ("" if seeds == wanted else f" ({seeds} of {wanted} seeds)")
        rows[title] = method["tests"].get(test, {})
    present = [metrics for metrics in rows.values() if metrics]
    scores = _score_names(present[0]) if present else []
    with_mrr = not present or any("mrr" in metrics for metrics in present)
    header = ["", *(["MRR", "95 % interval"] if with_mrr else []), *map(_short, scores)]
    cells = [
        [name, *(_mrr(found) if with_mrr else []), *(_share(found.get(it)) for it in scores)]
        for name, found in rows.items()
    ]
    return markdown_table(header, cells)


def _opening(results: Mapping[str, Any]) -> str:
    setup = results["setup"]
    data = sorted(set(setup["train"].values()))
    pairs = ", ".join(f"{count:,} ({name})" for name, count in setup["test_pairs"].items())
    trained = [
        f"{name} on {found['data']}"
        for name, found in results["references"].items()
        if found["data"] is not None
    ]
    references = f" References were trained: {'; '.join(trained)}." if trained else ""
    return (
        "MRR is the mean reciprocal rank of the right partner, the mean of image-to-text and "
        f"text-to-image, over the held-out images and their distinct captions; pairs: {pairs}. "
        "R@k is the share of queries whose partner is among the first k (i>t: image to text). "
        "Columns after it are zero-shot accuracies. Runs of one seed started from the same weights "
        "and were given the same batches in the same order, where model and loading are the same. "
        f"The methods were trained on {', '.join(data)}.{references}"
    )


def _costs_table(results: Mapping[str, Any]) -> str:
    header = ["cost of a run", "trained on", "forward only", "GFLOP a sample", "seconds"]
    header += ["reference: passes", "seconds of them", "its training, samples", "seconds of it"]
    rows = []
    for name, method in results["methods"].items():
        cost = method["cost"]
        if not cost:
            continue
        gflop = method["gflop"]
        rows.append(
            [
                method_title(name),
                f"{cost['samples_seen']:,.0f}",
                f"{cost['forward_only']:,.0f}",
                "" if gflop is None else f"{sum(gflop.values()):.4f}",
                f"{cost['seconds']:,.0f}",
                *_reference_cells(method["reference_cost"]),
            ]
        )
    return markdown_table(header, rows) if rows else ""


def _reference_cells(costs: Mapping[str, Any]) -> list[str]:
    """Passes, seconds, and samples and seconds of training, added over the references."""

    def total(part: str, name: str) -> str:
        found = [cost[part][name] for cost in costs.values() if cost[part] and name in cost[part]]
        return f"{sum(found):,.0f}" if found else ""

    return [
        total("precompute", "samples"),
        total("precompute", "seconds"),
        total("training", "samples_seen"),
        total("training", "seconds"),
    ]


def _differences_text(results: Mapping[str, Any]) -> str:
    tests = list(results["setup"]["test"])
    lines = []
    for test in tests:
        where = f"On {test}: " if len(tests) > 1 else ""
        lines += [where + _in_words(row) for row in shown_differences(results, test)]
    return "\n\n".join(lines)


def _in_words(difference: Mapping[str, Any]) -> str:
    low, high = difference["interval"]
    method, other = method_title(difference["method"]), method_title(difference["minus"])
    seeds = len(difference["seeds"])
    won = f"; higher in {difference['won']} of {seeds} seeds" if seeds > 1 else ""
    interval = f"interval of the difference: {low:+.3f} to {high:+.3f}{won}"
    size = f"{abs(difference['mrr']):.3f} ({interval})"
    if low > 0:
        return f"{method} is ahead of {other} by {size}."
    if high < 0:
        return f"{method} is behind {other} by {size}."
    return f"{method} and {other} cannot be told apart: they differ by {size}."


def _by_seed(results: Mapping[str, Any]) -> str:
    """MRR of every run or, on a set without captions, its zero-shot accuracies."""
    if len(results["setup"]["seeds"]) == 1:
        return ""
    methods = {name: found["runs"] for name, found in results["methods"].items() if found["runs"]}
    sentences = []
    for test in results["setup"]["test"]:
        measured = [run["tests"][test] for runs in methods.values() for run in runs]
        if not measured:
            continue
        where = "" if len(results["setup"]["test"]) == 1 else f" on {test}"
        for score in ["mrr"] if "mrr" in measured[0] else _score_names(measured[0]):
            scores = [
                f"{method_title(name)} "
                + ", ".join(f"{run['tests'][test][score]:.3f}" for run in runs)
                for name, runs in methods.items()
            ]
            title = "MRR" if score == "mrr" else f"Accuracy ({_short(score)})"
            sentences.append(f"{title} by seed{where}: {'; '.join(scores)}.")
    return "\n\n".join(sentences)


def _gap_text(results: Mapping[str, Any]) -> str:
    if not results["gap"]:
        return ""
    gap = results["setup"]["gap"]
    rows = [
        [
            method_title(row["method"]),
            row["test"],
            "no gap" if row["recovered"] is None else f"{row['recovered']:.2f}",
            "" if row["interval"] is None else "{:.2f} to {:.2f}".format(*row["interval"]),
        ]
        for row in results["gap"]
    ]
    table = markdown_table(["gap recovered", "test set", "share", "95 % interval"], rows)
    return (
        f"The share of the gap between {gap['weak']} (0) and {method_title(gap['ceiling'])} (1) "
        f"that each method recovers, in MRR:\n\n{table}"
    )


def _choices(results: Mapping[str, Any]) -> str:
    tuning = results["setup"]["tuning"]
    if tuning is None:
        return ""
    rows = []
    for name, method in results["methods"].items():
        choice = method["choice"]
        for place, changes in enumerate(choice["settings"]):
            scores = choice["scores"]
            value = None if scores is None else scores[place]
            rows.append(
                [
                    method_title(name),
                    "; ".join(map(_change, changes)) or "as written",
                    "" if value is None else f"{value:.4f}",
                    "chosen" if place == choice["chosen"] else "",
                ]
            )
    table = markdown_table(["settings", "changed", tuning["metric"], ""], rows)
    return (
        "Of each method's settings the one with the highest "
        f"{tuning['metric']} of a run with seed {tuning['seed']} was taken:\n\n{table}"
    )


def _change(line: str) -> str:
    """`a.b: 1 before, 2 now` -> `b 2`."""
    name, _, values = line.partition(": ")
    return f"{name.rpartition('.')[2]} {values.rpartition(' before, ')[2].removesuffix(' now')}"


def _absent(results: Mapping[str, Any]) -> str:
    """Runs that failed, with their reason, and those that are not there yet."""
    sentences = [
        f"{method_title(name)}, seed {seed}, failed: {reason}"
        for name, method in results["methods"].items()
        for seed, reason in method["failed"].items()
    ]
    missing = [
        f"{method_title(name)} seed {', '.join(map(str, method['missing']))}"
        for name, method in results["methods"].items()
        if method["missing"]
    ]
    if missing:
        sentences.append(f"Not finished: {'; '.join(missing)}.")
    return "\n\n".join(sentences)


def _intervals_text(results: Mapping[str, Any]) -> str:
    seeds = len(results["setup"]["seeds"])
    if seeds == 1:
        return (
            "Intervals: 95 %, bootstrap over the test images, pair by pair for differences. They "
            "say how far another test set could move the numbers, not how far another seed could: "
            "each method was trained once."
        )
    return (
        "Intervals: 95 %, bootstrap over the seeds and, independently, the test images; for "
        f"differences over pairs of runs of one seed, image by image. With {seeds} seeds they are "
        "somewhat too narrow in what they say of other seeds: the draws have "
        f"{seeds - 1}/{seeds} of the variance of the mean over seeds."
    )


def _score_names(metrics: Mapping[str, Any]) -> list[str]:
    recalls = [name for name in metrics if "/R@" in name]
    tasks = [name for name in metrics if name.startswith("zero_shot/") and name.endswith("/top1")]
    return recalls + tasks


def _short(name: str) -> str:
    """As a column's head: `image_to_text/R@5` -> `i>t R@5`; `zero_shot/shape/top1` -> `shape`."""
    direction, _, rest = name.partition("/")
    match direction:
        case "image_to_text":
            return f"i>t {rest}"
        case "text_to_image":
            return f"t>i {rest}"
        case _:
            return rest.removesuffix("/top1")


def _mrr(metrics: Mapping[str, Any]) -> list[str]:
    interval = metrics.get("mrr_interval")
    return [
        _share(metrics.get("mrr")),
        "" if interval is None else f"{interval[0]:.3f}-{interval[1]:.3f}",
    ]


def _share(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"
