"""Live references: models that embed the pairs of a batch in training, instead of a store.

A live model embeds what a store of it would hold, float16 included: where both embed the same
pixels and words, they steer alike to the last bit that the arithmetic of another batch size leaves.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from jaxtyping import Bool, Int64
from torch import Tensor

from drrho.data.batch import Batch
from drrho.data.caching.transforms import behind_augmentation
from drrho.data.loading import Loading, Position, Transform, caches_of, training_batches
from drrho.data.manifest import Manifest
from drrho.encoding.encoder import EmbeddingModel, Precision
from drrho.models.build import Model, build_model, named_model
from drrho.models.seen import training_data_of
from drrho.reference.judgement import Judgement, judge_model
from drrho.reference.store import ReferenceEmbeddings
from drrho.runtime.checks import require_at_least
from drrho.runtime.progress import announce
from drrho.runtime.randomness import preserved_generators

PREFIX = "live:"
IMAGES = "live"  # the name of the choice of images in the identity of a live model


@dataclass(frozen=True, kw_only=True)
class Live:
    """Settings of the models that embed in training: those whose names begin with "live:".

    Attributes:
        precision: floating-point type of their forward passes.
        images: image that they embed: "own" is the sample's image through their own transform, as
            a store has it; "target" is the target's augmented image, which then goes through their
            own transform.
        batch_size: pairs that a process embeds at once.
    """

    precision: Precision = "float32"
    images: Literal["own", "target"] = "own"
    batch_size: int = 256

    def __post_init__(self):
        require_at_least(1, **{"live.batch_size": self.batch_size})


def is_live(name: str) -> bool:
    """Whether the name of a reference or teacher names a model, not a store."""
    return name.startswith(PREFIX)


def model_named(name: str) -> Model:
    """Find the model of a name such as "live:run:runs/other" or "live:ViT-B-32@TAG_OR_FILE".

    Raises:
        FileNotFoundError: it can only be a folder, and there is none.
        ValueError: its weights would be random.
    """
    model = named_model(name.removeprefix(PREFIX))
    model.require_trained()
    return model


class LiveModel:
    """A frozen model that embeds the pairs of batches, as a store of it would hold them.

    Args:
        name: as recipes name it, with the prefix.
    """

    def __init__(self, name: str, config: Live, *, device: torch.device) -> None:
        model = model_named(name)
        towers = build_model(model, seed=0)
        self.name, self.config = name, config
        self.encoder = EmbeddingModel.frozen(towers, device=device, precision=config.precision)
        self.trained_on = training_data_of(model)

    @property
    def identity(self) -> dict[str, Any]:
        """Model, precision and choice of images."""
        return self.encoder.identity | {IMAGES: self.config.images}

    @property
    def embedding_dim(self) -> int:
        """Dimension of the embeddings."""
        return self.encoder.embedding_dim

    @property
    def num_parameters(self) -> int:
        """Number of parameters, all of them frozen."""
        return sum(parameter.numel() for parameter in self.encoder.module.parameters())

    def judge(self, manifest: Manifest) -> Judgement | None:
        """Judge the model on a few pairs of a data set, each encoded as it is."""
        return judge_model(self.encoder, manifest, trained_on=self.trained_on)

    def batches(
        self,
        manifest: Manifest,
        *,
        augmentation: Transform,
        loading: Loading,
        position: Position,
        beside: str | None,
    ) -> Iterator[Batch]:
        """Yield what the model embeds of each batch of training.

        A batch is a function of (manifest, seed, step), so this reads the samples that the target
        reads, with the same views and captions, and draws the same crops.

        Args:
            augmentation: the target's training transform, used where the model embeds the target's
                images.
            beside: place of the caches, as `caches_of` takes it.

        Raises:
            ValueError: as `behind_augmentation`, or as `training_batches`.
        """
        transform = self.encoder.transform
        if self.config.images == "target":
            try:
                transform = behind_augmentation(transform, augmentation)
            except ValueError as error:
                raise ValueError(f"live.images = 'target': {error}; use 'own'") from error
        tokenizer, config = self.encoder.tokenizer, loading
        if self.config.images == "own":  # as for a store: decoded whole, and resized by Pillow
            config = replace(loading, draft=False, resize="pillow")
        caches = caches_of(manifest, transform, tokenizer=tokenizer, config=config, beside=beside)
        if position.share[0] == 0:
            announce(f"{self.name}: {caches.note}")
        return training_batches(
            manifest,
            transform,
            tokenizer=tokenizer,
            config=config,
            caches=caches,
            position=position,
        )

    def embed(self, batch: Batch) -> ReferenceEmbeddings:
        """Embed the pairs of a batch, on the model's device.

        Raises:
            ValueError: an embedding is nan or infinite.
        """
        sizes = range(0, len(batch.sample_ids), self.config.batch_size)
        parts = [batch.take(slice(start, start + self.config.batch_size)) for start in sizes]
        with preserved_generators():  # a model that draws moves no number of the target's
            found = [self.encoder.encode_inputs(part.images, part.tokens) for part in parts]
        if not found:
            nothing = torch.empty(0, self.embedding_dim, device=self.encoder.device)
            return ReferenceEmbeddings(nothing, nothing, nothing.new_empty(0, dtype=torch.bool))
        image, text = (torch.cat(side).half().float() for side in zip(*found, strict=True))
        present = image.isfinite().all(dim=1) & text.isfinite().all(dim=1)
        if not present.all():
            ids = batch.sample_ids[~present.to(batch.sample_ids.device)].tolist()
            raise ValueError(
                f"{self.name} gives embeddings that are not finite, in {self.config.precision}, of "
                f"samples {ids[:5]}; a store would leave such pairs out: `drrho reference "
                "precompute`, or set live.precision = 'float32'"
            )
        return ReferenceEmbeddings(image, text, present)


@dataclass(frozen=True)
class LiveInputs:
    """What a live model embeds: pairs, prepared for it.

    Attributes:
        places: what the embeddings are for: 0 the reference, k the k-th teacher.
    """

    model: LiveModel
    batch: Batch
    places: tuple[int, ...]

    def to(self, device: torch.device) -> "LiveInputs":
        """Move to a device."""
        return replace(self, batch=self.batch.to(device))

    def keep(self, rows: Bool[Tensor, " batch"] | Int64[Tensor, " kept"]) -> "LiveInputs":
        """Select some of the pairs."""
        return replace(self, batch=self.batch.take(rows))

    def embed(self) -> ReferenceEmbeddings:
        """Embed them."""
        return self.model.embed(self.batch)
