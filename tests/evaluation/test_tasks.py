"""Tasks from files; whatever is wrong is named with its file and line."""

import json
import os
from pathlib import Path

import pytest

from drrho.evaluation.tasks.zero_shot_files import (
    is_retrieval_folder,
    read_clip_benchmark_task,
    read_objectives,
    read_zero_shot_json,
    shards_of_test,
)

ROOT = Path(__file__).parents[2]
DATA = Path(os.environ.get("DRRHO_DATA", ROOT.parent / "shared" / "data"))
TASK = {"class_names": ["circle", "square"], "templates": ["a {}"], "field": "shape"}


def write_folder(folder, *, names="cat\ndog\n", templates="a {c}\n{c}\n"):
    (folder / "classnames.txt").write_text(names)
    (folder / "zeroshot_classification_templates.txt").write_text(templates)
    return folder


def test_folder_of_clip_benchmark(tmp_path):
    task = read_clip_benchmark_task(write_folder(tmp_path))
    assert task.name == tmp_path.name
    assert task.class_names == ("cat", "dog")
    assert task.prompts("dog") == ["a dog", "dog"]
    assert task.label({"cls": "1"}) == 1


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"names": "cat\n\ndog\n"}, "classnames.txt, line 2 is empty"),
        ({"names": ""}, "classnames.txt is empty"),
        ({"templates": "a {c}\na photo\n"}, r"templates.txt, line 2: 'a photo' has no \{c\}"),
        ({"templates": "a {}\n"}, r"templates.txt, line 1: 'a \{\}' has no \{c\}"),
    ],
)
def test_what_is_wrong_in_a_folder_is_named(tmp_path, files, message):
    with pytest.raises(ValueError, match=message):
        read_clip_benchmark_task(write_folder(tmp_path, **files))


def test_several_labels_of_an_image(tmp_path):
    names = "race:black\nrace:white\nage:3-9\nage:more: 10\n"
    templates = "age:{c} years old\nrace:a {c} person\nage:{c}\n"
    race, age = read_objectives(write_folder(tmp_path, names=names, templates=templates))
    assert (race.name, race.class_names, race.templates) == (
        "race",
        ("black", "white"),
        ("a {} person",),
    )
    assert (age.name, age.class_names, age.templates) == (
        "age",
        ("3-9", "more: 10"),
        ("{} years old", "{}"),
    )


@pytest.mark.parametrize(
    ("names", "templates", "message"),
    [
        ("a:x\ny\n", "a:{c}\n", r"classnames.txt, line 2: 'y' has no objective; write"),
        ("a:x\n:y\n", "a:{c}\n", r"classnames.txt, line 2: ':y' has no objective"),
        ("a:x\na:y\n", "{c}\n", r"templates.txt, line 1: '\{c\}' has no objective"),
        ("a:x\na:y\n", "a:{c}\nb:{c}\n", r"templates.txt, line 2: classnames.txt has no.*'b'"),
        ("a:x\na:y\n", "a:photo\n", r"templates.txt, line 1: 'photo' has no \{c\}"),
        ("a:x\na:y\nb:z\nb:u\n", "a:{c}\n", "task 'b': each template.*no template"),
        ("a:x\n", "a:{c}\n", "task 'a' needs at least two classes"),
    ],
)
def test_what_is_wrong_in_objectives_is_named(tmp_path, names, templates, message):
    with pytest.raises(ValueError, match=message):
        read_objectives(write_folder(tmp_path, names=names, templates=templates))


def test_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"templates.txt is missing; .*photo of a \{c\}"):
        read_clip_benchmark_task(tmp_path)


@pytest.mark.skipif(not DATA.is_dir(), reason=f"no real data in {DATA}; set DRRHO_DATA")
@pytest.mark.parametrize(("name", "classes"), [("eurosat", 10), ("grocerystore", 81)])
def test_real_folders(name, classes):
    task = read_clip_benchmark_task(DATA / "classification" / name)
    assert len(task.class_names) == classes
    assert task.label({"cls": str(classes - 1)}) == classes - 1


def test_json_of_several_tasks(tmp_path):
    path = tmp_path / "zero_shot.json"
    other = {"class_names": ["a", "b"], "templates": ["{}"]}
    path.write_text(json.dumps({"shape": TASK, "letter": other}))
    shape, letter = read_zero_shot_json(path)
    assert (shape.name, shape.field, letter.field) == ("shape", "shape", "cls")
    assert shape.label({"shape": "square"}) == 1


def test_a_class_may_have_several_names(tmp_path):
    path = tmp_path / "zero_shot.json"
    path.write_text(
        json.dumps({"t": {"class_names": [["cat", "kitten"], "dog"], "templates": ["{}"]}})
    )
    (task,) = read_zero_shot_json(path)
    assert task.all_prompts()[0] == ["cat", "kitten", "dog"]
    assert task.label({"cls": "cat"}) == 0


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"shape":\n  oops}', "line 2: not JSON"),
        ("[]", "expected an object of task name -> task"),
        ("{}", "at least one"),
        (json.dumps({"shape": ["a"]}), "task 'shape': expected an object"),
        (json.dumps({"shape": TASK | {"labels": 1}}), "task 'shape': .*'labels'"),
        (json.dumps({"shape": {"templates": ["{}"]}}), r"task 'shape': .*\['templates'\]"),
        (json.dumps({"shape": TASK | {"templates": "a {}"}}), "templates must be a list"),
        (json.dumps({"shape": TASK | {"class_names": [1, 2]}}), "class_names must be a list"),
        (json.dumps({"shape": TASK | {"class_names": ["a", []]}}), "class_names must be a list"),
        (json.dumps({"shape": TASK | {"field": None}}), "field must be a text, got None"),
        (json.dumps({"shape": TASK | {"templates": ["a"]}}), r"'shape': each template needs \{\}"),
    ],
)
def test_what_is_wrong_in_json_is_named(tmp_path, content, message):
    path = tmp_path / "zero_shot.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=message) as info:
        read_zero_shot_json(path)
    assert str(path) in str(info.value)


def test_type_and_shards_of_a_folder(tmp_path):
    assert not is_retrieval_folder(tmp_path)
    (tmp_path / "dataset_type.txt").write_text("Retrieval\n")
    assert is_retrieval_folder(tmp_path)
    (tmp_path / "dataset_type.txt").write_text("multilabel")
    with pytest.raises(ValueError, match="dataset_type.txt: a data set of type 'multilabel'"):
        is_retrieval_folder(tmp_path)
    with pytest.raises(FileNotFoundError, match="test is missing"):
        shards_of_test(tmp_path)
    (tmp_path / "test").mkdir()
    assert shards_of_test(tmp_path) == str(tmp_path / "test")
    counted = tmp_path / "test" / "nshards.txt"
    counted.write_text("2\n")
    (tmp_path / "test" / "0.tar").touch()
    with pytest.raises(FileNotFoundError, match=r"lacks 1 of the 2 shards.*first is 1\.tar"):
        shards_of_test(tmp_path)
    (tmp_path / "test" / "1.tar").touch()
    assert shards_of_test(tmp_path) == str(tmp_path / "test" / "{0..1}.tar")
    counted.write_text("two")
    with pytest.raises(ValueError, match="nshards.txt must hold the number of shards, got 'two'"):
        shards_of_test(tmp_path)
