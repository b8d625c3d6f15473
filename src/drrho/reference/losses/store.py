"""Losses of reference models on disk, computed once, looked up by sample id during training.

A folder holds several references, each in a folder of its name: `losses.json` and one safetensors
file per shard. Losses are in float32, as their difference to the target's losses counts.

    store = LossStore.open("losses", manifest, reference="resnet50")
    steered = drrho_loss(losses, store.gather(sample_ids), index=sample_ids)

`LossWriter` writes them; `drrho.data.items` makes the manifest of data that are no tar files. They
need no extra.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import torch
from jaxtyping import Bool, Float32, Int64
from torch import Tensor

from drrho.data.manifest import Manifest
from drrho.reference.rows import RowsOfShard, in_order, locate
from drrho.reference.shard_files import CardKind, Layout, ShardEntry, ShardFile, ShardFiles

LossUnit = Literal["sample", "token"]

FILE_NAME = "losses.json"
REMEDY = "write them with `LossWriter`"


@dataclass(frozen=True, kw_only=True)
class LossCard:
    """Contents of `losses.json`: what computed the losses, and the shards they belong to.

    Attributes:
        identity: description of the model, its weights and its loss.
        unit: whether a sample has one loss, or each of its tokens.
        shards: in the order in which their losses were begun.
        version: version of the format; from 2 on files have checksums.
    """

    identity: str
    unit: LossUnit
    shards: tuple[ShardEntry, ...]
    version: int = 2

    def __post_init__(self):
        if not self.identity:
            raise ValueError("identity must say what computed the losses, got an empty string")
        if self.unit not in get_args(LossUnit):
            raise ValueError(f"unit must be 'sample' or 'token', got {self.unit!r}")

    @property
    def model(self) -> dict[str, str]:
        """Label of every shard file."""
        return {"identity": self.identity, "unit": self.unit}


LOSS_CARDS = CardKind(
    card=LossCard,
    file_name=FILE_NAME,
    header={"format": "drrho losses", "dtype": "float32"},
    noun="losses",
    remedy=REMEDY,
)


@dataclass(frozen=True, kw_only=True)
class ShardLosses:
    """Losses of one shard.

    Attributes:
        losses: row by row, in the unit of the reference's loss. One for each row, NaN where there
            is none; or one for each token of each row.
        written: whether a row has a loss, finite or not.
        offsets: the tokens of row r have `losses[offsets[r]:offsets[r + 1]]`; None where a sample
            has one loss.
    """

    losses: Float32[Tensor, " losses"]
    written: Bool[Tensor, " rows"]
    offsets: Int64[Tensor, " bounds"] | None

    @classmethod
    def none_of(cls, num_rows: int, *, unit: LossUnit) -> "ShardLosses":
        """Make a shard without losses."""
        tokens = unit == "token"
        return cls(
            losses=torch.empty(0) if tokens else torch.full((num_rows,), math.nan),
            written=torch.zeros(num_rows, dtype=torch.bool),
            offsets=torch.zeros(num_rows + 1, dtype=torch.int64) if tokens else None,
        )


def save_losses(files: ShardFiles, entry: ShardEntry, losses: ShardLosses) -> None:
    """Write the losses of one shard, as `ShardFiles.save`."""
    tensors = {"losses": losses.losses, "written": losses.written}
    if losses.offsets is not None:
        tensors["offsets"] = losses.offsets
    files.save(entry, tensors, notes={})


def load_losses(files: ShardFiles, entry: ShardEntry, *, unit: LossUnit) -> ShardLosses:
    """Load the losses of one shard and check them whole; errors as `ShardFiles.open`."""
    file = files.open(entry, layout_of(entry, unit=unit))
    check_offsets(files, entry, file)
    found = {name: file.whole(name) for name in file.tensors}
    return ShardLosses(
        losses=found["losses"], written=found["written"], offsets=found.get("offsets")
    )


def layout_of(entry: ShardEntry, *, unit: LossUnit) -> Layout:
    """Return the types and shapes of the tensors of a shard's file."""
    rows = entry.num_samples
    written = {"written": (torch.bool, (rows,))}
    if unit == "sample":
        return {"losses": (torch.float32, (rows,)), **written}
    return {
        "losses": (torch.float32, (-1,)),
        **written,
        "offsets": (torch.int64, (rows + 1,)),
    }


def check_offsets(files: ShardFiles, entry: ShardEntry, file: ShardFile) -> None:
    """Raise ValueError unless the offsets of a shard's tokens, if it has any, fit its losses."""
    if "offsets" not in file.tensors:
        return
    offsets, num_losses = file.whole("offsets"), len(file.tensors["losses"].values)
    if offsets[0] != 0 or (offsets.diff() < 0).any() or offsets[-1] != num_losses:
        raise files.damaged(entry, f"its offsets do not ascend from 0 to {num_losses}")


def load_losses_so_far(files: ShardFiles, entry: ShardEntry, *, unit: LossUnit) -> ShardLosses:
    """Load the losses of one shard; a file that was not written yet is a shard without losses."""
    if not files.exists(entry):
        return ShardLosses.none_of(entry.num_samples, unit=unit)
    return load_losses(files, entry, unit=unit)


def references_in(folder: str | Path) -> list[str]:
    """List the names of the references whose losses a folder holds."""
    return sorted(card.parent.name for card in Path(folder).glob(f"*/{FILE_NAME}"))


class LossStore:
    """One reference's losses of a data set by sample id. Made by `LossStore.open`.

    Attributes:
        identity: description of what computed them.
        unit: "sample", for `gather`, or "token", for `gather_tokens`.
    """

    def __init__(
        self, card: LossCard, offsets: list[int], shard: Callable[[int], ShardFile]
    ) -> None:
        self.identity = card.identity
        self.unit: LossUnit = card.unit
        self._offsets = torch.tensor(offsets)
        self._shard = shard

    @classmethod
    def open(cls, folder: str | Path, manifest: Manifest, *, reference: str) -> "LossStore":
        """Open a reference's losses of the samples of a manifest, some or all of the stored shards.

        A sample without a loss is no error here.

        Raises:
            FileNotFoundError: there is no such reference, or the file of a shard is missing.
            ValueError: there are no losses of a shard, it was changed since they were computed,
                or a file is not what `losses.json` says.
        """
        path = Path(folder) / reference
        if not LOSS_CARDS.exists(path):
            known = ", ".join(references_in(folder)) or "none"
            raise FileNotFoundError(
                f"{folder} holds no losses of a reference {reference!r}; it holds losses of: "
                f"{known}. Take one of these, or {REMEDY}"
            )
        card = LOSS_CARDS.load(path)
        files = LOSS_CARDS.files(card, path)
        entries = [files.find(shard) for shard in manifest.shards]
        shard = files.opener(entries, lambda entry: layout_of(entry, unit=card.unit))
        for number, entry in enumerate(entries):
            check_offsets(files, entry, shard(number))
        return cls(card, manifest.offsets, shard)

    def gather(self, sample_ids: Int64[Tensor, " batch"]) -> Float32[Tensor, " batch"]:
        """Look up the losses of some samples, on the device of the ids; NaN where there is none.

        Raises:
            IndexError: an id is not in the manifest.
            ValueError: what is stored are losses of tokens.
        """
        self._require("sample", "gather_tokens(sample_ids, mask)")
        if len(sample_ids) == 0:
            return torch.empty(0, device=sample_ids.device)
        located = locate(sample_ids, self._offsets)
        losses = [self._shard(part.shard).rows("losses", part.rows) for part in located]
        return in_order(located, losses).to(sample_ids.device)

    def gather_tokens(
        self, sample_ids: Int64[Tensor, " batch"], mask: Bool[Tensor, "samples length"]
    ) -> Float32[Tensor, "samples length"]:
        """Look up the losses of the tokens of some samples, on the device of the mask.

        The k-th stored loss of a sample goes where the k-th True of its row is; all else is
        NaN. So the padding may differ from the batch in which the losses were computed.

        Args:
            sample_ids: one for each row of the mask.
            mask: tokens that count; they must be those that counted when it was written.

        Raises:
            IndexError: an id is not in the manifest.
            ValueError: a sample has another number of losses than tokens that count, ids and
                mask differ in length, or what is stored are losses of samples.
        """
        self._require("token", "gather(sample_ids)")
        if len(mask) != len(sample_ids):
            raise ValueError(f"mask has {len(mask)} rows for {len(sample_ids)} sample ids")
        selected = mask.cpu()
        counts = selected.sum(dim=1).tolist()
        pieces = [torch.full((count,), math.nan) for count in counts]
        for part in locate(sample_ids, self._offsets):
            for place, stored in zip(part.places.tolist(), self._tokens(part), strict=True):
                if stored is None:
                    continue
                if len(stored) != counts[place]:
                    raise ValueError(
                        f"sample {int(sample_ids[place])} has {len(stored)} stored losses of "
                        f"tokens, but the mask counts {counts[place]}; tokenize, truncate and "
                        "mask it as when they were stored, or store them anew"
                    )
                pieces[place] = stored
        losses = torch.full(mask.shape, math.nan)
        losses[selected] = torch.cat([torch.empty(0), *pieces])
        return losses.to(mask.device)

    def _tokens(self, part: RowsOfShard) -> list[Tensor | None]:
        """List the token losses of each sample of the part; None where none were written."""
        shard = self._shard(part.shard)
        offsets = shard.whole("offsets")
        ranges = zip(offsets[part.rows].tolist(), offsets[part.rows + 1].tolist(), strict=True)
        places = [torch.arange(start, end) for start, end in ranges]
        losses = shard.rows("losses", torch.cat(places)).split([len(place) for place in places])
        written = shard.rows("written", part.rows).tolist()
        return [it if found else None for it, found in zip(losses, written, strict=True)]

    def _require(self, unit: LossUnit, other: str) -> None:
        if self.unit != unit:
            raise ValueError(
                f"the losses of {self.identity} are one for each {self.unit}, not for each {unit}; "
                f"look them up with {other}"
            )
