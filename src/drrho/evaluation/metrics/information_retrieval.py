"""Metrics of information retrieval: nDCG, MRR and recall of the first k documents of each query."""

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import normalize

from drrho.evaluation.metrics.ranks import TILE, require_embeddings
from drrho.evaluation.metrics.retrieval import Pairs
from drrho.runtime.checks import require_at_least

Recall = Sequence[int]


def information_retrieval(
    queries: Float[Tensor, "queries dim"],
    documents: Float[Tensor, "documents dim"],
    relevant: Pairs,
    *,
    k: int = 10,
    recall_at: Recall = (1, 5, 10),
) -> dict[str, float]:
    """Compute nDCG@k, MRR@k and recall of queries among documents, by cosine similarity.

        nDCG@k = sum over the first k with r = 1 of 1 / log2(rank + 1), over the largest there is
        MRR@k = 1 / rank of the first relevant document, 0 beyond k
        recall@k = share of a query's relevant documents that are among the first k

    each averaged over queries. Equal similarities are in the order of the documents.

    Args:
        queries, documents: embeddings of any length.
        relevant: rows of a query and of a document that is relevant for it, each once.
        k: documents that nDCG and MRR look at.
        recall_at: numbers of documents that recall looks at.

    Returns:
        `ndcg@k`, `mrr@k` and `recall@k` of each k.

    Raises:
        ValueError: there are no queries or documents, one is not finite, a query has no relevant
            document, or a k is not positive.

    Source: as `InformationRetrievalEvaluator` of sentence-transformers computes them.
    """
    require_at_least(1, k=k)
    for at in recall_at:
        require_at_least(1, recall_at=at)
    require_embeddings("queries", queries)
    require_embeddings("documents", documents)
    num_relevant = torch.bincount(relevant[0], minlength=len(queries))
    if len(num_relevant) > len(queries) or not bool((num_relevant > 0).all()):
        raise ValueError(
            "each query needs a relevant document, and each pair a query that is there"
        )
    depth = min(max(k, *recall_at), len(documents))
    hits = _hits(queries, documents, relevant, depth=depth).double()
    gains = 1 / torch.arange(2, depth + 2, dtype=torch.float64).log2()
    best = gains[: min(k, depth)].cumsum(0)[num_relevant.clamp(max=min(k, depth)) - 1]
    at_k = hits[:, :k]
    first = torch.where(at_k.any(dim=1), at_k.argmax(dim=1) + 1, torch.inf)
    found = {
        f"ndcg@{k}": float(((at_k * gains[:k]).sum(dim=1) / best).mean()),
        f"mrr@{k}": float((1 / first).mean()),
    }
    for at in recall_at:
        found[f"recall@{at}"] = float((hits[:, :at].sum(dim=1) / num_relevant).mean())
    return found


def queries_of(
    anchors: Sequence[str], positives: Sequence[Sequence[str]]
) -> tuple[Int[Tensor, " queries"], list[str], Pairs]:
    """List distinct anchors and positives, and which belong together, of pairs of texts.

    A text that comes several times, alone or with others, is one query or one document.

    Returns:
        The place of each query's first row, the documents, and the pairs, each once.
    """
    rows: dict[str, int] = {}
    queries: dict[str, int] = {}
    documents: dict[str, int] = {}
    pairs: dict[tuple[int, int], None] = {}
    for row, (anchor, texts) in enumerate(zip(anchors, positives, strict=True)):
        rows.setdefault(anchor, row)
        query = queries.setdefault(anchor, len(queries))
        for text in texts:
            pairs[query, documents.setdefault(text, len(documents))] = None
    found = torch.tensor(list(pairs), dtype=torch.int64).reshape(-1, 2).T
    return torch.tensor(list(rows.values())), list(documents), found


def both_directions(
    anchors: Float[Tensor, "queries dim"], positives: Float[Tensor, "documents dim"], pairs: Pairs
) -> Mapping[str, float]:
    """Compute `anchor_to_positive/...` and `positive_to_anchor/...`."""
    directions = {
        "anchor_to_positive": information_retrieval(anchors, positives, pairs),
        "positive_to_anchor": information_retrieval(positives, anchors, pairs.flip(0)),
    }
    return {f"{way}/{name}": v for way, found in directions.items() for name, v in found.items()}


def _hits(
    queries: Tensor, documents: Tensor, relevant: Pairs, *, depth: int
) -> Int[Tensor, "queries depth"]:
    """Mark which of each query's first documents are relevant."""
    documents = normalize(documents.float(), dim=-1)
    size = max(1, TILE // len(documents))
    found = []
    for start in range(0, len(queries), size):
        similarity = normalize(queries[start : start + size].float(), dim=-1) @ documents.T
        ordered = similarity.argsort(dim=1, descending=True, stable=True)[:, :depth]
        own = (relevant[0] >= start) & (relevant[0] < start + size)
        marks = torch.zeros_like(similarity, dtype=torch.int64)
        marks[relevant[0][own] - start, relevant[1][own]] = 1
        found.append(marks.gather(1, ordered))
    return torch.cat(found)
