"""Stored tables of rows by sample id: a card that names the model, and a file for each shard.

A shard is recognised by its contents. So what is stored serves every data set made of some of
its shards, in any order and wherever they lie, and no other.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from inspect import signature
from pathlib import Path
from typing import Any, Generic, TypeVar

import safetensors.torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from drrho.data.manifest import Shard
from drrho.runtime.files import write_atomically, write_json

Card = TypeVar("Card")


@dataclass(frozen=True, kw_only=True)
class ShardEntry:
    """File of a shard; the last three attributes are as in the manifest."""

    shard: str
    file: str
    num_samples: int
    keys_sha256: str
    content_sha256: str

    @property
    def contents(self) -> tuple[int, str, str]:
        """Identity of the contents, as `Shard.contents`."""
        return self.num_samples, self.keys_sha256, self.content_sha256


def entries_of(
    shards: Iterable[Shard], *, found: Sequence[ShardEntry] = ()
) -> tuple[ShardEntry, ...]:
    """Make an entry for each shard. Files have the shards' names; where two files of the folder
    would have one name, the new ones are numbered.

    Args:
        shards: those without an entry.
        found: the entries that the folder has already.
    """
    shards = tuple(shards)
    files = [f"{Path(shard.url).stem}.safetensors" for shard in shards]
    if not _distinct(files, found):
        files = [f"{number:05d}-{file}" for number, file in enumerate(files, start=len(found))]
    if not _distinct(files, found):
        raise ValueError(f"files of two shards would have one name, of {files}; rename the shards")
    return tuple(
        ShardEntry(
            shard=Path(shard.url).name,
            file=file,
            num_samples=shard.num_samples,
            keys_sha256=shard.keys_sha256,
            content_sha256=shard.content_sha256,
        )
        for shard, file in zip(shards, files, strict=True)
    )


def _distinct(files: Sequence[str], found: Sequence[ShardEntry]) -> bool:
    names = [*files, *(entry.file for entry in found)]
    return len({name.lower() for name in names}) == len(names)  # some file systems ignore case


@dataclass(frozen=True, kw_only=True)
class ShardFiles:
    """Shard files of a folder, each labelled with its shard and model.

    Attributes:
        entries: which file belongs to which shard.
        model: what computed the contents; every file carries a hash of it.
        noun: what the files hold, for messages.
        remedy: how to write them, for messages.
    """

    folder: Path
    entries: tuple[ShardEntry, ...]
    model: Mapping[str, str]
    noun: str
    remedy: str

    def find(self, shard: Shard) -> ShardEntry:
        """Find the entry of a shard; ValueError if it was changed or was never there."""
        entry = self._by_contents.get(shard.contents)
        if entry is None:
            raise ValueError(self._why_unknown(shard))
        return entry

    def exists(self, entry: ShardEntry) -> bool:
        """Tell whether the file of a shard is there."""
        return (self.folder / entry.file).exists()

    def save(
        self, entry: ShardEntry, tensors: Mapping[str, Tensor], *, notes: Mapping[str, Any]
    ) -> None:
        """Write tensors and plain data of one shard; the same contents give the same bytes."""
        # One entry: safetensors writes several in an order that differs from run to run.
        header = {"drrho": json.dumps(self._header(entry) | dict(notes), sort_keys=True)}
        content = safetensors.torch.save(dict(tensors), header)
        write_atomically(self.folder / entry.file, content)

    def load(
        self, entry: ShardEntry, names: Iterable[str]
    ) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Load the tensors of one shard, mapped into memory, and the notes beside them.

        Raises:
            FileNotFoundError: the file is missing.
            ValueError: it is damaged, or belongs to another shard or model than the card says.
        """
        path = self.folder / entry.file
        try:
            with safe_open(path, framework="pt") as file:
                notes = json.loads(file.metadata()["drrho"])
                tensors = {name: file.get_tensor(name) for name in names}
            header = {name: notes.pop(name, None) for name in self._header(entry)}
        except FileNotFoundError:
            raise FileNotFoundError(
                f"the {self.noun} of shard {entry.shard} are missing: no file {path}; "
                f"{self.remedy}, which completes the folder"
            ) from None
        except (SafetensorError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise self.damaged(entry, repr(error)) from error
        for name, expected in self._header(entry).items():
            if header[name] != expected:
                raise ValueError(
                    f"{path} is not of shard {entry.shard} and the model of this folder: its "
                    f"{name} is {header[name]}, not {expected}; {self.remedy} in an empty folder"
                )
        return tensors, notes

    def damaged(self, entry: ShardEntry, fault: str) -> ValueError:
        """Make the error for a file of the right shard with wrong contents."""
        return ValueError(
            f"{self.folder / entry.file}, the {self.noun} of shard {entry.shard}, is damaged "
            f"({fault}); remove it and {self.remedy}, which completes the folder"
        )

    @cached_property
    def _by_contents(self) -> dict[tuple[int, str, str], ShardEntry]:
        return {entry.contents: entry for entry in self.entries}

    @cached_property
    def _model_sha256(self) -> str:
        return hashlib.sha256(json.dumps(dict(self.model), sort_keys=True).encode()).hexdigest()

    def _header(self, entry: ShardEntry) -> dict[str, str]:
        """Make the label of a file, by which one from elsewhere is noticed."""
        return {
            "keys_sha256": entry.keys_sha256,
            "content_sha256": entry.content_sha256,
            "model_sha256": self._model_sha256,
        }

    def _why_unknown(self, shard: Shard) -> str:
        """Explain why no file fits a shard, by the one of the same name if there is one."""
        for entry in self.entries:
            if entry.shard != Path(shard.url).name:
                continue
            if entry.num_samples != shard.num_samples:
                what = f"{entry.num_samples} samples, the shard has {shard.num_samples}"
            elif entry.keys_sha256 != shard.keys_sha256:
                what = f"keys {entry.keys_sha256[:12]}, the shard has {shard.keys_sha256[:12]}"
            else:
                what = "the same keys but other contents"
            return (
                f"the {self.noun} in {self.folder} do not fit shard {shard.url}: they are of "
                f"{what}; {self.remedy}"
            )
        known = ", ".join(entry.shard for entry in self.entries[:3])
        return (
            f"{self.folder} holds no {self.noun} of shard {shard.url}; it holds those of "
            f"{len(self.entries)} shards: {known}, ...; {self.remedy}"
        )


@dataclass(frozen=True, kw_only=True)
class CardKind(Generic[Card]):
    """Cards of one kind of table: a JSON file that says what computed it, and of which shards.

    Attributes:
        card: dataclass of the cards, with `shards`, and `model`, by which files are labelled.
        header: entries that a card must have: format, version, ...
        noun: contents of the shard files, for messages.
        remedy: how to write them, for messages.
    """

    card: Callable[..., Card]
    file_name: str
    header: Mapping[str, Any]
    noun: str
    remedy: str

    def exists(self, folder: Path) -> bool:
        """Tell whether a folder has a card."""
        return (folder / self.file_name).exists()

    def save(self, card: Any, folder: Path) -> None:
        """Write a card, atomically."""
        write_json(folder / self.file_name, {**self.header, **asdict(card)})

    def load(self, folder: Path) -> Card:
        """Read a card.

        Raises:
            FileNotFoundError: there is none.
            NotADirectoryError: the folder is a file.
            ValueError: it is damaged, or of a version or kind that this program does not read.
        """
        path = folder / self.file_name
        try:
            document = json.loads(path.read_bytes())
            found = [document[name] for name in self.header]
            if found == list(self.header.values()):
                entries = {name: document[name] for name in signature(self.card).parameters}
                shards = tuple(ShardEntry(**shard) for shard in entries["shards"])
                return self.card(**entries | {"shards": shards})
        except FileNotFoundError:
            raise FileNotFoundError(f"{folder} holds no {self.file_name}; {self.remedy}") from None
        except NotADirectoryError:
            raise NotADirectoryError(
                f"{folder} is a file, not a folder that holds {self.file_name}; {self.remedy}"
            ) from None
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path} is damaged ({error!r}); {self.remedy}") from error
        raise ValueError(
            f"{path} says {found}, this program reads {list(self.header.values())}; {self.remedy}"
        )

    def files(self, card: Any, folder: Path) -> ShardFiles:
        """Return the files of a card's shards in its folder."""
        return ShardFiles(
            folder=folder, entries=card.shards, model=card.model, noun=self.noun, remedy=self.remedy
        )
