"""Scores of all pairs of a data set by a run and its reference, and repetitions among them."""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from drrho.contrastive.pairs import PairEmbeddings
from drrho.data.examples import evaluation_batches
from drrho.data.manifest import Manifest
from drrho.encoding.encoder import EmbeddingModel
from drrho.encoding.pairs import embed_pairs
from drrho.reference.reader import Reference
from drrho.runtime.progress import Progress
from drrho.studies.curate.pair_quality import PairScores, nearest_earlier, pair_scores

TILE = 1024


class Quality(NamedTuple):
    """Scores of the readable pairs with embeddings of the reference, in the order of their ids.

    Pairs with embeddings that are not finite have no scores, and are counted.
    """

    sample_ids: Int64[Tensor, " pairs"]
    texts: list[tuple[str, str]]  # key and caption of each
    scores: PairScores
    negatives: PairEmbeddings  # by the reference
    num_not_finite: int

    @property
    def excess_loss(self) -> Float[Tensor, " pairs"]:
        return self.scores.loss[:, 2]


class Reading(NamedTuple):
    """Pairs encoded at once, and processes that decode them."""

    batch_size: int
    workers: int


def score_pairs(
    encoder: EmbeddingModel,
    manifest: Manifest,
    store: Reference,
    *,
    drawn: Int64[Tensor, " negatives"],
    temperature: float,
    reading: Reading,
) -> Quality:
    """Scores every pair against the same negatives, in one pass; see `pair_scores`."""
    others = embed_pairs(
        encoder, manifest, drawn, batch_size=reading.batch_size, description="negatives"
    )
    known = store.gather(others.sample_ids).pairs
    usable = finite_pairs(others.target, known)
    negatives, negative_ids = (
        (others.target.take(usable), known.take(usable)),
        others.sample_ids[usable],
    )
    batches = evaluation_batches(
        manifest,
        encoder.transform,
        batch_size=reading.batch_size,
        workers=reading.workers,
        parts=("caption",),
    )
    sample_ids, texts, parts, lost = [], [], [], 0
    with Progress("pairs", total=manifest.num_samples, unit="pairs") as progress:
        for batch in batches:
            progress.advance(len(batch.sample_ids))
            rows = store.gather(batch.sample_ids)
            target = encoder.encode_pairs(batch.images, batch.first_captions)
            finite = finite_pairs(target, rows.pairs)
            lost += int((rows.present & ~finite).sum())
            scored = rows.present & finite
            if not scored.any():
                continue
            ids = batch.sample_ids[scored]
            scores = pair_scores(
                target.take(scored),
                rows.pairs.take(scored),
                negatives=negatives,
                same=ids[:, None] == negative_ids,
                temperature=temperature,
            )
            sample_ids.append(ids)
            both = zip(batch.keys, batch.first_captions, strict=True)
            texts += [
                text for text, is_scored in zip(both, scored.tolist(), strict=True) if is_scored
            ]
            parts.append(scores)
    if not parts:
        raise ValueError(
            "no pair could be read that the reference has embeddings of"
            + (f"; {lost:,} have embeddings that are not finite" if lost else "")
        )
    scores = PairScores(*(torch.cat(column) for column in zip(*parts, strict=True)))
    return Quality(torch.cat(sample_ids), texts, scores, negatives[1], lost)


def finite_pairs(*models: PairEmbeddings) -> Bool[Tensor, " pairs"]:
    """Which pairs have embeddings that are finite, by every model."""
    rows = [part.isfinite().all(dim=1) for pairs in models for part in pairs]
    return torch.stack(rows).all(dim=0)


def find_repeats(
    store: Reference, sample_ids: Int64[Tensor, " pairs"], *, similarity: float
) -> Int64[Tensor, " pairs"]:
    """Finds the first earlier pair that each pair repeats, or -1; all against all, in tiles."""
    found = torch.full_like(sample_ids, -1)
    starts = range(0, len(sample_ids), TILE)
    with Progress("repetitions", total=len(starts), unit="tiles of rows") as progress:
        for top in starts:
            ids = sample_ids[top : top + TILE]
            pairs = store.gather(ids).pairs
            for left in range(0, top + 1, TILE):
                earlier_ids = sample_ids[left : left + TILE]
                earlier = store.gather(earlier_ids).pairs
                place = nearest_earlier(pairs, earlier, similarity=similarity)
                # On the diagonal the first that is alike is the pair itself if none before it is.
                new = (place >= 0) & (earlier_ids[place.clamp_min(0)] < ids)
                new &= found[top : top + TILE] < 0
                found[top : top + TILE][new] = earlier_ids[place[new]]
            progress.advance(1)
    return found
