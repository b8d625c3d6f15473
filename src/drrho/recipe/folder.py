"""Contents of a run's folder, finished or not, and its model at several stages."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from drrho.data.indexing import open_manifest
from drrho.data.manifest import ITEMS, Manifest
from drrho.data.reading.storage import local_path
from drrho.models.build import build_recorded_model, load_model, require_trusted_model
from drrho.models.program import require_trusted
from drrho.models.two_tower import TwoTower
from drrho.recipe.document import (
    RECIPE_FILE,
    RunResults,
    read_recipe,
    read_recipe_file,
    read_run_results,
)
from drrho.recipe.export import load_checkpoint_model
from drrho.recipe.recipe import Recipe
from drrho.reference.live import is_live
from drrho.reference.reader import Reference, open_reference
from drrho.runtime.errors import without_secrets
from drrho.training.checkpoint import list_checkpoints
from drrho.training.log import read_metrics
from drrho.training.tracking.tracker import program_of

Row = dict[str, float | None]


@dataclass(frozen=True, kw_only=True)
class RunFolder:
    """A run as its folder records it.

    Attributes:
        path: folder of the run.
        recipe: recipe of the run.
        rows: rows of the metrics log.
        results: results of a finished run; None before its end.
    """

    path: Path
    recipe: Recipe
    rows: list[Row]
    results: RunResults | None

    @property
    def step(self) -> int:
        """Last step in the log."""
        return int(self.rows[-1]["step"] or 0) if self.rows else 0

    def open_data(self, given: str | None = None, *, named: str | None = None) -> Manifest:
        """Open the data set that the user gave, or one that the run's recipe names.

        Args:
            named: a data set in the recipe; by default the training data.

        Raises:
            FileNotFoundError, ValueError: as `open_manifest`; or the recipe, or the manifest that
                it names, is of data at a URL, and the folder is not trusted.
        """
        if given is not None:
            return open_manifest(given)
        place = self.recipe.data if named is None else named
        self._require_local(place)
        manifest = open_manifest(place)
        for shard in manifest.shards:
            self._require_local(shard.url)
        return manifest

    def _require_local(self, place: str) -> None:
        if not place.startswith(ITEMS) and local_path(place) is None:
            what = f"data at {without_secrets(place)}"
            require_trusted(str(self.path), what, path=str(self.path))

    def require_trusted_recipe(self) -> None:
        """Raise ValueError where the recipe, if it were run, would run code or fetch something that
        the folder names and nobody trusts (`trusting`).
        """
        recipe = self.recipe
        require_trusted_model(recipe.model)
        for name in recipe.training.trackers:
            if (path := program_of(name)) is not None:
                require_trusted(str(self.path), f"running the program {path}", path=path)
        for place in (recipe.data, recipe.evaluation.data):
            if place is not None:
                self._require_local(place)

    def open_reference(self, manifest: Manifest, folder: str | None = None) -> Reference | None:
        """Open the embeddings that steered the run, or those in another folder; None if none did.

        Raises:
            FileNotFoundError, ValueError: as `open_reference`; or the run was steered by
                embeddings of augmented views, and no folder is given.
        """
        if folder is None and self.recipe.loading.views is not None:
            raise ValueError(
                f"{self.path} was trained on views; name stored embeddings of the samples as they "
                "are (--reference)"
            )
        if folder is not None:
            return open_reference(folder, manifest)
        if self.recipe.reference is None:
            return None
        if any(map(is_live, self.recipe.references)):
            raise ValueError(
                f"{self.path} was steered by a live model, of which nothing is stored; store "
                "embeddings with `drrho reference precompute`, and name them (--reference)"
            )
        return open_reference(
            self.recipe.reference, manifest, weights=self.recipe.reference_weights
        )

    def temperature_at(self, step: int) -> float:
        """Return the temperature last logged by then (of several, the mean), or the initial one."""
        names = ("temperature", "temperature_image", "temperature_text")
        taken = [row for row in self.rows if (row["step"] or 0) <= step]
        for row in reversed(taken):
            if values := [value for name in names if (value := row.get(name)) is not None]:
                return sum(values) / len(values)
        return self.recipe.objective.temperature.initial


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A run's model after some of its steps.

    Attributes:
        step: optimiser steps taken.
        title: name of the stage for people.
        temperature: temperature at that step.
        load: function that builds the model.
    """

    step: int
    title: str
    temperature: float
    load: Callable[[], TwoTower]


def read_run(path: Path) -> RunFolder:
    """Read a run's folder.

    Raises:
        FileNotFoundError: the folder holds no run.
        ValueError: a file is damaged.
    """
    recipe = read_recipe(read_recipe_file(path))
    try:
        rows = read_metrics(path)
    except FileNotFoundError:
        rows = []
    return RunFolder(path=path, recipe=recipe, rows=rows, results=read_run_results(path))


def find_runs(paths: Sequence[Path]) -> list[Path]:
    """List runs: the folders themselves, or those in the folder of a comparison."""
    return list(dict.fromkeys(run for path in paths for run in _runs_of(path)))


def _runs_of(path: Path) -> Iterator[Path]:
    if (path / RECIPE_FILE).is_file() or not path.is_dir():
        yield path  # `read_run` says what is wrong with it
        return
    found = [f.parent for f in sorted(path.glob(f"*/{RECIPE_FILE}"))]
    yield from found or [path]


def stages_of(run: RunFolder) -> list[Stage]:
    """List the model before the first step, at the checkpoints that were kept, and at the end."""

    def stage(step: int, title: str, load: Callable[[], TwoTower]) -> Stage:
        return Stage(step=step, title=title, temperature=run.temperature_at(step), load=load)

    start = partial(build_recorded_model, run.recipe.model, seed=run.recipe.seed, run=run.path)
    stages = [stage(0, "before training", start)]
    finished = run.results is not None
    for checkpoint in list_checkpoints(run.path / "checkpoints"):
        step = int(checkpoint.name.removeprefix("step-"))
        if not (finished and step == run.step):
            title = f"step {step:,}"
            stages.append(stage(step, title, partial(load_checkpoint_model, run.path, checkpoint)))
    if finished:
        title = f"step {run.step:,}, the end"
        stages.append(stage(run.step, title, partial(load_model, run.path / "model")))
    return stages
