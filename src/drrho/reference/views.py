"""Stored embeddings of several views of a data set: a store for each view."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from jaxtyping import Bool, Float32, Int64
from torch import Tensor

from drrho.data.manifest import Manifest
from drrho.data.views import Views
from drrho.reference.store import (
    FILE_NAME,
    ReferenceEmbeddings,
    ReferenceStore,
    identity_differences,
)


def view_folder(folder: Path, number: int) -> Path:
    """Where in a reference's folder the store of a view lies."""
    return folder / f"view-{number:03d}"


@dataclass(frozen=True, kw_only=True)
class ReferenceViews:
    """A reference's embeddings by sample and view.

    Attributes:
        stores: one for each view, or the only one.
        views: what is stored; None is of samples as they are.
    """

    stores: Sequence[ReferenceStore]
    views: Views | None = None

    @classmethod
    def open(
        cls, folder: str | Path, manifest: Manifest, *, views: Views | None
    ) -> "ReferenceViews":
        """Attaches the embeddings in a folder to the samples of a manifest.

        Raises:
            FileNotFoundError: they are not there, or not of all views.
            ValueError: as `ReferenceStore.open`; or they are of other views.
        """
        folder = Path(folder)
        if views is None:
            if not (folder / FILE_NAME).exists() and view_folder(folder, 0).exists():
                raise ValueError(
                    f"{folder} holds embeddings of views: set loading.views to what they are of, "
                    f"as {view_folder(folder, 0) / FILE_NAME} says"
                )
            return cls(stores=[ReferenceStore.open(folder, manifest)])
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
        return cls(stores=stores, views=views)

    @property
    def identity(self) -> dict[str, str]:
        """Of the reference; of several views the first, and how many there are."""
        first = self.stores[0].identity
        return first if self.views is None else first | {"views": str(self.views.count)}

    @property
    def embedding_dim(self) -> int:
        return self.stores[0].embedding_dim

    @property
    def num_shards(self) -> int:
        """Of the data set."""
        return self.stores[0].num_shards

    def present_in(self, shard: int) -> Bool[Tensor, " rows"]:
        """Which rows of a shard have embeddings of every view, finite or not."""
        return torch.stack([store.present_in(shard) for store in self.stores]).all(dim=0)

    def similarities_in(self, shard: int) -> Float32[Tensor, " rows"]:
        """`R_ii` of each row of a shard, the mean over the views; NaN where one is missing."""
        return torch.stack([store.similarities_in(shard) for store in self.stores]).mean(dim=0)

    @property
    def num_absent(self) -> int:
        """Samples without embeddings; of several views, pairs of sample and view."""
        return sum(store.num_absent for store in self.stores)

    def gather(
        self, sample_ids: Int64[Tensor, " batch"], views: Int64[Tensor, " batch"] | None = None
    ) -> ReferenceEmbeddings:
        """The embeddings of some samples, each of the view that it is, as `ReferenceStore.gather`.

        Raises:
            ValueError: `views` is given where there are none, or the other way round.
        """
        if (views is None) != (self.views is None):
            raise ValueError(f"views = {views} does not fit a reference with views {self.views}")
        if views is None:
            return self.stores[0].gather(sample_ids)
        rows = [(views == number).nonzero().squeeze(1) for number in range(len(self.stores))]
        found = [
            store.gather(sample_ids[chosen])
            for store, chosen in zip(self.stores, rows, strict=True)
            if len(chosen) > 0
        ]
        # Where each sample stands among those that were gathered view by view.
        places = torch.cat(rows).argsort()
        return replace(
            found[0],
            image=torch.cat([part.image for part in found])[places],
            text=torch.cat([part.text for part in found])[places],
            present=torch.cat([part.present for part in found])[places],
        )
