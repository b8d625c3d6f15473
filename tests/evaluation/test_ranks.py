"""Ranks are what sorting gives, and ties are what ordering them at random gives."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from drrho.evaluation.metrics.ranks import PositiveRanks, positive_ranks

examples = settings(max_examples=40)
seeds = st.integers(0, 2**31)


def lattice(rows, generator):
    """Embeddings of few different directions, so that many similarities are exactly tied."""
    return torch.randint(0, 2, (rows, 3), generator=generator).float() + torch.tensor([1.0, 0, 0])


def ranks_of(queries, candidates, query_labels, candidate_labels, chunk_size=4):
    """A candidate is right for a query if their labels are equal."""
    return positive_ranks(
        queries,
        candidates,
        positives=(query_labels[:, None] == candidate_labels).nonzero().T.flip(1),
        chunk_size=chunk_size,
    )


def first_positive_over_random_orders(similarity, positive, *, orders, generator):
    """Rank of the first positive when candidates are sorted, ties in a random order."""
    found = []
    for _ in range(orders):
        shuffle = torch.randperm(len(similarity), generator=generator)
        order = shuffle[similarity[shuffle].argsort(descending=True, stable=True)]
        found.append(int(positive[order].nonzero()[0]) + 1)
    return torch.tensor(found, dtype=torch.float64)


@examples
@given(seeds, st.integers(1, 6), st.integers(0, 8))
def test_ranks_and_hits_are_those_of_random_tie_breaking(seed, num_labels, extra):
    generator = torch.Generator().manual_seed(seed)
    candidate_labels = torch.cat(
        [torch.arange(num_labels), torch.randint(0, num_labels, (extra,), generator=generator)]
    )
    query, candidates = lattice(1, generator), lattice(num_labels + extra, generator)
    label = torch.randint(0, num_labels, (1,), generator=generator)
    ranks = ranks_of(query, candidates, label, candidate_labels)

    similarity = torch.cosine_similarity(query.double(), candidates.double()).mul(1e6).round()
    orders = 400
    sampled = first_positive_over_random_orders(
        similarity, candidate_labels == label, orders=orders, generator=generator
    )
    error = 5 * sampled.std() / math.sqrt(orders) + 1e-9
    assert abs(ranks.expected() - sampled.mean()) <= error
    for k in (1, 2, 5):
        error = 5 * 0.5 / math.sqrt(orders)
        assert abs(ranks.hits(k) - (sampled <= k).double().mean()) <= error


def test_hits_are_exact_counts_of_orders():
    """1 candidate ahead, 2 positives and 2 negatives tied: all 24 orders of the tie."""
    one = torch.ones(1, dtype=torch.int64)
    ranks = PositiveRanks(ahead=one, tied_positives=2 * one, tied_negatives=2 * one)
    first = [1 + 1 + min(order[0], order[1]) for order in itertools.permutations(range(4))]
    assert ranks.expected().item() == pytest.approx(sum(first) / 24)
    for k in range(1, 8):
        assert ranks.hits(k).item() == pytest.approx(sum(r <= k for r in first) / 24)


@examples
@given(seeds, st.integers(1, 9))
def test_untied_ranks_are_those_of_sorting(seed, chunk_size):
    generator = torch.Generator().manual_seed(seed)
    queries, candidates = (torch.randn(n, 5, generator=generator) for n in (9, 7))
    labels = torch.randint(0, 7, (9,), generator=generator)
    ranks = ranks_of(queries, candidates, labels, torch.arange(7), chunk_size)
    similarity = torch.cosine_similarity(queries[:, None], candidates[None], dim=-1)
    order = similarity.argsort(dim=1, descending=True)
    sorted_ranks = (order == labels[:, None]).int().argmax(dim=1) + 1
    assert torch.equal(ranks.expected(), sorted_ranks.double())
    assert torch.equal(ranks.reciprocal(), 1 / sorted_ranks.double())
    assert torch.equal(ranks.hits(3), (sorted_ranks <= 3).double())


def test_near_ties_of_rounding_are_ties():
    """A collapsed model's similarities differ in the last bit, depending on the matrix product."""
    generator = torch.Generator().manual_seed(0)
    vector = torch.randn(1, 515, generator=generator)
    count = 257
    noisy = vector * (1 + 1e-3 * torch.rand(count, 1, generator=generator))  # directions agree
    labels = torch.arange(count)
    ranks = ranks_of(vector.expand(count, -1) * 0.7, noisy, labels, labels, chunk_size=100)
    assert torch.equal(ranks.tied_negatives, torch.full((count,), count - 1))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_precision_of_the_embeddings_is_free(dtype):
    embeddings = torch.eye(4, dtype=dtype)
    ranks = ranks_of(embeddings, embeddings, torch.arange(4), torch.arange(4))
    assert torch.equal(ranks.expected(), torch.ones(4, dtype=torch.float64))


def test_what_cannot_be_ranked_is_an_error():
    eye, labels = torch.eye(3), torch.arange(3)
    broken = eye.clone()
    broken[1, 2] = torch.nan
    with pytest.raises(ValueError, match="1 of 3 queries are not finite, the first at row 1"):
        ranks_of(broken, eye, labels, labels)
    with pytest.raises(ValueError, match="1 of 3 candidates are not finite"):
        ranks_of(eye, broken, labels, labels)
    with pytest.raises(ValueError, match="1 queries have no positive.*query 1"):
        ranks_of(eye, eye, torch.tensor([0, 7, 1]), labels)
    with pytest.raises(ValueError, match="queries are empty"):
        ranks_of(eye[:0], eye, labels[:0], labels)
    with pytest.raises(ValueError, match="candidates are empty"):
        ranks_of(eye, eye[:0], labels, labels[:0])
    with pytest.raises(ValueError, match="chunk_size must be at least 1, got 0"):
        ranks_of(eye, eye, labels, labels, chunk_size=0)
    with pytest.raises(ValueError, match="k must be at least 1, got 0"):
        ranks_of(eye, eye, labels, labels).hits(0)
