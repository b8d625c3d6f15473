"""Verification of stored embeddings: files, norms, and some samples encoded again."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from jaxtyping import Float32, Int64
from torch import Tensor
from torch.nn.functional import normalize

from drrho.data.manifest import Manifest
from drrho.data.reading.cache import OpenShards
from drrho.data.reading.shards import RawSample, UnusableSample, decode_captions, decode_image
from drrho.data.views import transformed_view
from drrho.encoding.encoder import EmbeddingModel
from drrho.reference.store import (
    REFERENCE_CARDS,
    ShardEmbeddings,
    has_unit_norm,
    identity_differences,
    load_shard,
)
from drrho.runtime.errors import without_secrets

Rows = Float32[Tensor, "rows dim"]
Vector = Float32[Tensor, " dim"]
# Lowest cosine of a stored embedding with the same sample encoded again, by precision. Storage in
# float16 changes a cosine by 2^-23 at most; the rest is for other hardware and libraries.
FLOORS = {"bfloat16": 0.99}
FLOOR = 0.999
SHOWN = 5  # rows or samples in a message


@dataclass(kw_only=True)
class Verification:
    """Result of a verification.

    Attributes:
        num_samples: rows of the data set.
        has_checksums: whether the files have checksums; files of the first version have none.
        num_stored: rows with embeddings.
        absent: number of rows without embeddings, by reason.
        num_encoded: samples that were encoded again.
        lowest, mean: cosine of what is stored and what was encoded, of images and of texts.
        faults: descriptions of what is wrong.
    """

    num_samples: int
    has_checksums: bool = True
    num_stored: int = 0
    absent: Counter[str] = field(default_factory=Counter)
    num_encoded: int = 0
    lowest: tuple[float, float] | None = None
    mean: tuple[float, float] | None = None
    faults: list[str] = field(default_factory=list)


def verify(
    folder: Path,
    manifest: Manifest,
    *,
    encoder: EmbeddingModel | None,
    num_encoded: int,
    generator: torch.Generator,
) -> Verification:
    """Check every stored row and checksum, and encode some of the samples again.

    A row must be finite and of unit length, and an encoded sample's cosine with its row at least
    `FLOOR`, or the encoder's of `FLOORS`. A sample whose embedding is closer to another row of
    its shard is named with that row, which shows rows in another order.

    Args:
        manifest: the data set that it should be of.
        encoder: the model; None encodes nothing.
        num_encoded: how many samples to encode again.
    """
    card = REFERENCE_CARDS.load(folder)
    files = REFERENCE_CARDS.files(card, folder)
    found = Verification(num_samples=manifest.num_samples, has_checksums=card.version > 1)
    stored = [torch.empty(0, dtype=torch.int64)]

    def read(index: int) -> ShardEmbeddings:
        entry = files.find(manifest.shards[index])
        return load_shard(files, entry, embedding_dim=card.embedding_dim)

    for index, shard in enumerate(manifest.shards):
        try:
            embeddings = read(index)
        except (ValueError, FileNotFoundError) as error:
            found.faults.append(str(error))
        else:
            _check_rows(embeddings, without_secrets(shard.url), found)
            stored.append(embeddings.present.nonzero().squeeze(1) + manifest.offsets[index])
    if encoder is None:
        return found
    # The card of an import names the model in words, which cannot be compared.
    if "weights_sha256" in card.model and encoder.identity != card.model:
        differing = "; ".join(identity_differences(card.model, encoder.identity))
        found.faults.append(f"the model is not the one that was stored: {differing}")
        return found
    ids = torch.cat(stored)
    ids = ids[torch.randperm(len(ids), generator=generator)[:num_encoded]].sort().values
    if len(ids) > 0:
        floor = FLOORS.get(card.model.get("precision", ""), FLOOR)
        _encode_again(encoder, manifest, read, ids=ids, floor=floor, found=found)
    return found


def _check_rows(embeddings: ShardEmbeddings, url: str, found: Verification) -> None:
    present = embeddings.present
    found.num_stored += int(present.sum())
    found.absent.update(embeddings.absent.values())
    absent_rows = set((~present).nonzero().squeeze(1).tolist())
    if absent_rows != embeddings.absent.keys():
        found.faults.append(f"shard {url}: the rows marked as absent are not those with a reason")
    for name, stored in (("image", embeddings.image), ("text", embeddings.text)):
        wrong = (present & ~has_unit_norm(stored)).nonzero().squeeze(1).tolist()
        if wrong:
            found.faults.append(
                f"shard {url}: {len(wrong)} {name} embeddings are not finite or not of unit "
                f"length, rows {wrong[:SHOWN]}"
            )


def _encode_again(
    encoder: EmbeddingModel,
    manifest: Manifest,
    read: Callable[[int], ShardEmbeddings],
    *,
    ids: Int64[Tensor, " drawn"],
    floor: float,
    found: Verification,
) -> None:
    cosines = []
    below: list[str] = []
    samples = OpenShards(manifest).read(ids.tolist())
    current, units = None, ()
    for sample_id, sample in zip(ids.tolist(), samples, strict=True):
        index, row = manifest.locate(sample_id)
        if index != current:  # the ids ascend, so each shard is normalised once
            current, units = index, _unit_rows(read(index))
        try:
            encoded = _encoded(encoder, sample)
        except UnusableSample as unusable:
            below.append(f"sample {sample_id} has embeddings and cannot be decoded: {unusable}")
            continue
        own, nearest = _compared(units, encoded, row)
        cosines.append(own)
        if float(own.min()) < floor:
            hint = "" if nearest == row else f", and row {nearest} of its shard is closest"
            below.append(f"sample {sample_id}: {float(own.min()):.4f}{hint}")
    if below:
        found.faults.append(
            f"{len(below)} of {len(ids)} samples are not what the model makes of them (cosine "
            f"below {floor}): " + "; ".join(below[:SHOWN])
        )
    if cosines:
        table = torch.stack(cosines)
        found.num_encoded = len(cosines)
        found.lowest = tuple(table.min(dim=0).values.tolist())
        found.mean = tuple(table.mean(dim=0).tolist())


def _encoded(encoder: EmbeddingModel, sample: RawSample) -> tuple[Vector, Vector]:
    """Encode image and caption, or the view of them that is stored."""
    image, captions = decode_image(sample), decode_captions(sample)
    caption = captions[0] if encoder.view is None else encoder.view.caption(captions, sample)
    pixels = transformed_view(encoder.transform, image, sample, view=encoder.view)
    images, texts = encoder.encode_pairs(pixels[None], [caption])
    return images[0], texts[0]


def _unit_rows(embeddings: ShardEmbeddings) -> tuple[Rows, Rows]:
    return (normalize(embeddings.image.float(), dim=1), normalize(embeddings.text.float(), dim=1))


def _compared(
    units: tuple[Rows, ...], encoded: tuple[Vector, Vector], row: int
) -> tuple[Float32[Tensor, "2"], int]:
    """Compute the cosines of image and text with their row, and find the closest row."""
    both = torch.stack(
        [unit @ vector for unit, vector in zip(units, encoded, strict=True)]
    ).nan_to_num(-1.0)
    return both[:, row], int(both.sum(dim=0).argmax())
