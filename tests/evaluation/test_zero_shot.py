"""Accuracy on planted embeddings, and labels from wherever the data keeps them."""

from dataclasses import replace
from functools import partial

import pytest
import torch
from torch.nn.functional import normalize

from drrho.evaluation.metrics.ranks import positive_ranks
from drrho.evaluation.metrics.zero_shot import (
    ZeroShotTask,
    ensemble,
    label_ranks,
    summarise_labels,
)

TASK = ZeroShotTask(
    name="pets", class_names=("cat", "dog", "2"), templates=("a {}", "{} and {}"), field="animal"
)


def zero_shot(images, classes, labels, *, chunk_size=None):
    ranks = label_ranks(
        images, classes, labels, rank=partial(positive_ranks, chunk_size=chunk_size)
    )
    return summarise_labels(ranks, labels, num_classes=len(classes))


def test_planted_embeddings_have_the_planted_accuracy():
    classes = torch.eye(10)
    labels = torch.arange(10).repeat(20)
    images = classes[labels] + 0.1
    wrong = torch.arange(0, 200, 4)  # a quarter: second choice instead of first
    images[wrong] = classes[(labels[wrong] + 1) % 10] + 0.5 * classes[labels[wrong]]
    metrics = zero_shot(images, classes, labels, chunk_size=7)
    assert metrics["top1"] == pytest.approx(0.75)
    assert metrics["top5"] == 1.0


def test_recall_per_class_weighs_classes_not_images():
    """Class 0: 90 images, all right; class 1: 10 images, all wrong; class 2 does not occur."""
    classes = torch.eye(3)
    labels = torch.tensor([0] * 90 + [1] * 10)
    metrics = zero_shot(classes[torch.zeros(100, dtype=torch.int64)], classes, labels)
    assert metrics == {"top1": pytest.approx(0.9), "mean_per_class_recall": pytest.approx(0.5)}


def test_top5_needs_more_than_five_classes():
    for count, reported in ((5, False), (6, True)):
        eye = torch.eye(count)
        assert ("top5" in zero_shot(eye, eye, torch.arange(count))) is reported


def test_collapsed_model_scores_like_chance():
    metrics = zero_shot(torch.ones(30, 4), torch.ones(10, 4), torch.arange(10).repeat(3))
    assert metrics == pytest.approx({"top1": 0.1, "top5": 0.5, "mean_per_class_recall": 0.1})


def test_classes_of_one_name_share_their_images():
    """Two of ImageNet's classes are called "missile"."""
    classes = torch.eye(3)[[0, 1, 1]]
    labels = torch.tensor([0, 1, 2])
    metrics = zero_shot(classes, classes, labels)
    assert metrics["top1"] == pytest.approx((1 + 0.5 + 0.5) / 3)


def test_label_that_is_no_class_is_an_error():
    for label in (3, -1):
        with pytest.raises(ValueError, match=f"indices of the 3 classes, got {label}"):
            zero_shot(torch.eye(3), torch.eye(3), torch.tensor([0, 1, label]))


def test_class_embedding_ignores_the_length_of_prompt_embeddings():
    generator = torch.Generator().manual_seed(0)
    prompts = torch.randn(4, 3, 8, generator=generator)
    lengths = torch.rand(4, 3, 1, generator=generator) + 0.1
    owners = torch.arange(4).repeat_interleave(3)
    classes = ensemble(prompts.flatten(end_dim=1), owners)
    torch.testing.assert_close(ensemble((prompts * lengths).flatten(end_dim=1), owners), classes)
    torch.testing.assert_close(classes.norm(dim=-1), torch.ones(4))
    alone = ensemble(prompts[:, 0], torch.arange(4))
    torch.testing.assert_close(alone, normalize(prompts[:, 0], dim=-1))


def test_class_embedding_is_as_similar_to_each_of_two_templates():
    prompts = torch.tensor([[1.0, 0.0], [0.0, 5.0]])
    classes = ensemble(prompts, torch.zeros(2, dtype=torch.int64))
    torch.testing.assert_close(classes, torch.tensor([[0.5, 0.5]]).sqrt())


def test_all_names_of_a_class_stand_in_all_templates():
    task = replace(TASK, other_names=(("kitten",), (), ()), templates=("a {}", "{}!"))
    prompts, owners = task.all_prompts()
    assert prompts[:4] == ["a cat", "cat!", "a kitten", "kitten!"]
    assert owners.tolist() == [0, 0, 0, 0, 1, 1, 2, 2]
    with pytest.raises(ValueError, match="one entry for each of the 3 classes, got 1"):
        replace(TASK, other_names=(("kitten",),))


def test_prompts_hold_the_name_wherever_the_template_wants_it():
    assert TASK.prompts("cat") == ["a cat", "cat and cat"]


@pytest.mark.parametrize(
    ("value", "label"), [("dog", 1), (0, 0), ("1", 1), (" 1\n", 1), ("2", 2), (2, 2)]
)
def test_label_is_a_name_or_an_index(value, label):
    assert TASK.label({"animal": value, "cls": 7}) == label


@pytest.mark.parametrize("value", ["bird", 3, "3", -1, 1.5, True, None, ["dog"]])
def test_unknown_label_is_named(value):
    with pytest.raises(ValueError, match="'pets': the label .* 'animal' .*'cat'") as info:
        TASK.label({"animal": value})
    assert repr(value) in str(info.value)


def test_name_of_two_classes_is_no_label():
    task = replace(TASK, class_names=("cat", "cat"))
    with pytest.raises(ValueError, match="neither the name of one class"):
        task.label({"animal": "cat"})


def test_missing_field_is_named_with_those_that_exist():
    with pytest.raises(ValueError, match=r"'animal', but the sample has only \['cls', 'id'\]"):
        TASK.label({"id": 1, "cls": 0})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"class_names": ("cat",)}, "at least two classes"),
        ({"class_names": ("cat", " ")}, "must not be empty"),
        ({"templates": ()}, "got no template"),
        ({"templates": ("a {}", "a cat")}, r"needs \{\} .* got \['a cat'\]"),
    ],
)
def test_task_that_makes_no_sense_is_an_error(change, message):
    with pytest.raises(ValueError, match=message):
        replace(TASK, **change)
