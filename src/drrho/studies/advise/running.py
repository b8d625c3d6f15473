"""An arm brought to a step of its schedule, and its scores there, each kept on disk."""

import hashlib
import json
import time
import warnings
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Float64
from torch import Tensor

from drrho.evaluation.evaluate import EvaluationResult, evaluate_model
from drrho.evaluation.sets import EvaluationSet
from drrho.recipe.export import load_checkpoint_model
from drrho.recipe.recipe import Recipe
from drrho.recipe.train import train_beginning
from drrho.runtime.files import parse_json, read_regular, write_json
from drrho.runtime.launch import resolve_device
from drrho.runtime.progress import Progress, announce
from drrho.runtime.provenance import plain
from drrho.runtime.records import to_json
from drrho.studies.advise.arms import Arm
from drrho.studies.advise.config import AdviseFiles
from drrho.training.checkpoint import list_checkpoints

MAX_RANKS = 2**28  # bytes of a file of reciprocal ranks


class Kept(NamedTuple):
    """Scores of an arm at a step: reciprocal ranks, those of guessing, seconds that they took."""

    ranks: Float64[Tensor, " queries"]
    guessing: float
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Runner:
    """Trains and scores arms; what is on disk already is read.

    Attributes:
        arms: arms by name.
        files: names of files.
        held_out: pairs that arms are scored on.
        progress: steps of the whole race.
    """

    arms: dict[str, Arm]
    files: AdviseFiles
    held_out: EvaluationSet
    progress: Progress

    def __call__(self, name: str, step: int) -> Float64[Tensor, " queries"]:
        """Bring an arm to a step, and return the reciprocal rank of each held-out image there.

        Raises:
            ValueError: its run is beyond the step, and its scores there are gone.
            TrainingInterrupted: a signal came; the same call continues.
        """
        recipe = self.arms[name].recipe
        assert recipe is not None  # arms without one are not raced
        path = self.files.scores(name, step)
        if (known := read_scores(path, self._key(recipe))) is not None:
            return known.ranks
        before, began = steps_taken(recipe), time.monotonic()
        with warnings.catch_warnings():
            # Said once, of the recipe, and not of every part of every arm.
            warnings.filterwarnings("ignore", message="training.steps = .* passes over the data")
            train_beginning(recipe, until=step)
        found = self._score(recipe, step)
        ranks = found.reciprocal_ranks.double()
        kept = {
            "of": self._key(recipe),
            "guessing": found.chance["mrr"],
            "seconds": time.monotonic() - began,
            "reciprocal_ranks": ranks.tolist(),
        }
        write_json(path, kept)
        self.progress.advance(max(0, step - before))
        announce(f"{name}: step {step:,}, MRR {float(ranks.mean()):.3f}")
        return ranks

    def kept(self, name: str, step: int) -> Kept:
        """Read what was kept of an arm at a step; ValueError if that is gone."""
        recipe, path = self.arms[name].recipe, self.files.scores(name, step)
        found = None if recipe is None else read_scores(path, self._key(recipe))
        if found is None:
            raise ValueError(f"{path} is gone or damaged; start the race again")
        return found

    def _score(self, recipe: Recipe, step: int) -> EvaluationResult:
        folder = Path(recipe.output)
        checkpoint = folder / "checkpoints" / f"step-{step:08d}"
        if not checkpoint.is_dir():
            raise ValueError(
                f"{folder} has no checkpoint of step {step:,}, where the race compares: it was "
                "trained further. Give another --output, or remove the folder to race it anew"
            )
        averaged = recipe.training.ema is not None
        model = load_checkpoint_model(folder, checkpoint, ema=averaged)
        device = resolve_device(recipe.device)
        model.module.to(device).eval()
        with torch.no_grad():
            return evaluate_model(
                model, self.held_out, device=device, batch_size=recipe.evaluation.batch_size
            )

    def _key(self, recipe: Recipe) -> str:
        """Identify what scores belong to: the recipe, and the contents of the held-out pairs."""
        of = {"recipe": to_json(recipe), "held_out": self.held_out.manifest.contents_sha256}
        return hashlib.sha256(json.dumps(plain(of), sort_keys=True).encode()).hexdigest()


def read_scores(path: Path, key: str) -> Kept | None:
    """Read kept scores; None if there are none, or of another recipe or other pairs."""
    with suppress(OSError, ValueError, KeyError, TypeError):
        kept = parse_json(read_regular(path, most=MAX_RANKS))
        if kept["of"] == key:
            ranks = torch.tensor(kept["reciprocal_ranks"], dtype=torch.float64)
            return Kept(ranks, float(kept["guessing"]), float(kept["seconds"]))
    return None


def steps_taken(recipe: Recipe) -> int:
    """Count the steps up to a run's newest checkpoint."""
    found = list_checkpoints(Path(recipe.output) / "checkpoints")
    return int(found[-1].name.removeprefix("step-")) if found else 0
