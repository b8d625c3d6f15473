"""The embeddings of a data set: every process encodes its share, and all have the result."""

import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from typing import Any

import torch
from jaxtyping import Float, Int64, Shaped
from torch import Tensor

from drrho.data.batch import Examples
from drrho.data.loading import NothingReadable, Part, evaluation_batches
from drrho.data.manifest import Manifest
from drrho.encoding.embed import EmbeddedImages, embed_images, embed_texts
from drrho.models.two_tower import TwoTower
from drrho.runtime.distributed import Processes, partition
from drrho.runtime.progress import Progress


@dataclass(frozen=True, kw_only=True)
class SharedImages:
    """A data set's images, encoded.

    Attributes:
        own: what this process read, a run of the data set, one after the other in the order of
            the processes.
        embeddings: of all images.
        num_skipped: samples that could not be decoded, of all processes.
    """

    own: EmbeddedImages
    embeddings: Float[Tensor, "images dim"]
    num_skipped: int


@dataclass(frozen=True, kw_only=True)
class Encoder:
    """A model that several processes encode with, each with a copy or a shard of it.

    Batches are shared out whole, so an embedding does not depend on the number of processes; and
    all processes run a tower equally often, which a sharded model needs.

    Attributes:
        model: on `device` and in evaluation mode.
        device: where to compute.
        batch_size: images or texts at once.
        workers: processes that decode, for each of these.
        processes: that share the work.
        progress: whether to show how far it is.
    """

    model: TwoTower
    device: torch.device
    batch_size: int
    workers: int = 0
    processes: Processes = field(default_factory=Processes)
    progress: bool = False

    def images(self, manifest: Manifest, *, name: str, parts: tuple[Part, ...]) -> SharedImages:
        """Encodes every usable image once; a collective.

        Images that cannot be decoded are left out, and warned of.

        Raises:
            NothingReadable: no image could be decoded.
            ValueError: a shard is not what it was when it was indexed.
        """
        rank, size = self.processes.rank, self.processes.size
        batches = evaluation_batches(
            manifest,
            self.model.eval_transform,
            batch_size=self.batch_size,
            workers=self.workers,
            parts=parts,
            share=(rank, size),
        )
        total = len(manifest.usable_ids(with_captions="caption" in parts))
        seen, own = _Seen(), None
        visible = self.progress and self.processes.is_first
        with Progress(f"evaluate {name}", total=-(-total // size), visible=visible) as progress:
            in_step = self._in_step(batches, seen, progress)
            first = next(in_step, None)
            if first is not None:
                own = embed_images(chain([first], in_step), self._encode_images)
        skipped = tuple(
            entry for several in self.processes.all_gather_object(seen.skipped) for entry in several
        )
        if own is None and seen.blank is None:
            raise NothingReadable(
                f"no sample of {name} could be decoded: {_reasons(skipped)}", skipped=skipped
            )
        if own is None:
            own = _no_images(seen.blank)
        if skipped and self.processes.is_first:
            warnings.warn(
                f"{name}: {len(skipped):,} samples could not be evaluated: {_reasons(skipped)}",
                stacklevel=3,
            )
        return SharedImages(
            own=own, embeddings=self._gathered(own.image_embeddings), num_skipped=len(skipped)
        )

    def sample_ids(self, images: SharedImages) -> Int64[Tensor, " images"]:
        """Of all images, in the order of their embeddings; a collective."""
        return self._gathered(images.own.sample_ids)

    def texts(self, texts: list[str]) -> Float[Tensor, "texts dim"]:
        """Encodes texts, at least one; a collective."""
        starts = range(0, len(texts), self.batch_size)
        rank, size = self.processes.rank, self.processes.size
        first, end = (len(starts) * place // size for place in (rank, rank + 1))
        most = -(-len(starts) // size)
        blank = self._idle(most - (end - first), lambda: self._encode_texts(texts[:1]))
        own_texts = texts[first * self.batch_size : end * self.batch_size]
        if own_texts:
            return self._gathered(
                embed_texts(own_texts, self._encode_texts, batch_size=self.batch_size)
            )
        assert blank is not None, "another process has a batch"
        return self._gathered(blank[:0])

    def _in_step(
        self, batches: Iterator[Examples], seen: "_Seen", progress: Progress
    ) -> Iterator[Examples]:
        """This process's batches, one whenever every process takes one or has none left.

        With none left its tower runs for nothing: the others would wait for its shard. What one
        cannot read ends all, who would wait for it too.
        """
        while True:
            batch = None
            try:
                batch = next(batches, None)
            except NothingReadable as nothing:  # but another process may have read something
                seen.skipped += nothing.skipped
            except (ValueError, OSError) as error:
                self.processes.all_gather_object((None, str(error)))
                raise
            shape = None if batch is None else tuple(batch.images.shape[1:])
            everyone = self.processes.all_gather_object((shape, None))
            if messages := [message for _, message in everyone if message is not None]:
                raise ValueError(messages[0])
            shapes = [shape for shape, _ in everyone if shape is not None]
            if not shapes:
                return
            if batch is None:
                blank = torch.zeros(1, *shapes[0])
                seen.blank = self._idle(1, partial(self._encode_images, blank))
            else:
                seen.skipped += batch.skipped
                yield batch
                progress.advance(len(batch.sample_ids))

    def _encode_images(self, pixels: Tensor) -> Tensor:
        module: Any = self.model.module
        return module.encode_image(pixels.to(self.device), normalize=True)

    def _encode_texts(self, texts: list[str]) -> Tensor:
        module: Any = self.model.module
        return module.encode_text(self.model.tokenizer(texts).to(self.device), normalize=True)

    @torch.no_grad()
    def _idle(self, times: int, encode: Callable[[], Tensor]) -> Tensor | None:
        """Runs a tower for nothing, as often as another process does for something."""
        blank = None
        for _ in range(times):
            blank = encode().float().cpu()
        return blank

    def _gathered(self, own: Shaped[Tensor, "own ..."]) -> Shaped[Tensor, "all ..."]:
        if self.processes.size == 1:
            return own
        return partition(len(own), group=self.processes.host).all_gather(own)


@dataclass(kw_only=True)
class _Seen:
    """What a process could not decode, and what its tower gave when it ran for nothing."""

    skipped: tuple[tuple[int, str], ...] = ()
    blank: Tensor | None = None


def _no_images(blank: Float[Tensor, "one dim"] | None) -> EmbeddedImages:
    """The share of a process that read none, whose tower ran for nothing."""
    assert blank is not None, "another process has a batch"
    return EmbeddedImages(
        sample_ids=torch.empty(0, dtype=torch.int64),
        image_embeddings=blank[:0],
        captions=[],
        metadata=[],
    )


def _reasons(skipped: tuple[tuple[int, str], ...]) -> dict[str, int]:
    return dict(Counter(reason for _, reason in skipped))
