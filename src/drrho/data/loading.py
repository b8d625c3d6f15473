"""Loading of batches of decoded samples.

The batch of a training step is a function of (manifest, seed, step) alone: to resume takes
nothing but the number of the step, and the number of worker processes changes nothing.
"""

from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Literal

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset, default_collate

from drrho.data.batch import Batch
from drrho.data.caching.caches import Caches, Mode, Tokenizer, Transform, open_caches
from drrho.data.caching.resizing import Resizer
from drrho.data.caching.transforms import SplitTransform, split_transform
from drrho.data.caching.visit import Visit
from drrho.data.manifest import Manifest
from drrho.data.order import epoch_order, steps_per_epoch
from drrho.data.reading.cache import OpenShards
from drrho.data.reading.images import UnusableSample, takes_texts, transformed
from drrho.data.reading.workers import load_in_order
from drrho.data.views import View, Views, transformed_view
from drrho.runtime.checks import require_at_least
from drrho.runtime.randomness import derived_seed, preserved_generators, seed_generators


@dataclass(frozen=True, kw_only=True)
class Loading:
    """Reading of the training data.

    Attributes:
        batch_size: samples in a batch over all processes, before unreadable ones are dropped.
        shuffle_window: number of shards shuffled together: more shards shuffle better, but are
            read farther apart.
        workers: worker processes that decode images; 0 decodes in the training process. The batches
            are the same for any number.
        captions: caption of a sample that has several: the "first", or a "random" one at every
            visit, drawn by (seed, epoch, sample id).
        views: fixed views of every sample to train on, those that a reference was stored for: one
            is drawn at each visit by (seed, epoch, sample id), followed by the model's evaluation
            transform. None uses the model's training transform.
        cache: place where images are cached after the fixed part of their transform, 3 bytes a
            pixel, and the token ids of first captions: in a "file" beside the manifest (or in
            `~/.cache/drrho`), which processes and later runs share; in "memory" of this process and
            its workers; "off" nowhere. "auto" takes a file where the images take at most a quarter
            of the memory and half of the disk that are free.
        draft: whether JPEGs are decoded at 1/2, 1/4 or 1/8 of their size where the transform needs
            no more pixels: faster, with slightly different pixels.
        resize: what resizes the target's images: "pillow", as in other tools, or "torch",
            PyTorch's kernels for 8-bit pixels: two to three times as fast, with pixels that
            differ by 1 of 255 here and there.

    Memory of a process: about (2 workers + 1) of its parts of a batch, decoded, 1 byte for each
    value (151 kB for an image of 3 x 224 x 224), or 4 where its transform does not end in
    torchvision's `ToTensor` and `Normalize`.
    """

    batch_size: int = 256
    shuffle_window: int = 8
    workers: int = 0
    captions: Literal["first", "random"] = "first"
    views: Views | None = None
    cache: Mode = "auto"
    draft: bool = False
    resize: Resizer = "pillow"

    def __post_init__(self):
        without = {
            "draft": self.draft,
            f"resize = {self.resize!r}": self.resize != "pillow",
            f"cache = {self.cache!r}": self.cache in ("file", "memory"),
        }
        name = next((name for name, given in without.items() if given), None)
        if self.views is not None and name is not None:
            raise ValueError(
                f"loading.{name} has no effect beside views, which are cropped from whole images; "
                "leave it out"
            )
        if self.views is not None and self.captions != "first":
            raise ValueError(
                f"captions = {self.captions!r} has no effect beside views, which choose the "
                "caption too: set views.captions"
            )
        require_at_least(1, batch_size=self.batch_size, shuffle_window=self.shuffle_window)
        require_at_least(0, workers=self.workers)


@dataclass(frozen=True, kw_only=True)
class Position:
    """Position in an endless stream of batches, and the share of a process.

    Attributes:
        seed: of the order and the random transforms.
        step: batches to pass over, without reading them.
        share: (k, K) means the k-th of K parts of every batch; parts differ in size by at most
            one. What belongs to a batch does not depend on K.
    """

    seed: int
    step: int = 0
    share: tuple[int, int] = (0, 1)

    def __post_init__(self):
        require_at_least(0, step=self.step)
        require_share(self.share)


def require_share(share: tuple[int, int]) -> None:
    """Raise ValueError if (k, K) is no share."""
    if not 0 <= share[0] < share[1]:
        raise ValueError(f"share must be (k, K) with 0 <= k < K, got {share}")


class NothingReadable(ValueError):
    """Error: no sample of a batch, or of a whole data set, could be decoded.

    Attributes:
        skipped: id and reason of each.
    """

    def __init__(self, message: str, *, skipped: tuple[tuple[int, str], ...]):
        super().__init__(message)
        self.skipped = skipped


def training_batches(
    manifest: Manifest,
    transform: Transform,
    *,
    tokenizer: Tokenizer,
    config: Loading,
    position: Position,
    caches: Caches | None = None,
) -> Iterator[Batch]:
    """Yield batches without end from a position on; each epoch in the order of `epoch_order`.

    Args:
        transform: image to tensor (3, H, W), after the view where there are views; what it draws
            from the global generators of torch, numpy and `random` is a function of (seed, epoch,
            sample id), and their states outside stay as they were.
        tokenizer: captions to token ids (B, L).
        caches: what is kept between visits (`caches_of`); None keeps nothing. The batches are the
            same.

    Images of a transform that ends in torchvision's `ToTensor` and `Normalize` have 8 bits until
    `Batch.to` normalises them.

    Raises:
        ValueError: an argument is out of range; or, while iterating, a shard is not what the
            manifest says, or no sample of a whole batch could be decoded (`NothingReadable`).
    """
    steps_per_epoch(manifest, batch_size=config.batch_size)  # raises if there is not one
    if position.share[1] > config.batch_size:
        raise ValueError(
            f"a batch of {config.batch_size} cannot be shared by {position.share[1]} processes; "
            "take a larger batch_size"
        )
    if caches is None:
        caches = Caches(split=split_transform(transform, resize=config.resize))
    _require_draft(config, caches.split)
    pairs = _TrainingPairs(
        shards=OpenShards(manifest),
        caches=caches,
        tokenizer=tokenizer,
        seed=position.seed,
        config=config,
    )
    plan = _training_plan(manifest, config, position)
    batches = iter(load_in_order(pairs, plan, workers=config.workers))
    # The share of one of several processes may be empty, where the batch is not.
    return _never_empty(batches) if position.share[1] == 1 else batches


def caches_of(
    manifest: Manifest,
    transform: Transform,
    *,
    tokenizer: Tokenizer,
    config: Loading,
    beside: str | None,
) -> Caches:
    """Open the caches of `training_batches`; errors as `open_caches`.

    Args:
        beside: manifest or folder beside which the files are kept; None keeps all in memory.
    """
    first = config.captions == "first" and config.views is None
    split = split_transform(transform, resize=config.resize)
    _require_draft(config, split)
    kept = split if config.views is None else replace(split, fixed=())  # views are not kept
    found = open_caches(
        manifest,
        kept,
        tokenizer if first else None,
        mode=config.cache,
        draft=config.draft,
        beside=beside,
    )
    return replace(found, split=split)


def _require_draft(config: Loading, split: SplitTransform) -> None:
    if config.draft and split.target is None:
        raise ValueError(
            "loading.draft has no effect where the transform does not begin with torchvision's "
            "Resize or RandomResizedCrop, which say how small an image may be decoded; leave it out"
        )


@dataclass(frozen=True, kw_only=True)
class _TrainingPairs(Dataset[Batch]):
    """Dataset of batches by (epoch, sample ids); empty if no sample of it can be decoded."""

    shards: OpenShards
    caches: Caches
    tokenizer: Tokenizer
    seed: int
    config: Loading

    def __getitem__(self, item: tuple[int, list[int]]) -> Batch:
        epoch, wanted = item
        split, views = self.caches.split, self.config.views
        places, images, captions, numbers, skipped = [], [], [], [], []
        visit = Visit(self.shards, self.caches, wanted, at_least=self._at_least)
        if visit.is_cached and views is None and not split.draws:
            return Batch(
                sample_ids=torch.tensor(wanted, dtype=torch.int64),
                images=visit.cached_pixels,
                tokens=visit.tokens(range(len(wanted)), [None] * len(wanted), self.tokenizer),
                skipped=(),
                normalization=split.normalization,
            )
        # What is drawn is a function of (seed, epoch, sample id); where nothing is, nothing is set.
        with preserved_generators() if split.draws else nullcontext():
            for place, sample_id in enumerate(wanted):
                view = None if views is None else views.drawn(self.seed, epoch, sample_id)
                try:
                    image, texts = visit.image(place), visit.captions(place)
                    if split.draws:
                        seed_generators(derived_seed("transform", self.seed, epoch, sample_id))
                    images.append(self._transformed(visit, place, image, view))
                except UnusableSample as unusable:
                    skipped.append((sample_id, unusable.reason))
                    continue
                places.append(place)
                if view is not None:
                    assert texts is not None
                    captions.append(view.caption(texts, visit.samples[place]))
                    numbers.append(view.number)
                else:
                    captions.append(texts and self._caption(texts, epoch, sample_id))
        return Batch(
            sample_ids=torch.tensor([wanted[place] for place in places], dtype=torch.int64),
            images=stack(images),
            tokens=visit.tokens(places, captions, self.tokenizer),
            views=None if views is None else torch.tensor(numbers, dtype=torch.int64),
            skipped=tuple(skipped),
            normalization=split.normalization if images else None,
        )

    @property
    def _at_least(self) -> int | None:
        return self.caches.split.target if self.config.draft else None

    def _transformed(
        self, visit: Visit, place: int, image: Image.Image | str | Tensor, view: View | None
    ) -> Tensor:
        """Return the pixels of an image, or what the transform gives where these are not known."""
        split = self.caches.split
        if not isinstance(image, Tensor) and (isinstance(image, str) or takes_texts(split.rest)):
            return transformed_view(split.rest, image, visit.samples[place], view=view)
        if view is not None:
            assert isinstance(image, Image.Image)
            sample = visit.samples[place]
            return transformed_view(split.unnormalized, image, sample, view=view)
        if isinstance(image, Image.Image):
            return transformed(split.behind_fixed, visit.fixed(place, image))
        if not split.draws:
            return image
        return transformed(split.behind_fixed, Image.fromarray(image.permute(1, 2, 0).numpy()))

    def _caption(self, choice: list[str], epoch: int, sample_id: int) -> str:
        if self.config.captions == "first":
            return choice[0]
        return choice[derived_seed("caption", self.seed, epoch, sample_id) % len(choice)]


def _training_plan(
    manifest: Manifest, config: Loading, position: Position
) -> Iterator[tuple[int, list[int]]]:
    """Yield epoch and sample ids of each batch from a position on, without end."""
    batch_size, window, seed = config.batch_size, config.shuffle_window, position.seed
    rank, num_shares = position.share
    steps = steps_per_epoch(manifest, batch_size=batch_size)
    epoch, first = divmod(position.step, steps)
    while True:
        order = epoch_order(manifest, seed=seed, epoch=epoch, shuffle_window=window)
        for step in range(first, steps):
            batch = order[step * batch_size : (step + 1) * batch_size]
            yield epoch, batch.tensor_split(num_shares)[rank].tolist()
        epoch, first = epoch + 1, 0


def _never_empty(batches: Iterable[Batch]) -> Iterator[Batch]:
    """Raise NothingReadable at an empty batch: to skip it would shift all later steps."""
    for batch in batches:
        if len(batch.sample_ids) == 0:
            raise NothingReadable(
                f"no sample of a batch of {len(batch.skipped)} could be decoded "
                f"({first_reasons(batch.skipped)}); remove damaged shards or write them again, "
                "run `drrho index`, or take a larger batch_size",
                skipped=batch.skipped,
            )
        yield batch


def stack(images: list[Tensor]) -> Tensor:
    """Stack images; none are an empty batch."""
    # In a worker this stacks in shared memory: nothing is copied on the way to the main process.
    return default_collate(images) if images else torch.empty(0, 3, 0, 0)


def first_reasons(skipped: tuple[tuple[int, str], ...]) -> str:
    """Name the first three of the skipped samples, for messages."""
    shown = [f"sample {sample_id}: {reason}" for sample_id, reason in skipped[:3]]
    return "; ".join(shown) or "it has no usable sample"
