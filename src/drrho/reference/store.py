"""Reference embeddings on disk: `reference.json` and one safetensors file per shard.

A file holds, for each row of its shard, the unit embeddings of image and text in float16 and
whether there are any. float16 keeps 11 bits of a cosine; the rounding that all cosines of a row
share cancels in the differences R_ij - R_ii that the loss takes.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Float16, Float32, Int64
from torch import Tensor

from drrho.contrastive.pairs import PairEmbeddings
from drrho.data.manifest import Manifest
from drrho.reference.rows import in_order, locate
from drrho.reference.shard_files import CardKind, Layout, ShardEntry, ShardFile, ShardFiles
from drrho.runtime.checks import require_at_least
from drrho.runtime.records import OPTIONAL, from_json

FILE_NAME = "reference.json"
TENSORS = ("image", "text", "present")
# Rounding d components to float16 changes the norm by less than 2^-11 of it.
NORM_TOLERANCE = 2e-3
NORM_CHECKS = 16  # rows of each shard whose norm is checked when a store is opened
ROWS_READ = 8192  # rows read at once
REMEDY = "run `drrho reference precompute` on this data set"


@dataclass(frozen=True, kw_only=True)
class ReferenceCard:
    """Contents of `reference.json`: the model, and the shards its embeddings belong to.

    Attributes:
        model: the encoder's identity, as `TwoTower.identity`, and the precision.
        shards: in the order of the manifest they were computed for.
        version: version of the format; from 2 on files have checksums.
        trained_on: `content_sha256` of the shards that the model was trained on; None if unknown.
    """

    model: dict[str, str]
    embedding_dim: int
    shards: tuple[ShardEntry, ...]
    version: int = 2
    trained_on: tuple[str, ...] | None = field(default=None, metadata=OPTIONAL)

    def __post_init__(self):
        require_at_least(1, embedding_dim=self.embedding_dim)


REFERENCE_CARDS = CardKind(
    card=ReferenceCard,
    file_name=FILE_NAME,
    header={
        "format": "drrho reference",
        "dtype": "float16",
        "normalisation": "unit L2 norm",
    },
    noun="embeddings",
    remedy=REMEDY,
)


@dataclass(frozen=True, kw_only=True)
class ShardEmbeddings:
    """Embeddings of one shard, row by row in the order of its samples.

    Attributes:
        image, text: unit norm; zero where there is none.
        present: whether the sample could be encoded.
        absent: row -> reason, of those that could not.
    """

    image: Float16[Tensor, "rows dim"]
    text: Float16[Tensor, "rows dim"]
    present: Bool[Tensor, " rows"]
    absent: dict[int, str]

    @classmethod
    def empty(
        cls, num_samples: int, embedding_dim: int, *, absent: dict[int, str]
    ) -> "ShardEmbeddings":
        """Make a shard without embeddings, to be filled in; `absent` is taken over."""
        return cls(
            image=torch.zeros(num_samples, embedding_dim, dtype=torch.float16),
            text=torch.zeros(num_samples, embedding_dim, dtype=torch.float16),
            present=torch.zeros(num_samples, dtype=torch.bool),
            absent=absent,
        )


def save_shard(files: ShardFiles, entry: ShardEntry, embeddings: ShardEmbeddings) -> None:
    """Write the embeddings of one shard, as `ShardFiles.save`."""
    tensors = {name: getattr(embeddings, name) for name in TENSORS}
    files.save(entry, tensors, notes={"absent": embeddings.absent})


def load_shard(files: ShardFiles, entry: ShardEntry, *, embedding_dim: int) -> ShardEmbeddings:
    """Load the embeddings of one shard and check them whole; errors as `ShardFiles.open`."""
    file = files.open(entry, layout_of(entry, embedding_dim))
    tensors = {name: file.whole(name) for name in TENSORS}
    return ShardEmbeddings(**tensors, absent=absent_in(files, entry, file))


def layout_of(entry: ShardEntry, embedding_dim: int) -> Layout:
    """Return the types and shapes of the tensors of a shard's file."""
    embeddings = (torch.float16, (entry.num_samples, embedding_dim))
    present = (torch.bool, (entry.num_samples,))
    return {"image": embeddings, "text": embeddings, "present": present}


def absent_in(files: ShardFiles, entry: ShardEntry, file: ShardFile) -> dict[int, str]:
    """Return the rows without embeddings, with the reasons, from the notes of a shard's file."""
    try:
        absent = from_json(dict[str, str], file.notes["absent"], where="absent")
        return {int(row): reason for row, reason in absent.items()}
    except (KeyError, ValueError) as error:
        raise files.damaged(entry, repr(error)) from error


class ReferenceEmbeddings(NamedTuple):
    """Reference embeddings of a batch.

    Attributes:
        image, text: unit norm up to the rounding of float16; zero where there is none.
        present: whether there are embeddings of the sample.
    """

    image: Float32[Tensor, "batch dim"]
    text: Float32[Tensor, "batch dim"]
    present: Bool[Tensor, " batch"]

    @property
    def pairs(self) -> PairEmbeddings:
        return PairEmbeddings(self.image, self.text)

    def to(self, device: torch.device | str) -> "ReferenceEmbeddings":
        """Copy to another device; from pinned memory the copy does not block."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> "ReferenceEmbeddings":
        """Copy into page-locked memory."""
        return self._map(Tensor.pin_memory)

    def keep(self, rows: Bool[Tensor, " batch"] | Int64[Tensor, " kept"]) -> "ReferenceEmbeddings":
        """Select some of the samples."""
        return self._map(lambda tensor: tensor[rows])

    def zero_where_absent(self) -> "ReferenceEmbeddings":
        """Set the embeddings to zero where a sample has none."""
        image, text = (side.where(self.present[:, None], 0.0) for side in (self.image, self.text))
        return ReferenceEmbeddings(image, text, self.present)

    def _map(self, change: Callable[[Tensor], Tensor]) -> "ReferenceEmbeddings":
        return ReferenceEmbeddings(*map(change, self))


class ReferenceStore:
    """Stored embeddings of a data set by sample id. Made by `ReferenceStore.open`."""

    def __init__(
        self, card: ReferenceCard, offsets: list[int], shard: Callable[[int], ShardFile]
    ) -> None:
        self.identity = card.model
        self.trained_on = card.trained_on
        self.embedding_dim = card.embedding_dim
        self.num_shards = len(offsets) - 1
        self._offsets = torch.tensor(offsets)
        self._shard = shard

    @classmethod
    def open(cls, folder: str | Path, manifest: Manifest) -> "ReferenceStore":
        """Open the embeddings of the samples of a manifest, some or all of the stored shards.

        What is read later is compared with its checksums, block by block; `verify` does so whole.

        Raises:
            FileNotFoundError: `reference.json` or the file of a shard is missing.
            ValueError: there are no embeddings of a shard, it was changed since they were
                computed, or a file is not what `reference.json` says.
        """
        card = REFERENCE_CARDS.load(Path(folder))
        files = REFERENCE_CARDS.files(card, Path(folder))
        entries = [files.find(shard) for shard in manifest.shards]
        shard = files.opener(entries, lambda entry: layout_of(entry, card.embedding_dim))
        for number, entry in enumerate(entries):
            _check_norms(shard(number), shard=entry.shard, folder=Path(folder))
        return cls(card, manifest.offsets, shard)

    def gather(self, sample_ids: Int64[Tensor, " batch"]) -> ReferenceEmbeddings:
        """Look up the embeddings of some samples, in their order, on the CPU.

        Embeddings that are not finite count as absent: nothing of the loss would survive one.

        Raises:
            IndexError: an id is not in the manifest.
            ValueError: there are no ids, or a row's block of the file is damaged.
        """
        if len(sample_ids) == 0:
            raise ValueError("gather needs at least one sample id")
        located = locate(sample_ids, self._offsets)
        parts = []
        for part in located:
            shard = self._shard(part.shard)
            parts.append([shard.rows(name, part.rows) for name in TENSORS])
        image, text, present = (in_order(located, rows) for rows in zip(*parts, strict=True))
        image, text = image.float(), text.float()
        present = present & image.isfinite().all(dim=1) & text.isfinite().all(dim=1)
        return ReferenceEmbeddings(image, text, present).zero_where_absent()

    @property
    def num_absent(self) -> int:
        """Number of samples without embeddings."""
        return sum(int((~self.present_in(shard)).sum()) for shard in range(self.num_shards))

    def present_in(self, shard: int) -> Bool[Tensor, " rows"]:
        """Mark the rows of a shard with embeddings, finite or not."""
        return self._shard(shard).whole("present")

    def similarities_in(self, shard: int) -> Float32[Tensor, " rows"]:
        """Compute `R_ii`, the cosine of image and text, of each row; NaN where there is none."""
        image, text, present = map(self._shard(shard).whole, TENSORS)
        blocks = zip(image.split(ROWS_READ), text.split(ROWS_READ), strict=True)
        cosines = [(image.float() * text.float()).sum(dim=1) for image, text in blocks]
        found = torch.cat(cosines) if cosines else torch.empty(0)
        return found.where(present & found.isfinite(), torch.nan)


def identity_differences(stored: dict[str, str], given: dict[str, str]) -> list[str]:
    """Describe the differences of two models' identities."""
    return [
        f"{name} {stored.get(name)!r}, not {given.get(name)!r}"
        for name in sorted(stored.keys() | given.keys())
        if stored.get(name) != given.get(name)
    ]


def has_unit_norm(embeddings: Float[Tensor, "rows dim"]) -> Bool[Tensor, " rows"]:
    """Mark the rows with norm one, up to the rounding of float16; false for NaN."""
    return (embeddings.float().norm(dim=-1) - 1).abs() <= NORM_TOLERANCE


def _check_norms(file: ShardFile, *, shard: str, folder: Path) -> None:
    rows = file.whole("present").nonzero().squeeze(1)
    rows = rows[:: max(1, len(rows) // NORM_CHECKS)]
    for name in ("image", "text"):
        stored = file.tensors[name].values  # without their blocks, which would all be read
        wrong = rows[~has_unit_norm(stored[rows])]
        if len(wrong) > 0:
            raise ValueError(
                f"row {int(wrong[0])} of the {name} embeddings of shard {shard} in {folder} has "
                f"norm {float(stored[wrong[0]].float().norm()):.4g}, not 1; {REMEDY} in an empty "
                "folder"
            )
