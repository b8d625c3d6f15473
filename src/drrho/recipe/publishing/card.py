"""The card of an exported model: what it is, what it was trained on, and what it scores."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from drrho import __version__
from drrho.contrastive.objectives.algorithms import method_title
from drrho.plotting.table import CHANCE, markdown_table
from drrho.recipe.document import RunResults
from drrho.recipe.recipe import Recipe
from drrho.runtime.errors import without_secrets

CARD_FILE = "README.md"
MARK = "<!-- written by drrho export -->"  # of a card that the next export may replace
EVALUATION = "evaluation/"
Program = Literal["open-clip", "hugging-face"]
LIBRARIES = {"open-clip": "open_clip", "hugging-face": "transformers"}
REGISTER = "import drrho.models.small\n\ndrrho.models.small.register()  # its architecture\n"
LOADS = {
    "open-clip": "import open_clip\n\nmodel, _, preprocess = open_clip.create_model_and_transforms("
    '"{place}")\ntokenizer = open_clip.get_tokenizer("{place}")',
    "hugging-face": "from transformers import AutoModel, AutoProcessor\n\n"
    'model = AutoModel.from_pretrained("{place}")\n'
    'processor = AutoProcessor.from_pretrained("{place}")',
}


def write_card(
    folder: Path,
    recipe: Recipe,
    results: RunResults | None,
    *,
    program: Program,
    place: str,
) -> None:
    """Write `README.md` beside an exported model; a card that somebody has written stays.

    Args:
        results: results of the run; None for a model whose scores they are not.
        program: whose form the model has.
        place: name that the model is loaded by.
    """
    path = folder / CARD_FILE
    if path.exists() and MARK not in path.read_text(encoding="utf-8", errors="replace"):
        return
    path.write_text(card_of(recipe, results, program=program, place=place), encoding="utf-8")


def card_of(recipe: Recipe, results: RunResults | None, *, program: Program, place: str) -> str:
    """Say in Markdown what a model is. Of places on a disk only the last part is told."""
    title = method_title(recipe.objective.method)
    steered = " under the guidance of a reference model" if recipe.reference else ""
    parts = [
        "---",
        f"library_name: {LIBRARIES[program]}",
        "pipeline_tag: zero-shot-image-classification",
        "tags: [clip, drrho]",
        "---",
        MARK,
        f"# {title}, trained with drrho",
        "",
        f"Two towers, of images and of texts, trained by {title}{steered}; drrho {__version__}.",
        "",
        "```python",
        (REGISTER if recipe.model.name == "small" else "") + LOADS[program].format(place=place),
        "```",
        "",
        "## Training",
        "",
        markdown_table(["", "value"], _facts(recipe, results)),
    ]
    scores = _scores(results)
    if scores:
        parts += ["", "## Scores on held-out data", ""]
        parts.append(markdown_table(["metric", "value", "guessing"], scores))
    parts += ["", "One run; nothing here says how much another seed would differ.", ""]
    return "\n".join(parts)


def _facts(recipe: Recipe, results: RunResults | None) -> list[list[str]]:
    contents = {} if results is None else results.contents
    hashed = str(contents.get("data_sha256", ""))
    data = _name(recipe.data) + (f" (contents {hashed[:12]})" if hashed else "")
    references = [recipe.reference] if isinstance(recipe.reference, str) else recipe.reference or ()
    rows = [
        ["data", data],
        ["reference", ", ".join(map(_name, references)) or "none"],
        ["objective", recipe.objective.method],
        ["model", _name(recipe.model.name)],
        ["batch size", f"{recipe.trained_batch_size:,}"],
        ["steps", f"{recipe.training.steps:,}" if recipe.training.steps else "see the recipe"],
        ["learning rate", f"{recipe.training.optimizer.learning_rate:g}"],
        ["precision", recipe.training.precision],
        ["seed", str(recipe.seed)],
    ]
    if results is not None:
        rows.append(["pairs seen", f"{results.samples_seen:,}"])
        rows.append(["seconds", f"{results.seconds:,.0f}"])
        versions = [f"{name} {version}" for name, version in results.versions.items() if version]
        rows.append(["versions", ", ".join(versions)])
    rows.append(["command", f"drrho train RECIPE.py --output {_name(recipe.output)}"])
    return [[name, without_secrets(value)] for name, value in rows]


def _scores(results: RunResults | None) -> Sequence[list[str]]:
    metrics = {} if results is None else results.metrics
    found = {name: value for name, value in metrics.items() if name.startswith(EVALUATION)}
    return [
        [
            name.removeprefix(EVALUATION),
            f"{value:,.0f}" if name.endswith(("/images", "/skipped")) else f"{value:.4f}",
            f"{found[name + CHANCE]:.4f}" if name + CHANCE in found else "",
        ]
        for name, value in found.items()
        if not name.endswith(CHANCE)
    ]


def _name(place: str) -> str:
    """The last part of a place: folders of one's own machine are nobody else's business."""
    plain = without_secrets(place)
    kind, colon, path = plain.rpartition(":") if "://" not in plain else ("", "", plain)
    last = path.rstrip("/").rpartition("/")[2]
    parent = path.rstrip("/").rpartition("/")[0].rpartition("/")[2]
    return f"{kind}{colon}{parent + '/' if last == 'manifest.json' and parent else ''}{last}"
