"""Some pairs of a data set under a model and under a stored reference."""

from dataclasses import dataclass

import torch
from jaxtyping import Int64
from PIL import Image
from torch import Tensor

from drrho.contrastive.risk import PairEmbeddings
from drrho.data.cache import OpenShards
from drrho.data.manifest import Manifest
from drrho.data.shards import RawSample, decode_caption, decode_image
from drrho.progress import Progress
from drrho.reference.encoder import ReferenceEncoder
from drrho.reference.ensemble import Reference


@dataclass(frozen=True, kw_only=True)
class EmbeddedPairs:
    """Pairs that could be read, in host memory.

    Attributes:
        sample_ids: their places in the data set.
        captions: their texts.
        target: their embeddings.
    """

    sample_ids: Int64[Tensor, " pairs"]
    captions: list[str]
    target: PairEmbeddings


def drawn_ids(
    manifest: Manifest, store: Reference | None, *, count: int, generator: torch.Generator
) -> Int64[Tensor, " pairs"]:
    """The ids of at most `count` usable pairs, ascending, drawn without replacement; where there
    is a store, of those that it has.

    Raises:
        ValueError: there are not two.
    """
    usable = manifest.usable_ids()
    drawn = usable[torch.randperm(len(usable), generator=generator)[:count]]
    if store is not None and len(drawn) > 0:
        drawn = drawn[store.gather(drawn).present]
    if len(drawn) < 2:
        raise ValueError(
            f"the data set has {len(usable)} usable pairs, of which the reference knows "
            f"{len(drawn)}; two are needed"
        )
    return drawn.sort().values


def embed_pairs(
    encoder: ReferenceEncoder,
    manifest: Manifest,
    sample_ids: Int64[Tensor, " wanted"],
    *,
    batch_size: int,
    description: str,
) -> EmbeddedPairs:
    """Reads and encodes pairs by id; those that cannot be decoded are left out.

    Raises:
        FileNotFoundError: a shard is not there.
        ValueError: a shard has changed, or not two pairs could be decoded.
    """
    shards = OpenShards(manifest)
    skipped: list[tuple[int, str]] = []
    ids: list[int] = []
    captions: list[str] = []
    images, texts = [], []
    with Progress(description, total=len(sample_ids), unit="pairs") as progress:
        for chunk in sample_ids.split(batch_size):
            found = list(shards.readable(chunk.tolist(), skipped, decode=decode_pair))
            if found:
                pixels = torch.stack([encoder.transform(image) for _, (image, _) in found])
                words = [caption for _, (_, caption) in found]
                images.append(encoder.encode_image(pixels).cpu())
                texts.append(encoder.encode_text(encoder.tokenizer(words)).cpu())
                ids += [sample_id for sample_id, _ in found]
                captions += words
            progress.advance(len(chunk))
    if len(ids) < 2:
        raise ValueError(f"{len(ids)} of {len(sample_ids)} pairs could be decoded; two are needed")
    return EmbeddedPairs(
        sample_ids=torch.tensor(ids),
        captions=captions,
        target=PairEmbeddings(torch.cat(images), torch.cat(texts)),
    )


def stored_pairs(store: Reference, sample_ids: Int64[Tensor, " pairs"]) -> PairEmbeddings:
    """The reference's embeddings; zero for a pair it has none of."""
    found = store.gather(sample_ids)
    return PairEmbeddings(found.image, found.text)


def decode_pair(sample: RawSample) -> tuple[Image.Image, str]:
    """Image and first caption; raises UnusableSample as the decoders do."""
    return decode_image(sample), decode_caption(sample)
