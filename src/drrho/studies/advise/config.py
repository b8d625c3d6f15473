"""Configuration of `drrho advise`, and the files of its folder."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, get_args

from tyro.conf import Positional, UseAppendAction

from drrho.runtime.checks import require_choice, require_positive
from drrho.runtime.files import expand_paths

Use = Literal["plain", "start", "union", "filter", "steer", "distil", "both"]
USES: tuple[Use, ...] = get_args(Use)  # the simplest first
DecideBy = Literal["auto", "race", "lead"]
References = Annotated[tuple[str, ...], UseAppendAction]


@dataclass(frozen=True, kw_only=True)
class AdviseConfig:
    """Race the uses of references for a contrastive recipe, and say which one to train by.

    Attributes:
        reference: reference to find a use for: a model as `drrho reference precompute` takes it
            (also the folder of a run), ARCHITECTURE@PRETRAINED, or a folder of its stored
            embeddings of the training pairs; may be given several times.
        reference_data: data that a reference was trained on, as `drrho index` takes them, to race
            training on them too; one for each reference, in their order, "none" where there is
            none.
        output: folder of the raced runs, the stored embeddings and what was found.
        budget: optimiser steps of the whole race for each reference, or of the beginning of plain
            training, as a share of the recipe's.
        decide_by: "race" compares the beginnings of all uses; "lead" trains a beginning of plain
            training alone, and decides by how far the reference is ahead of where that is expected
            to end; "auto" races where a use has other data or weights to begin with ("start" or
            "union"), of which the lead says nothing, and where nothing is steered or distilled.
        uses: uses to race beside plain training: "start" from the reference, train on the "union"
            with its data, "filter" by it, "steer" by it, "distil" it, and "both" of the last two.
        strengths: factors of the reference's similarities to steer by.
        kept_fractions: shares of the pairs to keep when filtering.
        distillation_weights: weights of the distillation.
        teacher_temperature: temperature that the references were trained with, for distillation;
            None takes the recipe's.
        dry_run: say what would be raced and what it would cost; write nothing.
        trust: run the programs that the folders of reference models name; needed for runs of
            "python:FILE.py".
    """

    reference: References
    reference_data: References = ()
    output: str = "runs/advice"
    budget: float = 0.25
    decide_by: DecideBy = "auto"
    uses: tuple[Use, ...] = USES[1:]
    strengths: tuple[float, ...] = (0.2, 0.5, 1.0)
    kept_fractions: tuple[float, ...] = (0.75, 0.5)
    distillation_weights: tuple[float, ...] = (0.3, 1.0)
    teacher_temperature: float | None = None
    dry_run: bool = False
    trust: bool = False

    def __post_init__(self) -> None:
        expand_paths(self, "reference", "reference_data", outputs=("output",))
        if not self.reference:
            raise ValueError("name at least one --reference")
        if len(set(self.reference)) < len(self.reference):
            raise ValueError(f"each reference once, got {self.reference}")
        if len(self.reference_data) not in (0, len(self.reference)):
            raise ValueError(
                f"reference_data must be one for each of {len(self.reference)} references, 'none' "
                f"where there is none, got {self.reference_data}"
            )
        require_choice("decide_by", self.decide_by, DecideBy)
        require_positive(budget=self.budget, teacher_temperature=self.teacher_temperature)
        for name in ("strengths", "kept_fractions", "distillation_weights"):
            values = getattr(self, name)
            if not values or len(set(values)) < len(values):
                raise ValueError(f"{name} must be different numbers, one or more, got {values}")
            require_positive(**{f"{name}[{k}]": value for k, value in enumerate(values)})
        if not set(self.uses) & set(USES[1:]):
            raise ValueError(f"uses must name one or more of {USES[1:]}, got {self.uses}")
        if max(self.kept_fractions) >= 1:
            raise ValueError(
                f"kept_fractions must be below 1, which would keep all, got {self.kept_fractions}"
            )


@dataclass(frozen=True, kw_only=True)
class AdviseCommand(AdviseConfig):
    """Race the uses of references for a contrastive recipe, and say which one to train by.

    Attributes:
        recipe: Python file that defines `recipe = Recipe(...)`, the training that is planned.
    """

    recipe: Positional[str]

    def __post_init__(self) -> None:
        super().__post_init__()
        expand_paths(self, "recipe", outputs=())


@dataclass(frozen=True)
class AdviseFiles:
    """Names of what `drrho advise` writes into its folder."""

    folder: Path

    def __getattr__(self, name: str) -> Path:
        """Return the place of a file or folder; AttributeError if there is none of that name."""
        if name not in FILES:
            raise AttributeError(name)
        return self.folder / FILES[name]

    def run(self, arm: str) -> Path:
        """Return the folder of an arm's run, where `drrho report` looks for runs."""
        return self.folder / arm

    def scores(self, arm: str, step: int) -> Path:
        """Return the file of an arm's reciprocal ranks after some steps."""
        return self.scores_of_all / arm / f"step-{step:08d}.json"


FILES = {
    "asked": "asked.json",
    "train": "train.json",
    "held_out": "held_out.json",
    "references": "references",
    "unions": "unions",
    "scores_of_all": "scores",
    "recipe": "recipe.py",
    "results": "advice.json",
    "table": "advice.md",
    "picture": "advice.png",
}
