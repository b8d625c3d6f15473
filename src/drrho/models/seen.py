"""What a model was trained on, as far as its folder says: hashes of the contents of shards."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from drrho.models.build import Model
from drrho.models.towers.joined import JOINED_FILE, read_joined_card
from drrho.runtime.records import read_record, write_record

SEEN_FILE = "trained_on.json"


@dataclass(frozen=True, kw_only=True)
class TrainedOn:
    """Contents of `trained_on.json`: `content_sha256` of every shard, as `drrho.data.manifest`."""

    version: ClassVar = 1
    shards: tuple[str, ...]


def note_training_data(folder: Path, shards: Iterable[str], *, model: Model) -> None:
    """Write into the folder of a run what its model has seen, and what it had seen before.

    Args:
        shards: content hashes of the run's shards.
        model: what the run began with.
    """
    before = training_data_of(model) or ()
    write_record(folder / SEEN_FILE, TrainedOn(shards=tuple(dict.fromkeys([*before, *shards]))))


def training_data_of(model: Model) -> tuple[str, ...] | None:
    """Return the content hashes of all shards that a model was trained on; None if unknown.

    Raises:
        ValueError: the file that says it is damaged.
    """
    schema, _, place = model.name.partition(":")
    if schema != "run":
        return None
    folder = Path(place).expanduser()
    for part in (folder, folder / "model"):
        if (part / JOINED_FILE).is_file():
            return read_joined_card(part).data
    # The models of a run lie in folders of it.
    for part in (folder, folder.parent):
        if (part / SEEN_FILE).is_file():
            return read_record(part / SEEN_FILE, TrainedOn).shards
    return None
