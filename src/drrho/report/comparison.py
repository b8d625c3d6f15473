"""The results of a comparison as a table and in plain words."""

from collections.abc import Mapping
from typing import Any

from drrho.report.table import markdown_table

NAMES = {"clip": "CLIP", "fastclip": "FastCLIP", "drrho_clip": "DRRho-CLIP"}


def comparison_table(results: Mapping[str, Any]) -> str:
    """One row per method and one for the reference; all scores are shares of 1."""
    methods = results["methods"]
    scores = _score_names(next(iter(methods.values())))
    header = ["", "MRR", "95 % interval", *map(_short, scores), "samples", "seconds"]
    reference = results["reference"]
    rows = [_row("reference", reference, scores)]
    rows += [_row(method_title(method), metrics, scores) for method, metrics in methods.items()]
    return markdown_table(header, rows)


def explain(results: Mapping[str, Any]) -> str:
    """What the numbers of a comparison mean, as paragraphs.

    Computed from the results alone: it says who is ahead only where the paired interval of the
    difference excludes zero.
    """
    setup, reference = results["setup"], results["reference"]
    seen = {f"{method['samples_seen']:,.0f}" for method in results["methods"].values()}
    opening = (
        "MRR is the mean reciprocal rank of the right partner, the mean of image-to-text and "
        f"text-to-image, over {reference['images']:,.0f} held-out images and their distinct "
        "captions; R@k is the share of queries whose partner is among the first k (i>t: image to "
        "text). Columns after it are zero-shot accuracies. All methods started from the same "
        "weights and were given the same batches in the same order "
        f"({' or '.join(sorted(seen))} samples each). The reference was trained on "
        f"{setup['reference_data']}, the targets on {setup['train']}."
    )
    paragraphs = [opening, *map(_in_words, results["differences"])]
    several_seeds = len(setup["seeds"]) > 1
    if several_seeds:
        by_seed = [
            method_title(name) + " " + ", ".join(f"{run['mrr']:.3f}" for run in method["runs"])
            for name, method in results["methods"].items()
        ]
        paragraphs.append(f"MRR by seed: {'; '.join(by_seed)}.")
    paragraphs.append(
        "Intervals: 95 %, bootstrap over the test images, pair by pair for differences. They say "
        "how far another test set could move the numbers, not how far another seed could: "
        + (
            f"they are for the mean over {len(setup['seeds'])} seeds."
            if several_seeds
            else "each method was trained once."
        )
    )
    return "\n\n".join(paragraphs)


def _in_words(difference: Mapping[str, Any]) -> str:
    low, high = difference["interval"]
    method, other = method_title(difference["method"]), method_title(difference["minus"])
    size = f"{abs(difference['mrr']):.3f} (interval of the difference: {low:+.3f} to {high:+.3f})"
    if low > 0:
        return f"{method} is ahead of {other} by {size}."
    if high < 0:
        return f"{method} is behind {other} by {size}."
    return f"{method} and {other} cannot be told apart: they differ by {size}."


def method_title(method: str) -> str:
    """A method's name in print."""
    return NAMES.get(method, method)


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


def _row(name: str, metrics: Mapping[str, Any], scores: list[str]) -> list[str]:
    interval = metrics.get("mrr_interval")
    return [
        name,
        f"{metrics['mrr']:.3f}",
        "" if interval is None else f"{interval[0]:.3f}-{interval[1]:.3f}",
        *(f"{metrics[score]:.3f}" for score in scores),
        f"{metrics['samples_seen']:,.0f}",
        f"{metrics['seconds']:,.0f}",
    ]
