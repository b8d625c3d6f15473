"""Loading of samples to evaluate on: every usable one once, in the order of the ids."""

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from drrho.data.batch import Examples
from drrho.data.caching.caches import Transform
from drrho.data.loading import NothingReadable, first_reasons, require_share, stack
from drrho.data.manifest import Manifest
from drrho.data.reading.cache import OpenShards
from drrho.data.reading.images import UnusableSample
from drrho.data.reading.shards import RawSample, decode_captions, decode_image, decode_metadata
from drrho.data.reading.workers import load_in_order
from drrho.data.views import View, transformed_view
from drrho.runtime.checks import require_at_least

# The parts of a sample beside its image.
Part = Literal["caption", "metadata"]
_Skipped = tuple[tuple[int, str], ...]


def evaluation_batches(  # noqa: PLR0913 - what is read, how, and whose part of it
    manifest: Manifest,
    transform: Transform,
    *,
    batch_size: int,
    workers: int = 0,
    parts: Collection[Part] = ("caption", "metadata"),
    view: View | None = None,
    share: tuple[int, int] = (0, 1),
) -> Iterator[Examples]:
    """Yield every usable sample once, in the order of the ids.

    No batch reaches over the end of a shard, so what shares a batch does not depend on which
    other shards are in the manifest, nor on how many processes share the batches.

    Args:
        transform: image to tensor (3, H, W); it must not be random.
        workers: processes that decode; 0 decodes in this one.
        parts: what to give beside the images. Without "caption" samples without one are taken
            too, for data that carry labels instead; without "metadata" json, cls and npy
            files are not looked at, so that a damaged one makes no sample unreadable.
        view: of image and caption, before the transform; see also `batches_of_views`.
        share: (k, K) gives the k-th of K runs of batches, which differ in length by at most one
            batch; one after the other they are all batches.

    Raises:
        ValueError: an argument is out of range; or, while iterating, a shard is not what the
            manifest says, or no sample at all could be decoded (`NothingReadable`).
    """
    of_views = batches_of_views(
        manifest,
        transform,
        batch_size=batch_size,
        workers=workers,
        parts=parts,
        views=(view,),
        share=share,
    )
    return (batch for (batch,) in of_views)


def batches_of_views(  # noqa: PLR0913 - as `evaluation_batches`
    manifest: Manifest,
    transform: Transform,
    *,
    batch_size: int,
    views: Sequence[View | None],
    workers: int = 0,
    parts: Collection[Part] = ("caption", "metadata"),
    share: tuple[int, int] = (0, 1),
) -> Iterator[tuple[Examples, ...]]:
    """Yield `evaluation_batches` of several views at once; an image is decoded once for all.

    Of a batch some views may be empty, where a transform fails on them alone.
    """
    require_at_least(1, batch_size=batch_size)
    require_at_least(0, workers=workers)
    require_share(share)
    rank, num_shares = share
    batches = _evaluation_plan(manifest, batch_size=batch_size, with_captions="caption" in parts)
    first, end = (len(batches) * place // num_shares for place in (rank, rank + 1))
    plan = (batch.tolist() for batch in batches[first:end])
    examples = _EvaluationExamples(
        shards=OpenShards(manifest),
        transform=transform,
        parts=frozenset(parts),
        views=tuple(views),
    )
    return _without_empty_ones(load_in_order(examples, plan, workers=workers))


@dataclass(frozen=True, kw_only=True)
class _EvaluationExamples(Dataset[tuple[Examples, ...]]):
    """Dataset of examples of each view by sample ids; empty where none can be decoded."""

    shards: OpenShards
    transform: Transform
    parts: frozenset[Part]
    views: tuple[View | None, ...]

    def __getitem__(self, wanted: list[int]) -> tuple[Examples, ...]:
        undecoded: list[tuple[int, str]] = []
        found = [_Rows([], [], [], [], [], []) for _ in self.views]
        for sample_id, decoded in self.shards.readable(wanted, undecoded, decode=self._decode):
            for view, rows in zip(self.views, found, strict=True):
                self._add(rows, sample_id, decoded, view)
        return tuple(rows.examples(undecoded, wanted) for rows in found)

    def _decode(self, sample: RawSample) -> "_Decoded":
        """Decode an image, and captions and metadata into a list of one if they are asked for."""
        metadata = [decode_metadata(sample)] if "metadata" in self.parts else []
        captions = [decode_captions(sample)] if "caption" in self.parts else []
        return _Decoded(sample, decode_image(sample), captions, metadata)

    def _add(self, rows: "_Rows", sample_id: int, decoded: "_Decoded", view: View | None) -> None:
        """Transform a view of a sample, and take it into the rows, or to what was skipped."""
        sample, captions = decoded.sample, decoded.captions
        try:
            pixels = transformed_view(self.transform, decoded.image, sample, view=view)
        except UnusableSample as unusable:
            rows.skipped.append((sample_id, unusable.reason))
            return
        if view is not None:
            captions = [[view.caption(texts, sample)] for texts in captions]
        rows.ids.append(sample_id)
        rows.keys.append(sample.key)
        rows.images.append(pixels)
        rows.captions.extend(captions)
        rows.metadata.extend(decoded.metadata)


class _Decoded(NamedTuple):
    sample: RawSample
    image: Image.Image | str
    captions: list[list[str]]
    metadata: list[dict]


class _Rows(NamedTuple):
    """The columns of `Examples` while they are filled."""

    ids: list[int]
    keys: list[str]
    images: list[Tensor]
    captions: list[list[str]]
    metadata: list[dict]
    skipped: list[tuple[int, str]]

    def examples(self, undecoded: list[tuple[int, str]], wanted: list[int]) -> Examples:
        """Make examples; the skipped ones are in the order in which they were wanted."""
        reasons = dict([*undecoded, *self.skipped])
        return Examples(
            sample_ids=torch.tensor(self.ids, dtype=torch.int64),
            keys=self.keys,
            images=stack(self.images),
            captions=self.captions,
            metadata=self.metadata,
            skipped=tuple((one, reasons[one]) for one in wanted if one in reasons),
        )


def _evaluation_plan(manifest: Manifest, *, batch_size: int, with_captions: bool) -> list[Tensor]:
    """List the usable ids of each shard in turn, at most `batch_size` at a time."""
    shards = range(len(manifest.shards))
    ids = (manifest.usable_ids_in(shard, with_captions=with_captions) for shard in shards)
    return [chunk for part in ids if len(part) > 0 for chunk in part.split(batch_size)]


def _without_empty_ones(batches: Iterable[tuple[Examples, ...]]) -> Iterator[tuple[Examples, ...]]:
    """Merge the skipped samples of an empty batch into the next batch, or into the last one.

    A batch is empty where each of its views is.
    """
    held: tuple[Examples, ...] | None = None
    skipped: list[_Skipped] = []  # of each view
    for batch in batches:
        earlier = skipped or [()] * len(batch)
        skipped = [kept + one.skipped for kept, one in zip(earlier, batch, strict=True)]
        if any(len(one.sample_ids) > 0 for one in batch):
            if held is not None:
                yield held
            pairs = zip(batch, skipped, strict=True)
            held, skipped = tuple(replace(one, skipped=reasons) for one, reasons in pairs), []
    if held is None:
        found = skipped[0] if skipped else ()
        raise NothingReadable(
            f"no sample of the data set could be decoded ({first_reasons(found)})",
            skipped=found,
        )
    left = skipped or [()] * len(held)
    yield tuple(
        replace(one, skipped=one.skipped + more) for one, more in zip(held, left, strict=True)
    )
