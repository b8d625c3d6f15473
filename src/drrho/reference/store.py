"""Reference embeddings on disk: `reference.json` and one safetensors file per shard.

A file holds, for each row of its shard, the unit embeddings of image and text in float16 and
whether there are any. float16 keeps 11 bits of a cosine; the rounding that all cosines of a row
share cancels in the differences R_ij - R_ii that the loss takes.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import safetensors.torch
import torch
from jaxtyping import Bool, Float, Float16, Float32, Int64, Shaped
from safetensors import SafetensorError, safe_open
from torch import Tensor

from drrho.data.manifest import Manifest, Shard
from drrho.files import write_atomically, write_json

FILE_NAME = "reference.json"
FORMAT = "drrho reference"
VERSION = 1
DTYPE = "float16"
NORMALISATION = "unit L2 norm"
# Rounding d components to float16 moves the norm by less than 2^-11 of it.
NORM_TOLERANCE = 2e-3
NORM_CHECKS = 16  # rows of each shard whose norm is looked at
REMEDY = "run `drrho reference precompute` on this data set"


@dataclass(frozen=True, kw_only=True)
class ReferenceShard:
    """Which file holds the embeddings of which shard; the last three as in the manifest."""

    shard: str
    file: str
    num_samples: int
    keys_sha256: str
    content_sha256: str

    @property
    def contents(self) -> tuple[int, str, str]:
        """As `Shard.contents`: equal for the shard that the embeddings belong to."""
        return self.num_samples, self.keys_sha256, self.content_sha256


@dataclass(frozen=True, kw_only=True)
class ReferenceCard:
    """What `reference.json` says: the model, and the shards its embeddings belong to.

    Attributes:
        model: the encoder's identity: architecture, weights' hash, transform, tokenizer,
            precision.
        embedding_dim: d.
        shards: in the order of the manifest they were computed for.
    """

    model: dict[str, str]
    embedding_dim: int
    shards: tuple[ReferenceShard, ...]

    @property
    def model_sha256(self) -> str:
        """A hash of `model`, which every file carries."""
        return hashlib.sha256(json.dumps(self.model, sort_keys=True).encode()).hexdigest()

    def save(self, folder: Path) -> None:
        """Writes `reference.json`, atomically."""
        document = {
            "format": FORMAT,
            "version": VERSION,
            "dtype": DTYPE,
            "normalisation": NORMALISATION,
        }
        write_json(folder / FILE_NAME, document | asdict(self))

    @classmethod
    def load(cls, folder: Path) -> "ReferenceCard":
        """Reads `reference.json`.

        Raises:
            FileNotFoundError: there is none.
            ValueError: it is damaged, or of a version or kind that this program does not read.
        """
        path = folder / FILE_NAME
        try:
            document = json.loads(path.read_bytes())
            found = [document[name] for name in ("format", "version", "dtype", "normalisation")]
            card = cls(
                model=document["model"],
                embedding_dim=document["embedding_dim"],
                shards=tuple(ReferenceShard(**shard) for shard in document["shards"]),
            )
        except FileNotFoundError:
            raise FileNotFoundError(f"{folder} holds no {FILE_NAME}; {REMEDY}") from None
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path} is damaged ({error!r}); {REMEDY}") from error
        if found != [FORMAT, VERSION, DTYPE, NORMALISATION]:
            raise ValueError(
                f"{path} says {found}, this program reads "
                f"{[FORMAT, VERSION, DTYPE, NORMALISATION]}; {REMEDY}"
            )
        return card


@dataclass(frozen=True, kw_only=True)
class ShardEmbeddings:
    """The embeddings of one shard, row by row as its samples lie in the tar.

    Attributes:
        image, text: unit norm; zero where there is none.
        present: whether the sample could be encoded.
        absent: the reason of each row that could not.
    """

    image: Float16[Tensor, "rows dim"]
    text: Float16[Tensor, "rows dim"]
    present: Bool[Tensor, " rows"]
    absent: dict[int, str]


def save_shard(
    folder: Path, card: ReferenceCard, *, entry: ReferenceShard, embeddings: ShardEmbeddings
) -> None:
    """Writes the file of one shard, atomically; the same embeddings give the same bytes."""
    tensors = {name: getattr(embeddings, name) for name in ("image", "text", "present")}
    header = _header(card, entry) | {"absent": embeddings.absent}
    # One entry: safetensors writes several in an order that differs from run to run.
    metadata = {"drrho": json.dumps(header, sort_keys=True)}
    write_atomically(folder / entry.file, safetensors.torch.save(tensors, metadata))


def load_shard(folder: Path, card: ReferenceCard, *, entry: ReferenceShard) -> ShardEmbeddings:
    """The embeddings of one shard, mapped into memory: rows are read when they are used.

    Raises:
        FileNotFoundError: the file is missing.
        ValueError: it is damaged, or belongs to another shard or model than the card says.
    """
    path = folder / entry.file
    complete = f"{REMEDY}, which completes the folder"
    try:
        with safe_open(path, framework="pt") as file:
            header = json.loads(file.metadata()["drrho"])
            tensors = {name: file.get_tensor(name) for name in ("image", "text", "present")}
        absent = {int(row): reason for row, reason in header.pop("absent").items()}
    except FileNotFoundError:
        raise FileNotFoundError(
            f"the embeddings of shard {entry.shard} are missing: no file {path}; {complete}"
        ) from None
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path}, the embeddings of shard {entry.shard}, is damaged ({error!r}); remove it "
            f"and {complete}"
        ) from error
    for name, expected in _header(card, entry).items():
        if header.get(name) != expected:
            raise ValueError(
                f"{path} is not of shard {entry.shard} and the model in {FILE_NAME}: its {name} "
                f"is {header.get(name)}, not {expected}; {REMEDY} in an empty folder"
            )
    shapes = [tuple(tensor.shape) for tensor in tensors.values()]
    rows = (entry.num_samples, card.embedding_dim)
    if shapes != [rows, rows, rows[:1]]:
        raise ValueError(
            f"{path} should hold {entry.num_samples} rows of {card.embedding_dim} for shard "
            f"{entry.shard}, but image, text and present have the shapes {shapes}; remove it "
            f"and {complete}"
        )
    return ShardEmbeddings(**tensors, absent=absent)


@dataclass(frozen=True, kw_only=True)
class ReferenceEmbeddings:
    """Reference embeddings of a batch.

    Attributes:
        image, text: unit norm up to the rounding of float16; zero where there is none.
        present: whether there are embeddings of the sample.
    """

    image: Float32[Tensor, "batch dim"]
    text: Float32[Tensor, "batch dim"]
    present: Bool[Tensor, " batch"]

    def to(self, device: torch.device | str) -> "ReferenceEmbeddings":
        """The embeddings on another device; from pinned memory the copy does not block."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> "ReferenceEmbeddings":
        """The embeddings in page-locked memory."""
        return self._map(Tensor.pin_memory)

    def keep(self, rows: Bool[Tensor, " batch"]) -> "ReferenceEmbeddings":
        """The embeddings of some of the samples."""
        return self._map(lambda tensor: tensor[rows])

    def _map(self, change: Callable[[Tensor], Tensor]) -> "ReferenceEmbeddings":
        return ReferenceEmbeddings(
            image=change(self.image), text=change(self.text), present=change(self.present)
        )


class ReferenceStore:
    """The stored embeddings of a data set by sample id. Made by `ReferenceStore.open`."""

    def __init__(
        self, card: ReferenceCard, offsets: list[int], shards: list[ShardEmbeddings]
    ) -> None:
        self.identity = card.model
        self.embedding_dim = card.embedding_dim
        self._offsets = torch.tensor(offsets)
        self._shards = shards

    @classmethod
    def open(cls, folder: str | Path, manifest: Manifest) -> "ReferenceStore":
        """Attaches the embeddings in a folder to the samples of a manifest.

        A shard is recognised by its contents. So a reference serves every data set made of
        some of its shards, in any order and wherever they lie.

        Raises:
            FileNotFoundError: `reference.json` or the file of a shard is missing.
            ValueError: there are no embeddings of a shard, it was changed since they were
                computed, or a file is not what `reference.json` says.
        """
        card = ReferenceCard.load(Path(folder))
        entries = {entry.contents: entry for entry in card.shards}
        shards = []
        for shard in manifest.shards:
            entry = entries.get(shard.contents)
            if entry is None:
                raise ValueError(_why_unknown(card, shard, Path(folder)))
            embeddings = load_shard(Path(folder), card, entry=entry)
            _check_norms(embeddings, shard=entry.shard, folder=Path(folder))
            shards.append(embeddings)
        return cls(card, manifest.offsets, shards)

    def gather(self, sample_ids: Int64[Tensor, " batch"]) -> ReferenceEmbeddings:
        """The embeddings of some samples, in their order, on the CPU.

        Raises:
            IndexError: an id is not in the manifest.
            ValueError: there are no ids.
        """
        if len(sample_ids) == 0:
            raise ValueError("gather needs at least one sample id")
        ids, order = sample_ids.cpu().sort()
        if not 0 <= ids[0] <= ids[-1] < self._offsets[-1]:
            raise IndexError(
                f"sample ids must be in [0, {int(self._offsets[-1])}), got {int(ids[0])} to "
                f"{int(ids[-1])}"
            )
        shard_of = torch.searchsorted(self._offsets, ids, right=True) - 1
        touched, counts = torch.unique_consecutive(shard_of, return_counts=True)
        rows = (ids - self._offsets[shard_of]).split(counts.tolist())
        shards = [self._shards[shard] for shard in touched.tolist()]
        places = order.argsort()
        return ReferenceEmbeddings(
            image=_select([shard.image for shard in shards], rows, order=places).float(),
            text=_select([shard.text for shard in shards], rows, order=places).float(),
            present=_select([shard.present for shard in shards], rows, order=places),
        )


def _select(
    stored: Sequence[Tensor], rows: Sequence[Tensor], *, order: Int64[Tensor, " batch"]
) -> Shaped[Tensor, "batch ..."]:
    """The wanted rows of each shard, one shard after the other, then in the given order."""
    pairs = zip(stored, rows, strict=True)
    # index_select copies whole rows; indexing with [] is 25 times slower here.
    selected = torch.cat([tensor.index_select(0, wanted) for tensor, wanted in pairs])
    return selected.index_select(0, order)


def _header(card: ReferenceCard, entry: ReferenceShard) -> dict[str, str]:
    """What each file says of itself, so that one from elsewhere is noticed."""
    return {
        "keys_sha256": entry.keys_sha256,
        "content_sha256": entry.content_sha256,
        "model_sha256": card.model_sha256,
    }


def _why_unknown(card: ReferenceCard, shard: Shard, folder: Path) -> str:
    """Why no embeddings fit a shard, judged by the one of the same name if there is one."""
    for entry in card.shards:
        if entry.shard != Path(shard.url).name:
            continue
        if entry.num_samples != shard.num_samples:
            what = f"{entry.num_samples} samples, the shard has {shard.num_samples}"
        elif entry.keys_sha256 != shard.keys_sha256:
            what = f"keys {entry.keys_sha256[:12]}, the shard has {shard.keys_sha256[:12]}"
        else:
            what = "the same keys but other images or captions"
        return (
            f"the embeddings in {folder} do not fit shard {shard.url}: they are of {what}; {REMEDY}"
        )
    known = ", ".join(entry.shard for entry in card.shards[:3])
    return (
        f"{folder} holds no embeddings of shard {shard.url}; it holds those of "
        f"{len(card.shards)} shards: {known}, ...; {REMEDY}"
    )


def has_unit_norm(embeddings: Float[Tensor, "rows dim"]) -> Bool[Tensor, " rows"]:
    """Which rows have norm one, up to the rounding of float16; false for NaN as well."""
    return (embeddings.float().norm(dim=-1) - 1).abs() <= NORM_TOLERANCE


def _check_norms(embeddings: ShardEmbeddings, *, shard: str, folder: Path) -> None:
    rows = embeddings.present.nonzero().squeeze(1)
    rows = rows[:: max(1, len(rows) // NORM_CHECKS)]
    for name, stored in (("image", embeddings.image), ("text", embeddings.text)):
        wrong = rows[~has_unit_norm(stored[rows])]
        if len(wrong) > 0:
            raise ValueError(
                f"row {int(wrong[0])} of the {name} embeddings of shard {shard} in {folder} has "
                f"norm {float(stored[wrong[0]].float().norm()):.4g}, not 1; {REMEDY} in an empty "
                "folder"
            )
