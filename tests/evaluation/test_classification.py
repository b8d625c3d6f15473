"""Metrics of classes and groups, against scikit-learn."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import f1_score, recall_score

from drrho.evaluation.metrics.classification import classification_metrics, predicted_classes
from drrho.evaluation.metrics.zero_shot import label_ranks


def drawn(seed, *, images=30, classes=6):
    generator = torch.Generator().manual_seed(seed)
    directions = torch.nn.functional.normalize(torch.randn(classes, 4, generator=generator), dim=-1)
    labels = torch.randint(0, classes - 1, (images,), generator=generator)  # one never occurs
    embeddings = directions[labels] + torch.randn(images, 4, generator=generator)
    return embeddings, directions, labels, torch.randint(0, 4, (images,), generator=generator)


def metrics_of(embeddings, classes, labels, groups):
    return classification_metrics(
        label_ranks(embeddings, classes, labels),
        labels,
        predicted=predicted_classes(embeddings, classes),
        num_classes=len(classes),
        groups=groups,
    )


@settings(max_examples=20)
@given(st.integers(0, 2**31))
def test_metrics_are_those_of_scikit_learn(seed):
    embeddings, classes, labels, region = drawn(seed)
    similarity = torch.cosine_similarity(embeddings[:, None], classes[None], dim=-1)
    predicted = similarity.argmax(dim=1)
    found = metrics_of(embeddings, classes, labels, {"region": region})
    right = (predicted == labels).double()
    top5 = (similarity.topk(5).indices == labels[:, None]).any(dim=1).double()
    assert found["acc1"] == pytest.approx(float(right.mean()))
    assert found["acc5"] == pytest.approx(float(top5.mean()))
    occurring = labels.unique()
    recall = recall_score(labels, predicted, average="macro", labels=occurring)
    assert found["mean_per_class_recall"] == pytest.approx(recall)
    f1 = f1_score(labels, predicted, average="macro", labels=occurring, zero_division=0)
    assert found["F1-macro_all"] == pytest.approx(f1)
    for name, values in (("acc", right), ("acc_top5", top5)):
        of_groups = {int(g): float(values[region == g].mean()) for g in region.unique()}
        for group, value in of_groups.items():
            assert found[f"{name}_region:{group}"] == pytest.approx(value)
        assert found[f"{name}_wg"] == pytest.approx(min(of_groups.values()))


def test_several_divisions_have_a_worst_each():
    embeddings, classes, labels, region = drawn(0, classes=4)
    found = metrics_of(embeddings, classes, labels, {"region": region, "year": labels * 3})
    assert found["acc5"] is None
    assert {"acc_worst_region", "acc_worst_year", "acc_year:3"} <= found.keys()
    assert not {"acc_wg", "acc_year:1", "acc_top5_worst_year"} & found.keys()
