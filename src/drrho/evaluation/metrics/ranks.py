"""The one computation behind retrieval and zero-shot accuracy: the rank of the right answer."""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import normalize

from drrho.runtime.checks import require_at_least

# Cosines closer than this are ties: float32 rounding of a dot product of unit vectors is a few
# 1e-7 and depends on the product's place in the matrix, so a smaller difference says nothing.
TIE = 1e-6
TILE = 2**24  # similarities computed at once: 64 MiB in float32, and as much for comparisons


class PositiveRanks(NamedTuple):
    """Ranks of the best positive of each query; ties are taken to be ordered at random.

    Were ties counted as wins, a collapsed model, which finds everything equally similar, would be
    perfect; were they losses, copies of an image would count against each other. Ordered at
    random, a collapsed model has exactly the hits and the mean rank of guessing.

    Attributes:
        ahead: a, candidates strictly more similar than the best positive.
        tied_positives: p, positives as similar as the best, itself included.
        tied_negatives: q, negatives as similar as the best positive.
    """

    ahead: Int[Tensor, " queries"]
    tied_positives: Int[Tensor, " queries"]
    tied_negatives: Int[Tensor, " queries"]

    def expected(self) -> Float[Tensor, " queries"]:
        """The expected rank, `1 + a + q / (p + 1)`; with one positive, half of the other ties."""
        return 1 + self.ahead + self.tied_negatives.double() / (self.tied_positives + 1)

    def reciprocal(self) -> Float[Tensor, " queries"]:
        """1 / expected rank: by Jensen's inequality never above the expected reciprocal."""
        return self.expected().reciprocal()

    def hits(self, k: int) -> Float[Tensor, " queries"]:
        """Probability that a positive is among the first k; 0 or 1 where nothing is tied.

        The first m = k - a of the tied candidates are all negatives with probability
        `prod over i < m of (q - i) / (p + q - i)`.

        Raises:
            ValueError: k is not positive.
        """
        require_at_least(1, k=k)
        miss = torch.ones_like(self.ahead, dtype=torch.float64)
        for i in range(k):
            negatives = (self.tied_negatives - i).clamp(min=0)
            share = negatives.double() / (negatives + self.tied_positives)
            miss *= torch.where(i < k - self.ahead, share, 1.0)
        return 1 - miss


def positive_ranks(
    queries: Float[Tensor, "queries dim"],
    candidates: Float[Tensor, "candidates dim"],
    *,
    positives: Int[Tensor, "2 pairs"],
    rows: tuple[int, int] | None = None,
    chunk_size: int | None = None,
) -> PositiveRanks:
    """Rank each query's best positive among all candidates, by cosine similarity.

    Args:
        queries: embeddings of any length, any floating type; compared as float32 unit vectors.
        candidates: the same.
        positives: a query and a candidate that is right for it, by their rows, in any order. A
            query may have several, and a candidate may be right for several.
        rows: first query to rank, and the one after the last, so that processes can share the
            work; None ranks all. All are checked in any case.
        chunk_size: queries compared at once; memory is O(chunk_size x candidates). None takes as
            many as make 2^24 similarities.

    Raises:
        ValueError: nothing to compare, an embedding is not finite (its rank would be perfect), a
            query has no positive, or `chunk_size` is not positive.
    """
    require_embeddings("queries", queries)
    require_embeddings("candidates", candidates)
    first, end = (0, len(queries)) if rows is None else rows
    chunk_size = max(1, TILE // len(candidates)) if chunk_size is None else chunk_size
    require_at_least(1, chunk_size=chunk_size)
    positives = _sorted_positives(positives, len(queries), len(candidates))
    of_query = positives[0].contiguous()
    candidates = normalize(candidates.float(), dim=-1)
    none = torch.empty(0, dtype=torch.int64, device=candidates.device)
    ranks = [PositiveRanks(none, none, none)]
    for start in range(first, end, chunk_size):
        stop = min(start + chunk_size, end)
        similarity = normalize(queries[start:stop].float(), dim=-1) @ candidates.T
        bounds = torch.searchsorted(of_query, of_query.new_tensor([start, stop])).tolist()
        query, candidate = positives[:, slice(*bounds)]
        positive = torch.zeros_like(similarity, dtype=torch.bool)
        positive[query - start, candidate] = True
        ranks.append(ranks_of_similarities(similarity, positive))
    return PositiveRanks(*map(torch.cat, zip(*ranks, strict=True)))


def ranks_of_similarities(
    similarity: Float[Tensor, "queries candidates"], positive: Bool[Tensor, "queries candidates"]
) -> PositiveRanks:
    """Rank positives as `positive_ranks`, from cosines; each query has a positive."""
    best = similarity.masked_fill(~positive, -torch.inf).amax(dim=1, keepdim=True)
    gap = similarity - best
    tied = gap.abs() <= TIE
    return PositiveRanks(
        ahead=(gap > TIE).sum(dim=1),
        tied_positives=(tied & positive).sum(dim=1),
        tied_negatives=(tied & ~positive).sum(dim=1),
    )


def _sorted_positives(
    positives: Int[Tensor, "2 pairs"], num_queries: int, num_candidates: int
) -> Int[Tensor, "2 pairs"]:
    """Sort the pairs by query; every query must have one."""
    for name, indices, count in zip(
        ("queries", "candidates"), positives, (num_queries, num_candidates), strict=True
    ):
        outside = (indices < 0) | (indices >= count)
        if outside.any():
            raise ValueError(
                f"positives name rows of the {count} {name}, got {int(indices[outside][0])}"
            )
    orphans = torch.bincount(positives[0], minlength=num_queries) == 0
    if orphans.any():
        raise ValueError(
            f"{int(orphans.sum())} queries have no positive among the candidates, the first is "
            f"query {int(orphans.nonzero()[0])}; leave them out"
        )
    return positives[:, positives[0].argsort(stable=True)]


def require_embeddings(name: str, embeddings: Float[Tensor, "n dim"]) -> None:
    """Raise ValueError unless there is at least one row and all values are finite."""
    if embeddings.shape[0] == 0:
        raise ValueError(f"{name} are empty; there is nothing to score")
    damaged = ~embeddings.isfinite().all(dim=-1)
    if damaged.any():
        raise ValueError(
            f"{int(damaged.sum())} of {len(damaged)} {name} are not finite, the first at row "
            f"{int(damaged.nonzero()[0])}; the model that made them has diverged"
        )
