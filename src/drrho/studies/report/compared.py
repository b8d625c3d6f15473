"""The results of a comparison as tables for each test set, whatever else the file holds."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from drrho.plotting.table import method_title


@dataclass(frozen=True, kw_only=True)
class ComparedTable:
    """The scores of all models on a test set, in print."""

    title: str
    header: list[str]
    rows: list[list[str]]


def compared_tables(results: Mapping[str, Any]) -> list[ComparedTable]:
    """A table for each test set: of a file with one set, or with several under `tests`.

    Methods and references without a score on a set are left out of its table; so is what this
    program does not know.
    """
    references = results.get("references") or {"reference": results.get("reference") or {}}
    models = [(_reference_title(name), found) for name, found in references.items()]
    models += [(method_title(name), found) for name, found in results["methods"].items()]
    scores = {title: _by_test(found) for title, found in models}
    tests = dict.fromkeys(test for of_model in scores.values() for test in of_model)
    return [
        _table(test, {title: s[test] for title, s in scores.items() if test in s}) for test in tests
    ]


def differences_in_words(results: Mapping[str, Any]) -> list[str]:
    """A sentence for each paired difference: who is ahead, where its interval excludes zero."""
    sentences = []
    for row in results.get("differences", ()):
        interval, size = row.get("interval"), row.get("mrr", row.get("difference"))
        if interval is None or size is None:
            continue
        method, other = method_title(row["method"]), method_title(row["minus"])
        low, high = interval
        verdict = (
            "is ahead of" if low > 0 else "is behind" if high < 0 else "is not told apart from"
        )
        where = f" on {row['test']}" if row.get("test") else ""
        sentences.append(
            f"{method} {verdict} {other}{where}: {size:+.3f} in mean reciprocal rank "
            f"(95 % interval {low:+.3f} to {high:+.3f})."
        )
    return sentences


def _reference_title(name: str) -> str:
    return name if name.startswith("reference") else f"reference {name}"


def _by_test(found: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    tests = found.get("tests")
    if tests is None:
        tests = {"Test set": found}
    return {name: scores for name, scores in tests.items() if isinstance(scores.get("mrr"), float)}


def _table(test: str, models: Mapping[str, Mapping[str, Any]]) -> ComparedTable:
    names = dict.fromkeys(
        name
        for scores in models.values()
        for name in scores
        if "/R@" in name or (name.startswith("zero_shot/") and name.endswith("/top1"))
    )
    rows = []
    for title, scores in models.items():
        interval = scores.get("mrr_interval")
        rows.append(
            [
                title,
                f"{scores['mrr']:.3f}",
                "" if interval is None else "{:.3f} to {:.3f}".format(*interval),
                *(f"{scores[name]:.3f}" if name in scores else "" for name in names),
            ]
        )
    return ComparedTable(
        title=test, header=["", "MRR", "95 % interval", *map(_short, names)], rows=rows
    )


def _short(name: str) -> str:
    direction, _, rest = name.partition("/")
    match direction:
        case "image_to_text":
            return f"image to text {rest}"
        case "text_to_image":
            return f"text to image {rest}"
        case _:
            return rest.removesuffix("/top1")
