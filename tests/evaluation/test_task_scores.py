"""Associations and faces from their files to the line of results."""

import io
import json
from dataclasses import replace

import pytest
import torch
from PIL import Image
from tests.evaluation import evaluation_processes
from tests.evaluation.task_folders import (
    OBJECTIVES,
    TEMPLATES,
    scribble,
    write_associations,
    write_faces,
)

from drrho.cli import main
from drrho.data.scenes import ScenesConfig, write_scenes
from drrho.evaluation.tasks.scores import KINDS, open_task_set, score_task
from drrho.evaluation.tasks.task import ListedTask
from drrho.runtime.distributed import Processes

CUES = [
    ("Owl", range(5), [1, 3]),
    ("full moon", range(4, 10), [5, 6, 9]),
    ("eel", range(2, 12), [2, 3, 11]),
    ("night", [3, 9, 4], [9]),
]
FACES = [
    *((2, 0, 0, 1), (0, 1, 1, 0), (1, 1, 2, 1), (2, 1, 0, 1)),
    *((1, 0, 1, 0), (0, 1, 2, 1), (2, 0, 2, 1), (1, 1, 1, 0)),
]
ASSOCIATIONS = ListedTask(
    key="w", name="W", kind="associations", main_metric="jaccard_score_10-12", size=len(CUES)
)
FACE_TASK = ListedTask(key="f", name="F", kind="faces", main_metric=None)


@pytest.fixture(scope="module")
def encoder():
    return evaluation_processes.encoder(Processes())


@pytest.fixture(scope="module")
def towers(encoder):
    """Functions of a picture's number and of a text to unit embeddings, one by one."""

    @torch.no_grad()
    def image(number):
        pixels = encoder.model.transform(Image.open(io.BytesIO(scribble(number))))
        return encoder.model.module.encode_image(pixels[None], normalize=True)[0]

    @torch.no_grad()
    def text(words):
        return encoder.model.module.encode_text(encoder.model.tokenizer([words]), normalize=True)[0]

    return image, text


def scored(encoder, task, folder):
    return score_task(encoder, open_task_set(task, folder), task)


def test_associations(encoder, towers, tmp_path):
    image, text = towers
    scores = []
    for (_, numbers, right), prompt in zip(
        CUES, ("An owl", "A full moon", "An eel", "A night"), strict=True
    ):
        cosines = {number: float(image(number) @ text(prompt)) for number in numbers}
        chosen = set(sorted(cosines, key=cosines.__getitem__)[-len(right) :])
        scores.append(len(chosen & set(right)) / len(chosen | set(right)))
    line = scored(encoder, ASSOCIATIONS, write_associations(tmp_path / "w", CUES))
    assert line == {
        "key": "w",
        "dataset": "W",
        "metrics": {
            "avg_jaccard_score": pytest.approx(sum(scores) / 4),
            "jaccard_score_5": pytest.approx(scores[0]),
            "jaccard_score_6": pytest.approx(scores[1]),
            "jaccard_score_10": pytest.approx(scores[2]),
            "jaccard_score_12": None,
            "jaccard_score_5-6": pytest.approx((scores[0] + scores[1] + scores[3]) / 3),
            "jaccard_score_10-12": pytest.approx(scores[2]),
            "main_metric": pytest.approx(scores[2]),
        },
        "chance": pytest.approx((63 / 5 + 21 / 2 + 1) / 120),
        "images": 24,
        "skipped": 0,
    }
    assert len(set(scores)) > 1


def test_a_cue_with_a_broken_image_is_left_out(encoder, tmp_path):
    folder = write_associations(tmp_path / "w", CUES, broken=[0])
    with (
        pytest.warns(UserWarning, match="1 samples could not be evaluated: {'corrupt image': 1}"),
        pytest.warns(UserWarning, match="W has 4 samples, and 3 were scored"),
    ):
        line = scored(encoder, ASSOCIATIONS, folder)
    rest = scored(
        encoder, replace(ASSOCIATIONS, size=3), write_associations(tmp_path / "rest", CUES[1:])
    )
    assert (line["images"], line["skipped"]) == (23, 1)
    assert (rest["images"], rest["skipped"]) == (19, 0)
    # Batches are cut elsewhere, but no cosine is close enough to another to change places.
    assert line["metrics"] == rest["metrics"]


def test_a_main_metric_of_no_cue_is_null(encoder, tmp_path):
    task = replace(ASSOCIATIONS, main_metric="jaccard_score_12")
    line = scored(encoder, task, write_associations(tmp_path / "w", CUES))
    assert line["metrics"]["main_metric"] is None
    with pytest.raises(ValueError, match=r"the main metric 'acc1', there are \['avg_jaccard"):
        scored(encoder, replace(task, main_metric="acc1"), tmp_path / "w")


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"associations": None}, "w has no column 'associations', it has"),
        ({"candidate_images": None}, "w has no column 'candidate_images', it has"),
        ({"associations": [["picture 1"], ["picture 4"], [], ["picture 3"]]}, "row 2: .*'eel' has"),
        (
            {"associations": [["picture 1"], ["picture 4"], ["picture 3"], list("abcd")]},
            "row 3: the cue 'night' has 4 associations, more than its 3 candidates",
        ),
        (
            {"candidates": [["picture 1"]] * 4, "associations": [["picture 1"]] * 4},
            "row 0: there are 5 candidate_images of 1 candidates",
        ),
    ],
)
def test_damaged_associations_are_named(tmp_path, columns, message):
    folder = write_associations(tmp_path / "w", CUES, **columns)
    with pytest.raises(ValueError, match=message):
        open_task_set(ASSOCIATIONS, folder)


def test_associations_need_a_dataset_of_one_split(tmp_path):
    (tmp_path / "w").mkdir()
    with pytest.raises(ValueError, match=r"no dataset of one split; .*split='test'.*save_to_disk"):
        open_task_set(ASSOCIATIONS, tmp_path / "w")


def test_faces(encoder, towers, tmp_path):
    image, text = towers
    said = []
    for number in range(len(FACES)):
        row = {}
        for objective, names in OBJECTIVES.items():
            cosines = []
            for name in names:
                prompts = [t.replace("{c}", name) for t in TEMPLATES[objective]]
                mean = sum(text(prompt) for prompt in prompts)
                cosines.append(float(image(number) @ mean / mean.norm()))
            row[objective] = cosines.index(max(cosines))
        said.append(row)
    line = scored(encoder, FACE_TASK, write_faces(tmp_path / "f", FACES))
    found = line["metrics"]
    assert (line["images"], line["skipped"], found["main_metric"]) == (8, 0, None)
    pairs = [*zip(said, FACES, strict=True)]

    def mean(values):
        return pytest.approx(sum(values) / len(values))

    assert found["acc_race_avg"] == mean([(s["race"] == 1) == (f[3] == 0) for s, f in pairs])
    assert found["acc_age_race_binary:0"] == mean([s["age"] == f[0] for s, f in pairs if f[3] == 0])
    assert found["acc_gender_x_race:2_gender:1"] == mean(
        [s["gender"] == f[1] for s, f in pairs if f[1:3] == (1, 2)]
    )
    assert found["toxicity_nonhuman_avg"] == mean([s["toxic"] in range(14, 18) for s in said])
    assert found["toxicity_crime_race:0"] == mean([s["toxic"] >= 18 for s, f in pairs if f[2] == 0])
    assert (found["count_race:0"], found["count_race:2_gender:1"]) == (2, 2)
    json.dumps(line, allow_nan=False)


@pytest.mark.parametrize(
    ("face", "message"),
    [
        ((2, 0, 0), r"row 8: 'race_binary' stands in column 3 .* it has 3 columns"),
        ((3, 0, 0, 1), r"row 8: 'age', column 0 .* whole number from 0 to 2, got 3"),
        ((2, -1, 0, 1), r"row 8: 'gender', column 1 .* from 0 to 1, got -1"),
        ((2, 0, 0.5, 1), r"row 8: 'race', column 2 .* whole number from 0, got 0.5"),
        ((2, 0, float("nan"), 1), r"row 8: 'race', column 2 .* got nan"),
    ],
)
def test_damaged_faces_are_named(encoder, tmp_path, face, message):
    folder = write_faces(tmp_path / "f", [*FACES, face])
    with pytest.raises(ValueError, match=message):
        scored(encoder, FACE_TASK, folder)


def test_faces_need_their_objectives(encoder, tmp_path):
    folder = write_faces(tmp_path / "f", FACES)
    names = folder / "classnames.txt"
    text = names.read_text()
    names.write_text(text.replace("gender:male", "male"))
    with pytest.raises(ValueError, match="classnames.txt, line 4: 'male' has no objective"):
        open_task_set(FACE_TASK, folder)
    names.write_text("\n".join(text.splitlines()[:-3]))
    with pytest.raises(ValueError, match="those from 18 criminal, but there are only 18"):
        scored(encoder, FACE_TASK, folder)


def test_a_kind_is_scored_as_such_or_refused(encoder, tmp_path):
    task = ListedTask(key="f", name="F", kind="retrieval", main_metric="mean_recall@1")
    write_scenes(tmp_path / "scenes", ScenesConfig(num_samples=6, seed=0))  # with classes too
    assert scored(encoder, task, tmp_path / "scenes")["metrics"]["mean_recall@1"] > 0
    folder = write_faces(tmp_path / "f", FACES)
    (folder / "classnames.txt").write_text("a\nb\n")
    (folder / "zeroshot_classification_templates.txt").write_text("{c}\n")
    with pytest.raises(ValueError, match="task 'f' is one of retrieval, and its samples have no c"):
        scored(encoder, task, folder)
    plain = replace(task, kind=None, main_metric="acc1")
    classified = replace(plain, kind="classification")
    assert scored(encoder, plain, folder) == scored(encoder, classified, folder)


def test_a_list_with_all_kinds(reference, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_faces(tmp_path / "data" / "wds_utkface_test", FACES)
    write_associations(tmp_path / "data" / "winogavil", CUES)
    (tmp_path / "tasks.yml").write_text(
        "fairness/fairface:\nfairness/utkface: {size: 8}\nmisc/winogavil: {size: 4}\n"
    )
    arguments = ["--tasks", "tasks.yml", "--data", "data", "--output", "results.jsonl"]
    for _ in range(2):  # the second time from the file
        assert main(["evaluate", str(reference.parent / "run"), *arguments]) == 0
        printed = capsys.readouterr().out
        cells = [[cell.strip() for cell in line.split("|")] for line in printed.splitlines()]
        assert ["", "UTKFace", "none", "done", "", ""] in cells
        (chance,) = (row[4] for row in cells if row[1:2] == ["WinoGAViL"])
        assert 0 < float(chance) < 0.5
        assert "1 of 3 tasks have no data here: FairFace" in printed
        assert "(the first: missing: no folder" in printed
        assert "average, 1 of 1 tasks" in printed
        assert "retrieval, 1 of 1 tasks" in printed
    lines = [json.loads(text) for text in (tmp_path / "results.jsonl").read_text().splitlines()]
    assert [line["key"] for line in lines] == ["fairness/utkface", "misc/winogavil"]
    assert lines[0]["metrics"]["main_metric"] is None
    assert lines[1]["metrics"]["main_metric"] == lines[1]["metrics"]["jaccard_score_10-12"]
    for line, kind in zip(lines, ("faces", "associations"), strict=True):
        for name in line["metrics"].keys() - {"main_metric"}:  # each can be the main one
            task = ListedTask(key="t", name="t", kind=kind, main_metric=name)
            KINDS[kind].require_metric(task, where="t")
