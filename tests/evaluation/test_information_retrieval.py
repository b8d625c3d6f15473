"""Metrics of information retrieval are those of sentence-transformers' evaluator."""

import pytest
import torch
from torch.testing import assert_close

import drrho.integrations  # noqa: F401 - before sentence-transformers imports torchvision
from drrho.evaluation.metrics.information_retrieval import information_retrieval, queries_of

ANCHORS = ["a", "b", "a", "c", "d", "b"]
POSITIVES = [["1"], ["2", "3"], ["4"], ["1"], ["5"], ["2"]]


def test_texts_that_come_again_are_one_query_or_one_document():
    rows, documents, pairs = queries_of(ANCHORS, POSITIVES)
    assert rows.tolist() == [0, 1, 3, 4] and documents == ["1", "2", "3", "4", "5"]
    found = {tuple(pair) for pair in pairs.T.tolist()}
    assert found == {(0, 0), (0, 3), (1, 1), (1, 2), (2, 0), (3, 4)}


@pytest.mark.parametrize("num_documents", [8, 40])
def test_they_are_those_of_the_evaluator(num_documents):
    from sentence_transformers.sentence_transformer.evaluation import (  # noqa: PLC0415
        InformationRetrievalEvaluator,
    )

    generator = torch.Generator().manual_seed(num_documents)
    queries, documents = (torch.randn(n, 3, generator=generator) for n in (25, num_documents))
    relevant = torch.rand(25, num_documents, generator=generator) < 0.15
    relevant[torch.arange(25), torch.arange(25) % num_documents] = True
    embeddings = {f"q{i}": e for i, e in enumerate(queries)}
    embeddings |= {f"d{i}": e for i, e in enumerate(documents)}

    class Model:
        similarity_fn_name = "cosine"

        def encode_query(self, texts, **_):
            return torch.stack([embeddings[text] for text in texts])

        encode_document = encode_query

        def similarity(self, left, right):
            return torch.nn.functional.cosine_similarity(left[:, None], right[None], dim=-1)

    evaluator = InformationRetrievalEvaluator(
        {f"q{i}": f"q{i}" for i in range(25)},
        {f"d{i}": f"d{i}" for i in range(num_documents)},
        {
            f"q{i}": {f"d{j}" for j in row.nonzero().flatten().tolist()}
            for i, row in enumerate(relevant)
        },
        mrr_at_k=[10],
        ndcg_at_k=[10],
        accuracy_at_k=[1],
        precision_recall_at_k=[1, 5, 10],
        map_at_k=[10],
        score_functions={"cosine": Model().similarity},
    )
    scores = evaluator.compute_all_metrics(Model())["cosine"]
    found = information_retrieval(queries, documents, relevant.nonzero().T)
    expected = {"ndcg@10": scores["ndcg@k"][10], "mrr@10": scores["mrr@k"][10]}
    expected |= {f"recall@{k}": value for k, value in scores["recall@k"].items()}
    assert_close(found, {name: float(value) for name, value in expected.items()})


def test_a_perfect_model_reaches_one_and_a_query_without_documents_is_an_error():
    embeddings = torch.eye(12)
    pairs = torch.arange(12).repeat(2, 1)
    assert set(information_retrieval(embeddings, embeddings, pairs).values()) == {1.0}
    with pytest.raises(ValueError, match="each query needs a relevant document"):
        information_retrieval(embeddings, embeddings, pairs[:, 1:])
    with pytest.raises(ValueError, match="recall_at must be at least 1"):
        information_retrieval(embeddings, embeddings, pairs, recall_at=(0,))
