"""Stored embeddings by sample id, of one reference or several, with or without views."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float32, Int64
from torch import Tensor

from drrho.data.indexing import open_manifest
from drrho.data.manifest import Manifest
from drrho.data.views import Views
from drrho.reference.store import (
    FILE_NAME,
    ReferenceEmbeddings,
    ReferenceStore,
    identity_differences,
)


@dataclass(frozen=True)
class Reference:
    r"""Stored embeddings of a data set, of one reference or of several that steer as one.

    Several references have the similarities `R = sum_m w_m R^m`. The inner product of concatenated
    embeddings is the sum of inner products, so they equal one reference with the embeddings
    `[sqrt(w_1) e^1, ..., sqrt(w_M) e^M]`. A sample has embeddings if it has them of every one.

    Attributes:
        stores: for each reference a store for each view; one store without views.
        weights: w_m, positive. Weights that add up to one keep the embeddings at unit length.
        views: the views that are stored; None means samples as they are.

    Source: docs/mathematics.md, "Several references".
    """

    stores: Sequence[Sequence[ReferenceStore]]
    weights: tuple[float, ...]
    views: Views | None = None

    def __post_init__(self):
        check_weights(self.stores, self.weights)

    @property
    def identity(self) -> dict[str, Any]:
        """Models, views and weights of what is stored, wherever it is."""
        # With several views, the identity of the first one, and how many there are.
        views = {} if self.views is None else {"views": str(self.views.count)}
        models = [stores[0].identity | views for stores in self.stores]
        if self.weights == (1.0,):
            return models[0]
        return {"ensemble": models, "weights": list(self.weights)}

    @property
    def trained_on(self) -> set[str] | None:
        """Contents of the shards that any of the models was trained on; None if all are unknown."""
        known = [stores[0].trained_on for stores in self.stores]
        found = [set(shards) for shards in known if shards is not None]
        return set().union(*found) if found else None

    @property
    def embedding_dim(self) -> int:
        """Dimension of the concatenated embeddings."""
        return sum(stores[0].embedding_dim for stores in self.stores)

    def gather(
        self, sample_ids: Int64[Tensor, " batch"], views: Int64[Tensor, " batch"] | None = None
    ) -> ReferenceEmbeddings:
        """Look up the embeddings of some samples, in their order, on the CPU.

        Args:
            views: the view of each sample, only where views are stored.

        Returns:
            Embeddings of norm `sqrt(sum w)`; zero where one is absent or not finite.

        Raises:
            IndexError: an id is not in the manifest.
            ValueError: there are no ids, or `views` does not fit what is stored.
        """
        if (views is None) != (self.views is None):
            raise ValueError(f"views = {views} does not fit a reference with views {self.views}")
        found = [_gather_views(stores, sample_ids, views) for stores in self.stores]
        if self.weights == (1.0,):
            return found[0]
        present = torch.stack([embeddings.present for embeddings in found]).all(dim=0)
        roots = [math.sqrt(weight) for weight in self.weights]
        image, text = (
            torch.cat([r * e for r, e in zip(roots, side, strict=True)], dim=1)
            for side in ([e.image for e in found], [e.text for e in found])
        )
        return ReferenceEmbeddings(image, text, present).zero_where_absent()

    @property
    def num_absent(self) -> int:
        """Number of samples without embeddings; with views, of pairs of sample and view."""
        return sum(
            int((~_all_present(of_view, shard)).sum())
            for of_view in zip(*self.stores, strict=True)
            for shard in range(of_view[0].num_shards)
        )

    def present_in(self, shard: int) -> Bool[Tensor, " rows"]:
        """Mark the rows of a shard with embeddings of every reference and view, finite or not."""
        return _all_present([store for stores in self.stores for store in stores], shard)

    def similarities_in(self, shard: int) -> Float32[Tensor, " rows"]:
        """Compute `R_ii` of each row of a shard, the mean over views; NaN where one is absent."""
        weighted = [
            weight * torch.stack([store.similarities_in(shard) for store in stores]).mean(dim=0)
            for weight, stores in zip(self.weights, self.stores, strict=True)
        ]
        return torch.stack(weighted).sum(dim=0)


def open_reference(
    folders: str | Path | Sequence[str | Path],
    data: str | Path | Manifest,
    *,
    weights: Sequence[float] | None = None,
    views: Views | None = None,
) -> Reference:
    """Open stored embeddings of a data set, to be read by sample id.

        reference = open_reference("reference", "train.json")
        reference.gather(sample_ids).image

    Args:
        folders: one folder that `drrho reference precompute` or `import` wrote, or several whose
            similarities are added.
        data: a manifest or its path, or what `drrho index` takes.
        weights: one for each folder; None takes the mean.
        views: the views that were stored; None means samples as they are.

    Raises:
        FileNotFoundError: no embeddings are there, or not of all views.
        ValueError: they are of other data or other views, a file is damaged, or the weights do
            not fit.
    """
    folders = [folders] if isinstance(folders, str | Path) else list(folders)
    weights = [1 / len(folders)] * len(folders) if weights is None else weights
    check_weights(folders, weights)
    manifest = data if isinstance(data, Manifest) else open_manifest(data)
    stores = [_open_views(Path(folder).expanduser(), manifest, views) for folder in folders]
    return Reference(stores, tuple(weights), views)


def view_folder(folder: Path, number: int) -> Path:
    """Return the place of a view's store in the folder of a reference."""
    return folder / f"view-{number:03d}"


def check_weights(references: Sequence[object], weights: Sequence[float]) -> None:
    """Raise ValueError unless there is a positive weight for each reference."""
    if not references or len(weights) != len(references):
        raise ValueError(
            f"weights must be as many as references, {len(references)}, got {tuple(weights)}"
        )
    if not all(0 < weight < math.inf for weight in weights):
        raise ValueError(f"weights of references must be positive and finite, got {tuple(weights)}")


def _open_views(folder: Path, manifest: Manifest, views: Views | None) -> list[ReferenceStore]:
    """Open the store of each view of a reference, or its only one."""
    if views is None:
        if not (folder / FILE_NAME).exists() and view_folder(folder, 0).exists():
            raise ValueError(
                f"{folder} holds embeddings of views: set loading.views to what they are of, "
                f"as {view_folder(folder, 0) / FILE_NAME} says"
            )
        return [ReferenceStore.open(folder, manifest)]
    folders = [view_folder(folder, number) for number in range(views.count)]
    if missing := [path for path in folders if not (path / FILE_NAME).exists()]:
        raise FileNotFoundError(
            f"{missing[0]} holds no embeddings, and loading.views.count = {views.count}; run "
            f"`drrho reference precompute --views {views.count}`, which adds what is missing"
        )
    stores = [ReferenceStore.open(path, manifest) for path in folders]
    for number, (store, path) in enumerate(zip(stores, folders, strict=True)):
        expected = store.identity | views.view(number).identity
        if differing := identity_differences(store.identity, expected):
            raise ValueError(
                f"{path} holds embeddings of another view than loading.views: "
                f"{'; '.join(differing)}"
            )
    return stores


def _gather_views(
    stores: Sequence[ReferenceStore],
    sample_ids: Int64[Tensor, " batch"],
    views: Int64[Tensor, " batch"] | None,
) -> ReferenceEmbeddings:
    """Look up samples in the stores of one reference, each in the store of its view."""
    if views is None:
        return stores[0].gather(sample_ids)
    rows = [(views == number).nonzero().squeeze(1) for number in range(len(stores))]
    found = [
        store.gather(sample_ids[chosen])
        for store, chosen in zip(stores, rows, strict=True)
        if len(chosen) > 0
    ]
    # The place of each sample in the rows that were gathered view by view.
    places = torch.cat(rows).argsort()
    return ReferenceEmbeddings(*map(torch.cat, zip(*found, strict=True))).keep(places)


def _all_present(stores: Sequence[ReferenceStore], shard: int) -> Bool[Tensor, " rows"]:
    return torch.stack([store.present_in(shard) for store in stores]).all(dim=0)
