"""The steps of `drrho steer`: what each does, what it costs, the command that does it alone."""

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path

from drrho.data.index import IndexConfig, write_manifest
from drrho.data.indexing import index_shards
from drrho.data.manifest import Manifest, is_manifest
from drrho.data.splits import SplitConfig, hold_out, split_manifest
from drrho.studies.steer.commands import command_of
from drrho.studies.steer.config import SteerConfig, SteerFiles


@dataclass(frozen=True, kw_only=True)
class Step:
    """A step of the way.

    Attributes:
        name: one word.
        what: what it does.
        commands: commands that do it alone.
        cost: estimated time and disk; None before anything is known.
        work: does it and says what came of it; what is done already is kept.
    """

    name: str
    what: str
    commands: tuple[str, ...]
    cost: str | None
    work: Callable[[], str]


def take(step: Step, number: str) -> None:
    """Do a step, and say on standard error what it is and what its result was."""
    describe(step, number)
    began = time.monotonic()
    found = step.work()
    say(f"    {readable_seconds(time.monotonic() - began)}: {found}")


def describe(step: Step, number: str) -> None:
    """Say what a step does, what it costs and how to do it alone."""
    cost = "" if step.cost is None else f"; about {step.cost}"
    say(f"{number} {step.name}: {step.what}{cost}")
    for command in step.commands:
        say(f"    $ {command}")


def say(line: str) -> None:
    """Write a line where progress is written too."""
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()


def readable_seconds(seconds: float) -> str:
    """Format a duration in the unit that fits."""
    for unit, size in (("h", 3600.0), ("min", 60.0)):
        if seconds >= 2 * size:
            return f"{seconds / size:.3g} {unit}"
    return f"{max(seconds, 0.1):.2g} s"


def index_config(config: SteerConfig, data: str, output: Path | None = None) -> IndexConfig:
    """Configure the index of training or validation data by the options of the same names."""
    names = {option.name for option in fields(IndexConfig)} - {"data", "output"}
    same = {name: value for name, value in vars(config).items() if name in names}
    return IndexConfig(data=data, output=None if output is None else str(output), **same)


def read_in_memory(config: SteerConfig) -> tuple[Manifest, Manifest]:
    """Index training and held-out pairs without writing anything."""
    columns = index_config(config, config.data).columns

    def read(data: str) -> Manifest:
        if is_manifest(data):
            return Manifest.load(data)
        return index_shards(data, workers=config.workers, columns=columns)

    pairs = read(config.data)
    if config.validation is None:
        return hold_out(pairs, pairs=None, seed=config.seed)
    return pairs, read(config.validation)


def data_steps(config: SteerConfig, files: SteerFiles) -> list[Step]:
    """List the steps that make the manifests of training and held-out pairs."""
    if config.validation is not None:
        return [
            *_index_step(config, config.data, files.train, "read every image once, for its hash"),
            *_index_step(config, config.validation, files.val, "the same for validation"),
        ]
    split = SplitConfig(
        data=str(whole(config, files)),
        output=str(files.train),
        held_out=str(files.val),
        seed=config.seed,
    )

    def work() -> str:
        train, held_out = (len(side.usable_ids()) for side in split_manifest(split))
        return f"{train:,} training pairs, {held_out:,} held-out pairs"

    return [
        *_index_step(config, config.data, files.pairs, "read every image once, for its hash"),
        Step(
            name="hold out",
            what="draw a tenth of the images for validation (at least 20, at most 2,000); no image "
            "is on both sides",
            commands=(command_of("split", split),),
            cost=None,
            work=work,
        ),
    ]


def _index_step(config: SteerConfig, data: str, output: Path, what: str) -> list[Step]:
    """List the step that indexes data; none for what is an index."""
    if is_manifest(data):
        return []
    index = index_config(config, data, output)

    def work() -> str:
        manifest, path = write_manifest(index)
        return f"{path}: {len(manifest.usable_ids()):,} usable of {manifest.num_samples:,} samples"

    commands = (command_of("index", index),)
    return [Step(name="index", what=what, commands=commands, cost=None, work=work)]


def whole(config: SteerConfig, files: SteerFiles) -> Path:
    """Return the manifest of all pairs that the reference is stored for."""
    if is_manifest(config.data):
        return Path(config.data)
    return files.pairs if config.validation is None else files.train


def training_pairs(config: SteerConfig, files: SteerFiles) -> Path:
    """Return the manifest of the training pairs."""
    own = config.validation is None or not is_manifest(config.data)
    return files.train if own else Path(config.data)


def held_out_pairs(config: SteerConfig, files: SteerFiles) -> Path:
    """Return the manifest of the held-out pairs."""
    given = config.validation
    return Path(given) if given is not None and is_manifest(given) else files.val
