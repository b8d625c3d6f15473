"""Chance levels are what guessing reaches: the mean over all orders of the candidates."""

import math
from itertools import permutations

import pytest
import torch

from drrho.evaluation.metrics.associations import Question, guessed_jaccard, jaccard_scores
from drrho.evaluation.metrics.chance import beside, label_chance, retrieval_chance
from drrho.evaluation.metrics.retrieval import distinct_texts
from drrho.plotting.table import metrics_table


@pytest.mark.parametrize(
    "captions",
    [["a", "b", "c"], [["a", "b"], ["c"], ["a"], ["d", "e"]], ["a", "a", "b"], ["a"]],
    ids=["one each", "several", "shared", "one"],
)
def test_chance_of_retrieval_is_the_mean_over_all_orders(captions):
    texts, pairs = distinct_texts(captions)
    found = retrieval_chance(pairs, images=len(captions), texts=len(texts), recall_at=(1, 2))
    sides = {"image_to_text": (pairs, len(texts)), "text_to_image": (pairs.flip(0), len(captions))}
    for side, (owners, candidates) in sides.items():
        ranks = torch.tensor(
            [
                [min(order[c] for q, c in owners.T.tolist() if q == query) + 1
                 for order in permutations(range(candidates))]
                for query in range(int(owners[0].max()) + 1)
            ]
        ).double()  # fmt: skip
        assert found[f"mrr_{side}"] == pytest.approx(float(ranks.reciprocal().mean()))
        for k in (1, 2):
            assert found[f"{side}/R@{k}"] == pytest.approx(float((ranks <= k).double().mean()))
    assert found["mrr"] == pytest.approx(
        (found["mrr_image_to_text"] + found["mrr_text_to_image"]) / 2
    )


def test_chance_among_a_thousand_pairs_is_the_known_number():
    pairs = torch.arange(1000).expand(2, -1)
    found = retrieval_chance(pairs, images=1000, texts=1000)
    harmonic = math.fsum(1 / rank for rank in range(1, 1001))
    assert found["mrr"] == pytest.approx(harmonic / 1000)
    assert found["image_to_text/R@10"] == pytest.approx(0.01)


def test_chance_of_classes_and_associations():
    assert label_chance(4) == {"top1": 0.25, "top5": 1.0, "mean_per_class_recall": 0.25}
    assert label_chance(10)["top5"] == 0.5
    question = Question(cue="x", candidates=tuple("abcde"), associations=("a", "b"))
    scores = []
    for order in permutations(range(5)):
        cosines = torch.eye(5)[list(order)]
        cue = torch.tensor([[5.0, 4.0, 3.0, 2.0, 1.0]])
        scores.append(jaccard_scores(cosines, torch.nn.functional.normalize(cue), [question])[0])
    assert guessed_jaccard(question) == pytest.approx(sum(scores) / len(scores))


def test_chance_stands_beside_its_score():
    scores = beside({"mrr": 0.5, "images": 4.0}, {"mrr": 0.25})
    assert list(scores.items()) == [("mrr", 0.5), ("mrr/chance", 0.25), ("images", 4.0)]
    lines = metrics_table({"test": scores}).splitlines()
    assert [cell.strip() for cell in lines[0].split("|")[1:-1]] == ["", "test", "chance"]
    assert [cell.strip() for cell in lines[2].split("|")[1:-1]] == ["mrr", "0.5000", "0.2500"]
    assert [cell.strip() for cell in lines[3].split("|")[1:-1]] == ["images", "4", ""]
    several = metrics_table({"a": scores, "b": {"mrr": 0.1}}).splitlines()[0]
    assert [cell.strip() for cell in several.split("|")[1:-1]] == ["", "a", "a, chance", "b"]
