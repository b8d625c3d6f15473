"""Stored tables of rows by sample id: a card that names the model, and a file for each shard.

A shard is recognised by its contents. So what is stored serves every data set made of some of
its shards, in any order and wherever they are, and no other.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from functools import cached_property, lru_cache, partial
from pathlib import Path
from typing import Any, Generic, TypeVar

import safetensors.torch
import torch
from jaxtyping import Int64, Shaped
from safetensors import SafetensorError, safe_open
from torch import Tensor

from drrho.data.manifest import Shard
from drrho.reference.blocks import CheckedTensor, checksums_of
from drrho.runtime.checks import require_at_least
from drrho.runtime.errors import without_secrets
from drrho.runtime.files import (
    parse_json,
    read_regular,
    require_on_this_machine,
    require_regular,
    write_atomically,
    write_json,
)
from drrho.runtime.records import OPTIONAL, from_json

Card = TypeVar("Card")
Layout = Mapping[str, tuple[torch.dtype, tuple[int, ...]]]  # tensors of a file: types and shapes
MAX_CARD = 2**30  # bytes of a card that are read
# Shard files of a store that are open at once. The kernel allows a process 65,530 mappings, and a
# run may have several stores.
MAX_OPEN = 1024
VERSIONS = (1, 2)  # files of version 1 have no checksums


@dataclass(frozen=True, kw_only=True)
class ShardEntry:
    """File of a shard; the last three attributes are as in the manifest."""

    shard: str
    file: str
    num_samples: int
    keys_sha256: str
    content_sha256: str

    def __post_init__(self):
        require_at_least(0, num_samples=self.num_samples)
        if self.file in ("", ".", "..") or set("/\\\0") & set(self.file):
            raise ValueError(f"{self.file!r} must be the bare name of a file of this folder")

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
    files = [f"{Path(_name_of(shard)).stem}.safetensors" for shard in shards]
    if not _distinct(files, found):
        files = [f"{number:05d}-{file}" for number, file in enumerate(files, start=len(found))]
    if not _distinct(files, found):
        raise ValueError(f"files of two shards would have one name, of {files}; rename the shards")
    return tuple(
        ShardEntry(
            shard=_name_of(shard),
            file=file,
            num_samples=shard.num_samples,
            keys_sha256=shard.keys_sha256,
            content_sha256=shard.content_sha256,
        )
        for shard, file in zip(shards, files, strict=True)
    )


def _name_of(shard: Shard) -> str:
    """Return the file name of a shard's path or URL, without the query, which may be signed."""
    return Path(shard.url.partition("?")[0] if "://" in shard.url else shard.url).name


def _entry(content: Mapping[str, Any]) -> ShardEntry:
    """Build an entry from JSON; raises ValueError or TypeError for other types."""
    for name, value in content.items():
        kind = int if name == "num_samples" else str
        if type(value) is not kind:
            raise ValueError(f"{name} of a shard must be a {kind.__name__}, got {value!r}")
    return ShardEntry(**content)


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
        checksums_required: whether a file without checksums is damaged; files of version 1 have
            none.
    """

    folder: Path
    entries: tuple[ShardEntry, ...]
    model: Mapping[str, str]
    noun: str
    remedy: str
    checksums_required: bool = True

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
        metadata = sealed(self._header(entry) | dict(notes), tensors)
        content = safetensors.torch.save(dict(tensors), metadata)
        write_atomically(self.folder / entry.file, content)

    def open(
        self, entry: ShardEntry, layout: Layout, *, checked: dict[str, bytearray] | None = None
    ) -> "ShardFile":
        """Open the file of one shard. Its tensors are mapped into memory.

        Args:
            layout: what the file must hold; -1 means any length.
            checked: by tensor, whether its blocks were compared when it was open before.

        Raises:
            FileNotFoundError: the file is missing.
            ValueError: it is damaged, or belongs to another shard or model than the card says.
        """
        path = self.folder / entry.file
        try:
            require_regular(path)
            with safe_open(path, framework="pt") as file:
                notes = parse_json(file.metadata()["drrho"].encode())
                tensors = {name: file.get_tensor(name) for name in layout}
            header = {name: notes.pop(name, None) for name in self._header(entry)}
            checksums, seal = notes.pop("checksums", None), notes.pop("seal", None)
        except FileNotFoundError:
            raise FileNotFoundError(
                f"the {self.noun} of shard {entry.shard} are missing: no file {path}; "
                f"{self.remedy}, which completes the folder"
            ) from None
        except (SafetensorError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise self.damaged(entry, repr(error)) from error
        self._require_label(path, entry, header)
        is_sealed = seal == _seal(header | notes | {"checksums": checksums})
        if not is_sealed and (self.checksums_required or (checksums, seal) != (None, None)):
            raise self.damaged(entry, "its header was changed")
        _require_layout(tensors, layout, damaged=partial(self.damaged, entry))
        return ShardFile(
            notes=notes,
            tensors={
                name: CheckedTensor(
                    tensor,
                    None if checksums is None else checksums[name],
                    checked=None if checked is None else checked.get(name),
                    damaged=partial(self.damaged, entry),
                )
                for name, tensor in tensors.items()
            },
        )

    def opener(
        self, entries: Sequence[ShardEntry], layouts: Callable[[ShardEntry], Layout]
    ) -> Callable[[int], "ShardFile"]:
        """Return a function that opens the file of a shard by its number.

        It keeps the last `MAX_OPEN` files open, and of the others which blocks were compared.
        """
        checked: dict[int, dict[str, bytearray]] = {}

        @lru_cache(maxsize=MAX_OPEN)
        def open_shard(number: int) -> ShardFile:
            before = checked.get(number)
            file = self.open(entries[number], layouts(entries[number]), checked=before)
            checked[number] = {name: tensor.checked for name, tensor in file.tensors.items()}
            return file

        return open_shard

    def _require_label(self, path: Path, entry: ShardEntry, header: Mapping[str, Any]) -> None:
        for name, expected in self._header(entry).items():
            if header[name] != expected:
                raise ValueError(
                    f"{path} is not of shard {entry.shard} and the model of this folder: its "
                    f"{name} is {header[name]}, not {expected}; {self.remedy} in an empty folder"
                )

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
        shown = without_secrets(shard.url)
        for entry in self.entries:
            if entry.shard != _name_of(shard):
                continue
            if entry.num_samples != shard.num_samples:
                what = f"{entry.num_samples} samples, the shard has {shard.num_samples}"
            elif entry.keys_sha256 != shard.keys_sha256:
                what = f"keys {entry.keys_sha256[:12]}, the shard has {shard.keys_sha256[:12]}"
            else:
                what = "the same keys but other contents"
            return (
                f"the {self.noun} in {self.folder} do not fit shard {shown}: they are of "
                f"{what}; {self.remedy}"
            )
        known = ", ".join(entry.shard for entry in self.entries[:3])
        known += ", ..." if len(self.entries) > 3 else ""
        counted = "1 shard" if len(self.entries) == 1 else f"{len(self.entries):,} shards"
        return (
            f"{self.folder} holds no {self.noun} of shard {shown}; it is "
            f"of {counted}: {known}; {self.remedy}"
        )


@dataclass(frozen=True, kw_only=True)
class ShardFile:
    """An open file of a shard: its tensors, and the plain data beside them."""

    tensors: Mapping[str, CheckedTensor]
    notes: Mapping[str, Any]

    def rows(self, name: str, rows: Int64[Tensor, " some"]) -> Shaped[Tensor, "some ..."]:
        """Return some rows of a tensor, whose blocks are checked when they are first read."""
        return self.tensors[name].rows(rows)

    def whole(self, name: str) -> Shaped[Tensor, "..."]:
        """Return a tensor, checked whole."""
        return self.tensors[name].whole()


@dataclass(frozen=True, kw_only=True)
class CardKind(Generic[Card]):
    """Cards of one kind of table: a JSON file that says what computed it, and for which shards.

    Attributes:
        card: dataclass of the cards, with `shards`, and `model`, by which files are labelled.
        header: entries that a card must have, beside its version.
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
        content = asdict(card)
        for part in fields(card):
            if part.metadata == OPTIONAL and content[part.name] is None:
                del content[part.name]
        version = content.pop("version")
        write_json(folder / self.file_name, {**self.header, "version": version, **content})

    def load(self, folder: Path) -> Card:
        """Read a card.

        Raises:
            FileNotFoundError: there is none.
            NotADirectoryError: the folder is a file.
            ValueError: it is damaged, or of a version or kind that this program does not read.
        """
        require_on_this_machine(folder, f"folder of {self.noun}")
        path = folder / self.file_name
        try:
            document = parse_json(read_regular(path, most=MAX_CARD))
            found = [document[name] for name in self.header]
            version = document["version"]
            if found == list(self.header.values()) and version in VERSIONS:
                shards = tuple(map(_entry, document["shards"]))
                # The shards apart: there may be many, and `from_json` is slow.
                card = from_json(self.card, document | {"shards": []}, where=str(path))
                return replace(card, shards=shards)
        except FileNotFoundError:
            raise FileNotFoundError(f"{folder} holds no {self.file_name}; {self.remedy}") from None
        except NotADirectoryError:
            raise NotADirectoryError(
                f"{folder} is a file, not a folder that holds {self.file_name}; {self.remedy}"
            ) from None
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{path} is damaged ({error!r}); {self.remedy}") from error
        raise ValueError(
            f"{path} says {found} and version {version!r}, this program reads "
            f"{list(self.header.values())} and the versions {VERSIONS}; {self.remedy}"
        )

    def files(self, card: Any, folder: Path) -> ShardFiles:
        """Return the files of a card's shards in its folder."""
        return ShardFiles(
            folder=folder,
            entries=card.shards,
            model=card.model,
            noun=self.noun,
            remedy=self.remedy,
            checksums_required=card.version > 1,
        )


def sealed(header: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """Return plain data as the metadata of a file, with the checksums of its tensors."""
    plain = json.loads(json.dumps(header))  # as it is read again: names are texts
    plain |= {"checksums": checksums_of(tensors)}
    # One entry: safetensors writes several in an order that differs from run to run.
    return {"drrho": json.dumps(plain | {"seal": _seal(plain)}, sort_keys=True)}


def _seal(header: Mapping[str, Any]) -> str:
    """Hash the plain data of a file, by which a change of them is noticed."""
    return hashlib.sha256(json.dumps(header, sort_keys=True).encode()).hexdigest()


def _require_layout(
    tensors: Mapping[str, Tensor], layout: Layout, *, damaged: Callable[[str], ValueError]
) -> None:
    found = {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()}
    for name, (dtype, shape) in layout.items():
        if found[name][0] != dtype or not _fits(found[name][1], shape):
            described = [
                ", ".join(f"{it} {kind} {size}" for it, (kind, size) in parts.items())
                for parts in (found, layout)
            ]
            raise damaged(f"it has the types and shapes {described[0]}, not {described[1]}")


def _fits(shape: tuple[int, ...], wanted: tuple[int, ...]) -> bool:
    """Tell whether a shape is the wanted one, where -1 is any length."""
    pairs = zip(shape, wanted, strict=False)
    return len(shape) == len(wanted) and all(size == want or want == -1 for size, want in pairs)
