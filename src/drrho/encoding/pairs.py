"""Embedding of pairs that are read by id."""

from dataclasses import dataclass

import torch
from jaxtyping import Int64
from PIL import Image
from torch import Tensor

from drrho.contrastive.pairs import PairEmbeddings
from drrho.data.manifest import Manifest
from drrho.data.reading.cache import OpenShards
from drrho.data.reading.images import transformed
from drrho.data.reading.shards import RawSample, decode_caption, decode_image
from drrho.encoding.encoder import EmbeddingModel
from drrho.runtime.progress import Progress


@dataclass(frozen=True, kw_only=True)
class EmbeddedPairs:
    """Ids, captions and embeddings (`target`) of the pairs that could be read, in host memory."""

    sample_ids: Int64[Tensor, " pairs"]
    captions: list[str]
    target: PairEmbeddings


def embed_pairs(
    encoder: EmbeddingModel,
    manifest: Manifest,
    sample_ids: Int64[Tensor, " wanted"],
    *,
    batch_size: int,
    description: str,
) -> EmbeddedPairs:
    """Read and encode pairs by id; those that cannot be decoded are left out.

    Raises:
        FileNotFoundError: a shard is not there.
        ValueError: a shard has changed, or not two pairs could be decoded.
    """

    def decode(sample: RawSample) -> tuple[Tensor, str]:
        image, caption = decode_pair(sample)
        return transformed(encoder.transform, image), caption

    shards = OpenShards(manifest)
    skipped: list[tuple[int, str]] = []
    ids: list[int] = []
    captions: list[str] = []
    parts: list[PairEmbeddings] = []
    with Progress(description, total=len(sample_ids), unit="pairs") as progress:
        for chunk in sample_ids.split(batch_size):
            found = list(shards.readable(chunk.tolist(), skipped, decode=decode))
            if found:
                pixels, words = zip(*(pair for _, pair in found), strict=True)
                parts.append(encoder.encode_pairs(torch.stack(pixels), list(words)))
                ids += [sample_id for sample_id, _ in found]
                captions += words
            progress.advance(len(chunk))
    if len(ids) < 2:
        raise ValueError(f"{len(ids)} of {len(sample_ids)} pairs could be decoded; two are needed")
    return EmbeddedPairs(
        sample_ids=torch.tensor(ids),
        captions=captions,
        target=PairEmbeddings(*map(torch.cat, zip(*parts, strict=True))),
    )


def decode_pair(sample: RawSample) -> tuple[Image.Image | str, str]:
    """Decode image and first caption; errors as `decode_image` and `decode_caption`."""
    return decode_image(sample), decode_caption(sample)
