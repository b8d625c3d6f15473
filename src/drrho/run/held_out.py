"""How far loss and excess losses vary over held-out pairs, for several references at once."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from drrho.data.loading import evaluation_batches
from drrho.data.manifest import Manifest
from drrho.evaluation.embed import embed_images, embed_texts
from drrho.evaluation.variance import gap_variance
from drrho.models.two_tower import TwoTower
from drrho.reference.store import ReferenceStore


class HeldOutVariances:
    """Of a model, on data whose embeddings by references are stored.

    Args:
        manifest: the held-out pairs.
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

    def __call__(
        self, model: TwoTower, *, device: torch.device, batch_size: int, workers: int = 0
    ) -> dict[str, float]:
        """`loss_variance`, and `excess_loss_variance/NAME` for each reference.

        All of the same pairs: those that can be decoded and that every reference has.
        """
        module: Any = model.module
        images = embed_images(
            evaluation_batches(
                self._manifest,
                model.eval_transform,
                batch_size=batch_size,
                workers=workers,
                parts=("caption",),
            ),
            lambda pixels: module.encode_image(pixels.to(device), normalize=True),
        )
        texts = embed_texts(
            [captions[0] for captions in images.captions],
            lambda texts: module.encode_text(model.tokenizer(texts).to(device), normalize=True),
            batch_size=batch_size,
        )
        found = {name: store.gather(images.sample_ids) for name, store in self._stores.items()}
        present = torch.ones(len(texts), dtype=torch.bool)
        for stored in found.values():
            present &= stored.present
        target = (images.image_embeddings[present], texts[present])
        return {"loss_variance": gap_variance(target)} | {
            f"excess_loss_variance/{name}": gap_variance(
                target, (stored.image[present], stored.text[present])
            )
            for name, stored in found.items()
        }
