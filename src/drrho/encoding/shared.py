"""Embedding of a whole data set: every process encodes its share, and all get the result."""

import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain

import torch
from jaxtyping import Float, Int64, Shaped
from torch import Tensor

from drrho.data.batch import Examples
from drrho.data.caching.texts import keeping_tokens
from drrho.data.examples import Part, evaluation_batches
from drrho.data.loading import NothingReadable
from drrho.data.manifest import Manifest
from drrho.encoding.encoder import EmbeddingModel
from drrho.runtime.distributed import Processes, partition
from drrho.runtime.progress import Progress


@dataclass(frozen=True, kw_only=True)
class SharedImages:
    """Embeddings of all images of a data set, and ids, captions and labels of this process's own.

    The images that a process reads follow one another in the data set, in the order of the
    processes.

    Attributes:
        embeddings: embeddings of all images, float32 in host memory.
        own_captions: all captions of each own image; empty if captions were not asked for.
        own_metadata: labels and other metadata of each own image; empty if not asked for.
        num_skipped: samples that could not be decoded, of all processes.
    """

    embeddings: Float[Tensor, "images dim"]
    own_ids: Int64[Tensor, " own"]
    own_captions: list[Sequence[str]]
    own_metadata: list[Mapping[str, object]]
    num_skipped: int


@dataclass(frozen=True, kw_only=True)
class Encoder:
    """A model that several processes encode with, each with a copy or a shard of it.

    Batches are shared out whole, so an embedding does not depend on the number of processes; and
    all processes run a tower equally often, which a sharded model needs.

    Attributes:
        model: the copy or shard of this process.
        batch_size: images or texts at once.
        workers: processes that decode, for each process that encodes.
        progress: whether to show progress.
    """

    model: EmbeddingModel
    batch_size: int
    workers: int = 0
    processes: Processes = field(default_factory=Processes)
    progress: bool = False

    def images(self, manifest: Manifest, *, name: str, parts: tuple[Part, ...]) -> SharedImages:
        """Encode every usable image once; a collective.

        Images that cannot be decoded are left out, and warned of.

        Raises:
            NothingReadable: no image could be decoded.
            ValueError: a shard is not what it was when it was indexed.
        """
        size = self.processes.size
        batches = evaluation_batches(
            manifest,
            self.model.transform,
            batch_size=self.batch_size,
            workers=self.workers,
            parts=parts,
            share=(self.processes.rank, size),
        )
        total = len(manifest.usable_ids(with_captions="caption" in parts))
        own = _Share()
        visible = self.progress and self.processes.is_first
        with Progress(f"evaluate {name}", total=-(-total // size), visible=visible) as progress:
            for batch in self._in_step(batches, own):
                own.ids.append(batch.sample_ids)
                own.embeddings.append(self.model.encode_pixels(batch.images))
                own.captions.extend(batch.captions)
                own.metadata.extend(batch.metadata)
                progress.advance(len(batch.sample_ids))
        skipped = tuple(chain.from_iterable(self.processes.all_gather_object(own.skipped)))
        reasons = dict(Counter(reason for _, reason in skipped))
        if not own.embeddings:
            message = f"no sample of {name} could be decoded: {reasons}"
            raise NothingReadable(message, skipped=skipped)
        if skipped and self.processes.is_first:
            warnings.warn(
                f"{name}: {len(skipped):,} samples could not be evaluated: {reasons}", stacklevel=3
            )
        return SharedImages(
            embeddings=self._gathered(torch.cat(own.embeddings)),
            own_ids=torch.cat(own.ids),
            own_captions=own.captions,
            own_metadata=own.metadata,
            num_skipped=len(skipped),
        )

    def sample_ids(self, images: SharedImages) -> Int64[Tensor, " images"]:
        """Gather the ids of all images, in the order of their embeddings; a collective."""
        return self._gathered(images.own_ids)

    def texts(self, texts: list[str]) -> Float[Tensor, "texts dim"]:
        """Encode texts, at least one; a collective.

        Their token ids are kept for the next time, as every evaluation has the same.
        """
        num_batches = -(-len(texts) // self.batch_size)
        rank, size = self.processes.rank, self.processes.size
        first, end = (num_batches * place // size for place in (rank, rank + 1))
        idle = -(-num_batches // size) - (end - first)
        model = self._of_texts
        blanks = [model.encode_text(texts[:1])[:0] for _ in range(idle)]
        own = texts[first * self.batch_size : end * self.batch_size]
        if own:
            return self._gathered(model.encode_text(own, batch_size=self.batch_size))
        return self._gathered(blanks[0])

    @cached_property
    def _of_texts(self) -> EmbeddingModel:
        other = copy(self.model)
        other.tokenizer = keeping_tokens(self.model.tokenizer)
        return other

    def _in_step(self, batches: Iterator[Examples], own: "_Share") -> Iterator[Examples]:
        """Yield this process's batches in step with the other processes.

        A process without a batch left runs its tower on zeros, as the others may wait for its
        shard of the model. An error of one process ends all.
        """
        while True:
            batch = None
            try:
                batch = next(batches, None)
            except NothingReadable as nothing:  # another process may have read something
                own.skipped += nothing.skipped
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
                own.embeddings.append(self.model.encode_pixels(torch.zeros(1, *shapes[0]))[:0])
            else:
                own.skipped += batch.skipped
                yield batch

    def _gathered(self, own: Shaped[Tensor, "own ..."]) -> Shaped[Tensor, "all ..."]:
        if self.processes.size == 1:
            return own
        return partition(len(own), group=self.processes.host).all_gather(own)


@dataclass(kw_only=True)
class _Share:
    """What a process has read and encoded, and the samples that it could not decode."""

    ids: list[Tensor] = field(default_factory=lambda: [torch.empty(0, dtype=torch.int64)])
    embeddings: list[Tensor] = field(default_factory=list)
    captions: list[Sequence[str]] = field(default_factory=list)
    metadata: list[Mapping[str, object]] = field(default_factory=list)
    skipped: tuple[tuple[int, str], ...] = ()
