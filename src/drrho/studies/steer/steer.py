"""`drrho steer`: from a user's own pairs and a reference to a steered model and its report."""

from dataclasses import asdict
from pathlib import Path

from drrho.data.manifest import Manifest
from drrho.models.program import trusting
from drrho.runtime.files import write_json
from drrho.runtime.launch import require_one_process
from drrho.runtime.locks import exclusive
from drrho.runtime.provenance import plain, require_same_call
from drrho.studies.steer.config import SteerConfig, SteerFiles
from drrho.studies.steer.results import SteerResults
from drrho.studies.steer.steps import (
    data_steps,
    describe,
    held_out_pairs,
    read_in_memory,
    say,
    take,
    training_pairs,
)
from drrho.studies.steer.way import Way

# The last three make the recipe, which is compared itself.
MAY_CHANGE = (
    *("output", "with_plain", "dry_run", "workers", "device", "trust"),
    *("recipe", "batch_size", "epochs"),
)


class SteerInterrupted(ValueError):
    """Error: Ctrl-C came in a step other than training, which has an error of its own."""

    exit_status = 130


def steer(config: SteerConfig) -> SteerResults | None:
    """Do every step that is not done yet, and return what was found; None for a dry run.

    What it does is said on standard error.

    Raises:
        FileNotFoundError: data or a model are not there.
        ValueError: the folder belongs to a call with other data or models; or a step's own error.
        TrainingInterrupted, SteerInterrupted: a signal came; the same call continues.
    """
    require_one_process("drrho steer")
    with trusting(everything=config.trust):
        if config.dry_run:
            _plan(config)
            return None
        with exclusive(Path(config.output)):
            path, asked = SteerFiles(Path(config.output)).asked, plain(asdict(config))
            require_same_call(path, asked, what="steering", may_change=MAY_CHANGE)
            write_json(path, asked)
            try:
                return _run(config)
            except KeyboardInterrupt:
                raise SteerInterrupted(
                    f"interrupted; the same command continues where it was in {config.output}"
                ) from None


def run_steer(config: SteerConfig) -> str:
    """Go all the way from your own pairs to a steered model and its report."""
    results = steer(config)
    return "a dry run: nothing was started or written" if results is None else str(results)


def _plan(config: SteerConfig) -> None:
    """Say what would be done and what it would cost."""
    way = Way.open(config, *read_in_memory(config))
    steps = [*data_steps(config, SteerFiles(Path(config.output))), *way.steps()]
    for number, step in enumerate(steps, start=1):
        describe(step, f"{number}/{len(steps)}")
    if way.recipe_text is not None:
        say(f"\n{way.recipe_text}")


def _run(config: SteerConfig) -> SteerResults:
    files = SteerFiles(Path(config.output))
    steps = data_steps(config, files)
    total = len(steps) + Way.num_steps(config)
    for number, step in enumerate(steps, start=1):
        take(step, f"{number}/{total}")
    train, held_out = training_pairs(config, files), held_out_pairs(config, files)
    way = Way.open(config, Manifest.load(train), Manifest.load(held_out))
    for number, step in enumerate(way.steps(), start=len(steps) + 1):
        take(step, f"{number}/{total}")
    return way.results()
