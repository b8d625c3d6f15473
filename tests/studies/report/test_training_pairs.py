"""Training pairs of each kind, on embeddings of which it is known what they are."""

import pytest
import torch

from drrho.contrastive.pairs import PairEmbeddings
from drrho.studies.report.training_pairs import choose_training_pairs

CAPTIONS = ["a", "b", "c", "d", "d", "e", "f", "g"]


def embeddings(*, wrong=()):
    """Eight pairs in eight directions; of the wrong ones image and text are opposite."""
    image = torch.eye(8)
    text = torch.eye(8)
    for place in wrong:
        text[place] = -text[place]
    return PairEmbeddings(image, text)


def chosen(target, reference, **changed):
    options = {"temperature": 0.1, "shown": 2} | changed
    return choose_training_pairs(target, reference, CAPTIONS, **options)


def test_each_kind_is_found():
    reference = embeddings(wrong=[1])
    reference.image[4], reference.text[4] = reference.image[3], reference.text[3]
    found = chosen(embeddings(wrong=[0, 1]), reference)
    assert [pair.place for pair in found["learnable"]][:1] == [0]
    assert [pair.place for pair in found["mismatched"]][:1] == [1]
    first = found["redundant"][0]
    assert (first.place, first.repeats, first.equal_captions) == (4, 3, 1)
    learnable = found["learnable"][0]
    assert learnable.reference_ranks == (1, 1)
    assert learnable.target_ranks == (8, 8)
    assert learnable.excess is not None
    assert learnable.excess > 1
    places = [pair.place for pairs in found.values() for pair in pairs]
    assert len(places) == len(set(places))


def test_equal_captions_are_no_competitors():
    target = embeddings()
    target.text[3] = target.text[4] = torch.eye(8)[4]
    found = chosen(target, None, shown=8)
    ranks = {pair.place: pair.target_ranks for pairs in found.values() for pair in pairs}
    assert ranks[3] == (1, 1)


def test_without_a_reference_the_hardest_lead():
    found = chosen(embeddings(wrong=[2]), None)
    assert list(found) == ["hardest", "redundant"]
    assert found["hardest"][0].place == 2
    assert found["hardest"][0].reference_ranks is None
    assert found["hardest"][0].excess is None


def test_strips_change_nothing(monkeypatch):
    whole = chosen(embeddings(wrong=[0, 1]), embeddings(wrong=[1]))
    monkeypatch.setattr("drrho.studies.report.training_pairs.STRIP_ENTRIES", 17)
    strips = chosen(embeddings(wrong=[0, 1]), embeddings(wrong=[1]))
    assert {k: [p.place for p in v] for k, v in strips.items()} == {
        k: [p.place for p in v] for k, v in whole.items()
    }
    assert whole["learnable"][0].excess == pytest.approx(strips["learnable"][0].excess)
