"""Several references as one: their similarities, added up with weights."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float32, Int64
from torch import Tensor

from drrho.data.manifest import Manifest
from drrho.data.views import Views
from drrho.reference.store import ReferenceEmbeddings
from drrho.reference.views import ReferenceViews


@dataclass(frozen=True)
class ReferenceEnsemble:
    """Stored references that are read as one of the similarities `R = sum_m w_m R^m`.

    The inner product of concatenated embeddings is the sum of inner products, so the ensemble is
    the reference with the embeddings `[sqrt(w_1) e^1, ..., sqrt(w_M) e^M]`, and no loss knows that
    it is one. Its dimension is the sum of the dimensions. A sample has embeddings if all members
    have.

    Attributes:
        members: of one data set.
        weights: w_m, positive. With `1 / M` it is the mean of cosines; weights that add up to one
            keep the embeddings at unit length.

    Raises:
        ValueError: there are not as many weights as members, or one is not positive.

    Source: docs/mathematics.md, "Several references".
    """

    members: tuple[ReferenceViews, ...]
    weights: tuple[float, ...]

    def __post_init__(self):
        check_weights(self.members, self.weights)

    @classmethod
    def open(
        cls,
        folders: Sequence[str | Path],
        manifest: Manifest,
        *,
        weights: Sequence[float] | None = None,
        views: Views | None = None,
    ) -> "ReferenceEnsemble":
        """Attaches the embeddings in each folder; errors as `ReferenceViews.open`.

        Args:
            folders: written by `drrho reference precompute` or `import`.
            manifest: the data set.
            weights: one for each folder; None takes the mean.
            views: what all of them are of.
        """
        weights = [1 / len(folders)] * len(folders) if weights is None else weights
        members = tuple(ReferenceViews.open(folder, manifest, views=views) for folder in folders)
        return cls(members, tuple(weights))

    @property
    def identity(self) -> dict[str, Any]:
        """What the members are, wherever they lie, and their weights."""
        return {"ensemble": [m.identity for m in self.members], "weights": list(self.weights)}

    @property
    def embedding_dim(self) -> int:
        return sum(member.embedding_dim for member in self.members)

    def gather(
        self, sample_ids: Int64[Tensor, " batch"], views: Int64[Tensor, " batch"] | None = None
    ) -> ReferenceEmbeddings:
        """The embeddings of some samples, in their order, on the CPU; of norm `sqrt(sum w)`.

        Raises:
            IndexError: an id is not in the manifest.
            ValueError: there are no ids, or as `ReferenceViews.gather`.
        """
        found = [member.gather(sample_ids, views) for member in self.members]
        present = torch.stack([embeddings.present for embeddings in found]).all(dim=0)
        roots = [math.sqrt(weight) for weight in self.weights]
        image, text = (
            torch.cat([r * e for r, e in zip(roots, side, strict=True)], dim=1)
            for side in ([e.image for e in found], [e.text for e in found])
        )
        return ReferenceEmbeddings(
            image=image.where(present[:, None], 0.0),
            text=text.where(present[:, None], 0.0),
            present=present,
        )

    @property
    def num_absent(self) -> int:
        """Samples of the data set of which a member has no embeddings."""
        shards = range(self.members[0].num_shards)
        return sum(int((~self.present_in(shard)).sum()) for shard in shards)

    def present_in(self, shard: int) -> Bool[Tensor, " rows"]:
        """Which rows of a shard have embeddings by all members."""
        return torch.stack([member.present_in(shard) for member in self.members]).all(dim=0)

    def similarities_in(self, shard: int) -> Float32[Tensor, " rows"]:
        """`sum_m w_m R^m_ii` of each row of a shard; NaN where a member has no embeddings."""
        cosines = [member.similarities_in(shard) for member in self.members]
        return torch.stack([w * c for w, c in zip(self.weights, cosines, strict=True)]).sum(dim=0)


Reference = ReferenceViews | ReferenceEnsemble


def open_reference(
    folders: Sequence[str | Path],
    manifest: Manifest,
    *,
    weights: Sequence[float] | None = None,
    views: Views | None = None,
) -> Reference | None:
    """Stored embeddings in one folder, in several as one, or none; as `ReferenceEnsemble.open`."""
    match folders:
        case []:
            return None
        case [folder]:
            return ReferenceViews.open(folder, manifest, views=views)
        case _:
            return ReferenceEnsemble.open(folders, manifest, weights=weights, views=views)


def check_weights(members: Sequence[object], weights: Sequence[float]) -> None:
    """Raise ValueError unless there is a positive weight for each member."""
    if not members or len(weights) != len(members):
        raise ValueError(
            f"an ensemble of {len(members)} references needs as many weights, got {tuple(weights)}"
        )
    if not all(0 < weight < math.inf for weight in weights):
        raise ValueError(f"weights of references must be positive and finite, got {tuple(weights)}")
