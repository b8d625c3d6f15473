"""How far loss and excess losses vary over held-out pairs, for several references at once."""

from collections.abc import Sequence
from pathlib import Path

import torch

from drrho.data.manifest import Manifest
from drrho.encoding.shared import Encoder
from drrho.evaluation.metrics.variance import gap_variance
from drrho.reference.store import ReferenceStore


class HeldOutVariances:
    """Variances of a model's losses on data whose embeddings by references are stored.

    Args:
        manifest: manifest of the held-out pairs.
        references: folders written by `drrho reference precompute` of the same data.

    Raises:
        ValueError: two folders have the same name, or one does not belong to the data.
    """

    def __init__(self, manifest: Manifest, references: Sequence[str]) -> None:
        names = [Path(folder).name for folder in references]
        if len(set(names)) < len(names):
            raise ValueError(
                f"evaluation.references are told apart by the names of their folders, which must "
                f"differ; got {names}"
            )
        self._manifest = manifest
        self._stores = {
            name: ReferenceStore.open(folder, manifest)
            for name, folder in zip(names, references, strict=True)
        }

    @property
    def identities(self) -> dict[str, dict[str, str]]:
        """Identify the models of the stores, by the names of their folders."""
        return {name: store.identity for name, store in self._stores.items()}

    def __call__(self, encoder: Encoder) -> dict[str, float]:
        """Compute `loss_variance` and each `excess_loss_variance/NAME`; a collective.

        All are of the same pairs: those that can be decoded and that every reference has.
        """
        images = encoder.images(self._manifest, name="held-out pairs", parts=("caption",))
        firsts = [several[0] for several in images.own_captions]
        texts = encoder.texts(
            [one for part in encoder.processes.all_gather_object(firsts) for one in part]
        )
        ids = encoder.sample_ids(images)
        found = {name: store.gather(ids) for name, store in self._stores.items()}
        present = torch.ones(len(texts), dtype=torch.bool)
        for stored in found.values():
            present &= stored.present
        target = (images.embeddings[present], texts[present])
        return {"loss_variance": gap_variance(target)} | {
            f"excess_loss_variance/{name}": gap_variance(
                target, (stored.image[present], stored.text[present])
            )
            for name, stored in found.items()
        }
