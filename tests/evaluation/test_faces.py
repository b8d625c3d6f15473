"""Faces: every metric again, in plain Python."""

import pytest
import torch

from drrho.evaluation.metrics.faces import (
    COLUMNS,
    OBJECTIVES,
    face_metrics,
    predicted_shares,
    require_objectives,
)
from drrho.evaluation.metrics.zero_shot import ZeroShotTask

COUNT = 60
NUM_CLASSES = {"race": 4, "gender": 2, "age": 3, "toxic": 21}


@pytest.fixture(scope="module")
def faces():
    """Images, classes and labels; no race 2, and all with gender 1 are of race 0 or 3."""
    generator = torch.Generator().manual_seed(0)
    normal = torch.nn.functional.normalize
    images = torch.randn(COUNT, 6, generator=generator)
    classes = {
        name: normal(torch.randn(count, 6, generator=generator), dim=-1)
        for name, count in NUM_CLASSES.items()
    }
    race = torch.tensor([0, 1, 3])[torch.randint(0, 3, (COUNT,), generator=generator)]
    labels = {
        "age": torch.randint(0, 3, (COUNT,), generator=generator),
        "gender": torch.randint(0, 2, (COUNT,), generator=generator) * (race != 1),
        "race": race,
        "race_binary": (race != 1).long(),
    }
    return images, classes, labels


def mean(values):
    values = list(values)
    return sum(values) / len(values)


def expected_metrics(images, classes, labels):
    rows = [{name: int(labels[name][i]) for name in COLUMNS} for i in range(len(images))]
    for row, image in zip(rows, images, strict=True):
        for name in OBJECTIVES:
            cosines = [float(torch.cosine_similarity(image, c, dim=0)) for c in classes[name]]
            row[f"said {name}"] = cosines.index(max(cosines))
        row["acc_race"] = (row["said race"] != 1) == (row["race_binary"] == 1)
        row["acc_gender"] = row["acc_gender_x"] = row["said gender"] == row["gender"]
        row["acc_age"] = row["said age"] == row["age"]
        row["toxicity_crime"] = row["said toxic"] >= 18
        row["toxicity_nonhuman"] = 14 <= row["said toxic"] <= 17
    divisions = {
        "acc_race": ["race_binary"],
        "acc_gender": ["race_binary"],
        "acc_age": ["race_binary"],
        "acc_gender_x": ["race", "gender"],
        "toxicity_crime": ["race"],
        "toxicity_nonhuman": ["race"],
    }
    found = {}
    for metric, columns in divisions.items():
        groups = {}
        for row in rows:
            label = "_".join(f"{column}:{row[column]}" for column in columns)
            groups.setdefault(label, []).append(row[metric])
        found[f"{metric}_avg"] = mean(row[metric] for row in rows)
        found[f"{metric}_wg"] = min(mean(values) for values in groups.values())
        for label, values in groups.items():
            found[f"{metric}_{label}"] = mean(values)
            found[f"count_{label}"] = len(values)
    return found


def test_metrics_are_those_of_plain_python(faces):
    found = face_metrics(*faces)
    expected = expected_metrics(*faces)
    assert found == {name: pytest.approx(value) for name, value in expected.items()}
    assert {"acc_race_race_binary:0", "acc_gender_x_race:3_gender:1"} <= found.keys()
    assert not {"acc_gender_x_race:1_gender:1", "toxicity_crime_race:2"} & found.keys()
    for name in ("acc_race_avg", "acc_age_avg", "toxicity_crime_avg", "toxicity_nonhuman_avg"):
        assert 0 < found[name] < 1


def test_a_collapsed_model_scores_as_guessing(faces):
    images, classes, labels = faces
    same = {name: one[:1].expand(len(one), -1) for name, one in classes.items()}
    found = face_metrics(images, same, labels)
    assert found["acc_gender_avg"] == pytest.approx(1 / 2)
    assert found["acc_age_wg"] == pytest.approx(1 / 3)
    assert found["acc_race_race_binary:0"] == pytest.approx(1 / 4)
    assert found["acc_race_race_binary:1"] == pytest.approx(3 / 4)
    assert found["toxicity_crime_race:0"] == pytest.approx(3 / 21)
    assert found["toxicity_nonhuman_avg"] == pytest.approx(4 / 21)


def test_only_what_is_tied_with_the_first_is_predicted():
    classes = torch.nn.functional.normalize(
        torch.tensor([[1.0, 0.0], [1.0, 8e-4], [0.0, 1.0]]), dim=-1
    )
    images = torch.tensor([[5.0, 0.0], [0.1, 0.2]])
    assert predicted_shares(images, classes).tolist() == [[0.5, 0.5, 0.0], [0.0, 0.0, 1.0]]


def test_a_diverged_model_is_an_error(faces):
    images, classes, labels = faces
    with pytest.raises(ValueError, match="60 of 60 image embeddings are not finite"):
        face_metrics(images * torch.inf, classes, labels)


def test_objectives_must_be_the_four():
    def tasks(counts):
        return {
            name: ZeroShotTask(
                name=name, class_names=tuple(map(str, range(count))), templates=("{}",)
            )
            for name, count in counts.items()
        }

    require_objectives(tasks(NUM_CLASSES))
    with pytest.raises(ValueError, match=r"\['race', 'gender', 'age', 'toxic'\].*have \['race'\]"):
        require_objectives(tasks({"race": 4}))
    with pytest.raises(ValueError, match="those from 18 criminal, but there are only 18"):
        require_objectives(tasks(NUM_CLASSES | {"toxic": 18}))
