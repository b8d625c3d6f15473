"""Associations, against every order that ties allow and against scikit-learn."""

from itertools import permutations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import jaccard_score

from drrho.evaluation.metrics.associations import (
    Question,
    association_metrics,
    expected_jaccard,
    jaccard_scores,
    parse_question,
)


def question(right, *, size=5, cue="Owl"):
    names = tuple("abcdefghijkl"[:size])
    return Question(cue=cue, candidates=names, associations=tuple(right))


def test_the_prompt_has_an_article():
    prompts = [question("a", cue=cue).prompt for cue in ("Owl", "full Moon", "eagle", "U-boat")]
    assert prompts == ["An owl", "A full moon", "An eagle", "An u-boat"]


@given(st.lists(st.tuples(st.integers(0, 3), st.booleans()), min_size=1, max_size=6))
def test_ties_are_ordered_at_random(candidates):
    levels = [level for level, _ in candidates]
    right = {place for place, (_, belongs) in enumerate(candidates) if belongs} or {0}
    scores = []
    for order in permutations(range(len(candidates))):
        chosen = set(sorted(order, key=lambda place: -levels[place])[: len(right)])
        scores.append(len(chosen & right) / len(chosen | right))
    nearly = torch.tensor([0.1 * level + 1e-7 * place for place, level in enumerate(levels)])
    found = expected_jaccard(nearly, torch.tensor([p in right for p in range(len(levels))]))
    assert found == pytest.approx(sum(scores) / len(scores))


def test_scores_are_those_of_scikit_learn_without_ties():
    generator = torch.Generator().manual_seed(0)
    questions = [
        question("ab"),
        question("bcf", size=6),
        question("acegik", size=12),
        question("d", size=10),
    ]
    sizes = [len(one.candidates) for one in questions]
    images = torch.randn(sum(sizes), 4, generator=generator)
    cues = torch.randn(len(sizes), 4, generator=generator)
    found = jaccard_scores(images * torch.linspace(1, 9, sum(sizes))[:, None], cues * 3, questions)
    for score, one, cue, candidates in zip(
        found, questions, cues, images.split(sizes), strict=True
    ):
        cosines = [float(torch.cosine_similarity(cue, image, dim=0)) for image in candidates]
        least = sorted(cosines)[-sum(one.right)]
        chosen = [cosine >= least for cosine in cosines]
        assert score == pytest.approx(jaccard_score(one.right, chosen))
    assert 0 < sum(found) < len(found)


def test_metrics_are_means_over_numbers_of_candidates():
    metrics = association_metrics([0.0, 0.5, 0.2, 1.0, 0.3], [5, 5, 6, 12, 11])
    assert metrics == {
        "avg_jaccard_score": pytest.approx(0.4),
        "jaccard_score_5": 0.25,
        "jaccard_score_6": 0.2,
        "jaccard_score_10": None,
        "jaccard_score_12": 1.0,
        "jaccard_score_5-6": pytest.approx(0.7 / 3),
        "jaccard_score_10-12": pytest.approx(0.65),
    }


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ((None, ["a"], ["a"]), "cue must be a text, got None"),
        ((" ", ["a"], ["a"]), "the cue is empty"),
        (("owl", '["a"]', ["a"]), r"candidates must be a list of names, got '\[\"a\"\]'"),
        (("owl", ["a"], [None]), r"associations must be a list of names, got \[None\]"),
        (("owl", ["a"], []), "'owl' has no associations"),
        (("owl", ["a"], ["a", "b"]), "2 associations, more than its 1 candidates"),
        (("owl", ["a", "b"], ["c"]), r"none of the candidates.*'owl', \['a', 'b'\]"),
    ],
)
def test_what_is_wrong_in_a_row_is_named(row, message):
    with pytest.raises(ValueError, match=message):
        parse_question(*row)


def test_a_diverged_model_is_an_error():
    with pytest.raises(ValueError, match="1 of 5 image embeddings are not finite.*row 4"):
        jaccard_scores(
            torch.tensor([1.0, 1, 1, 1, torch.nan])[:, None], torch.ones(1, 1), [question("a")]
        )
