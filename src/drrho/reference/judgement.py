"""A reference is judged before it steers: on a sample of pairs, in a second.

Retrieval among the pairs beside guessing, and whether the reference has seen them.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from drrho.data.manifest import Manifest
from drrho.encoding.encoder import EmbeddingModel
from drrho.encoding.pairs import embed_pairs
from drrho.evaluation.metrics.bootstrap import bootstrap_interval
from drrho.evaluation.metrics.chance import reciprocal_rank_chance
from drrho.evaluation.metrics.ranks import ranks_of_similarities
from drrho.evaluation.metrics.retrieval import RetrievalRanks, reciprocal_rank_of_images
from drrho.models.towers.joined import MRR
from drrho.reference.pairs import drawn_ids
from drrho.reference.reader import Reference

SAMPLE = 1000  # pairs
SAMPLE_ENCODED = 200  # pairs, where they have to be encoded first
ENCODED_AT_ONCE = 50  # pairs
SAME_TEXT = 1 - 1e-4  # cosine of texts from which on they are one: rounding of float16 is below
NEAR_GUESSING = 2.0  # times guessing, at the lower end of the interval
MEMORISED = 0.95  # mean reciprocal rank, at the lower end of the interval
FEWEST_MEMORISED = 100  # pairs: among a few the right partner is found easily


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """How a reference does on some pairs. Printing it gives a line, and its warning one more.

    Attributes:
        pairs: number of pairs looked at, each among all of them.
        mrr: mean reciprocal rank of the right partner, both directions, on distinct texts.
        first: share of the images whose own text comes first.
        seen_shards: shards of the data that the reference was trained on; None where what it was
            trained on is not known.
        shards: shards of the data.
        warning: one sentence; None if there is nothing to warn of.
    """

    pairs: int
    mrr: MRR
    first: float
    seen_shards: int | None
    shards: int
    warning: str | None

    def __str__(self) -> str:
        if self.seen_shards is None:
            seen = "what it was trained on is not known"
        else:
            seen = f"trained on {self.seen_shards or 'none'} of the {self.shards} shards"
        mrr = self.mrr
        line = (
            f"on {self.pairs:,} pairs MRR {mrr.value:.3f} ({mrr.low:.3f}-{mrr.high:.3f}), guessing "
            f"{mrr.guessing:.3f}; own text first for {100 * self.first:.0f} %; {seen}"
        )
        return line if self.warning is None else f"{line}\nWARNING: {self.warning}"


def judge_reference(
    reference: Reference, manifest: Manifest, *, sample: int = SAMPLE, seed: int = 0
) -> Judgement | None:
    """Judge stored embeddings on pairs drawn from the data that they are of.

    Only the store is read: texts are the same where their embeddings are. The cost is reading
    `sample` rows and computing one matrix of their cosines.

    Returns:
        None if fewer than two pairs have embeddings.
    """
    generator = torch.Generator().manual_seed(seed)
    ids = manifest.usable_ids()
    ids = ids[torch.randperm(len(ids), generator=generator)[:sample]].sort().values
    if len(ids) == 0:
        return None
    views = None if reference.views is None else torch.zeros_like(ids)
    rows = reference.gather(ids, views)
    rows = rows.keep(rows.present)
    if len(rows.image) < 2:
        return None
    # Several references together have the length of their weights' sum.
    texts = torch.nn.functional.normalize(rows.text, dim=-1)
    return judge_cosines(
        rows.image @ rows.text.T,
        texts_of(texts @ texts.T),
        seen=seen_shards(reference.trained_on, manifest),
        shards=len(manifest.shards),
        generator=generator,
    )


def judge_model(
    encoder: EmbeddingModel,
    manifest: Manifest,
    *,
    trained_on: Collection[str] | None,
    sample: int = SAMPLE_ENCODED,
    seed: int = 0,
) -> Judgement | None:
    """Judge a model on pairs drawn from a data set, which are read and encoded.

    Args:
        trained_on: contents of the shards that it was trained on; None if unknown.

    Returns:
        None if fewer than two pairs are usable.
    """
    generator = torch.Generator().manual_seed(seed)
    if len(manifest.usable_ids()) < 2:
        return None
    ids = drawn_ids(manifest, None, count=sample, generator=generator)
    found = embed_pairs(encoder, manifest, ids, batch_size=ENCODED_AT_ONCE, description="judging")
    numbers = {text: number for number, text in enumerate(dict.fromkeys(found.captions))}
    return judge_cosines(
        found.target.image @ found.target.text.T,
        torch.tensor([numbers[text] for text in found.captions]),
        seen=seen_shards(trained_on, manifest),
        shards=len(manifest.shards),
        generator=generator,
    )


def judge_cosines(
    cosines: Float[Tensor, "pairs pairs"],
    texts: Int64[Tensor, " pairs"],
    *,
    seen: int | None,
    shards: int,
    generator: torch.Generator,
) -> Judgement:
    """Judge a reference by the cosines of images (rows) and texts of the same pairs.

    Args:
        texts: which pairs have the same text, as numbers from 0 on, in the order of appearance.
        seen: shards that it was trained on, as `Judgement.seen_shards`.
        generator: generator of the bootstrap.
    """
    pairs = torch.stack([torch.arange(len(texts)), texts])
    number = int(texts.max()) + 1
    first = torch.full((number,), len(texts)).scatter_reduce(
        0, texts, torch.arange(len(texts)), reduce="amin"
    )
    right = texts[:, None] == torch.arange(number)
    found = cosines[:, first]
    ranks = RetrievalRanks(
        image_to_text=ranks_of_similarities(found, right),
        text_to_image=ranks_of_similarities(found.T, right.T),
    )
    values = reciprocal_rank_of_images(ranks, pairs)
    low, high = bootstrap_interval(values, generator=generator)
    mrr = MRR(float(values.mean()), low, min(high, 1.0), guessed_mrr(texts.bincount().tolist()))
    share = float(ranks.image_to_text.hits(1).mean())
    return Judgement(
        pairs=len(texts),
        mrr=mrr,
        first=share,
        seen_shards=seen,
        shards=shards,
        warning=_warning(mrr, share, pairs=len(texts), seen=seen, shards=shards),
    )


def seen_shards(trained_on: Collection[str] | None, manifest: Manifest) -> int | None:
    """Count the shards of a data set whose contents a model was trained on; None if unknown."""
    if trained_on is None:
        return None
    contents = set(trained_on)
    return sum(shard.content_sha256 in contents for shard in manifest.shards if shard.num_samples)


def texts_of(similarities: Float[Tensor, "pairs pairs"]) -> Int64[Tensor, " pairs"]:
    """Number the distinct texts in the order of appearance, by the cosines of all of them."""
    first = (similarities >= SAME_TEXT).int().argmax(dim=1)
    first = torch.minimum(first, torch.arange(len(first)))  # a row of zeros is a text of its own
    first = first[first]
    return first.unique(return_inverse=True)[1]


def guessed_mrr(carriers: Sequence[int]) -> float:
    """Compute the mean reciprocal rank of guessing, both directions.

    Args:
        carriers: for each distinct text the number of images that carry it.
    """
    images = sum(carriers)
    by_number = {number: reciprocal_rank_chance(images, number) for number in set(carriers)}
    of_texts = sum(by_number[number] for number in carriers) / len(carriers)
    return (reciprocal_rank_chance(len(carriers)) + of_texts) / 2


def _warning(mrr: MRR, first: float, *, pairs: int, seen: int | None, shards: int) -> str | None:
    if seen:
        return (
            f"it was trained on {seen} of the {shards} shards that it is to steer on, where its "
            "losses are too low to show what is learnable: take one that was trained on others"
        )
    if mrr.low >= MEMORISED and pairs >= FEWEST_MEMORISED:
        return (
            f"it finds the own text of {100 * first:.0f} % of the pairs at once, as a model does "
            "that has memorised them: make sure that it was trained on other data"
        )
    if mrr.low <= NEAR_GUESSING * mrr.guessing:
        return (
            "it is near guessing on these pairs, and would steer by noise: take another, or make "
            "one with `drrho reference join`"
        )
    return None
