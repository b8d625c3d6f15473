"""Task lists in DataComp's form."""

from pathlib import Path

import pytest

from drrho.evaluation.tasks.listing import read_task_list, task_folders


def test_the_tasks_of_datacomp():
    tasks = {task.key: task for task in read_task_list("datacomp")}
    assert len(tasks) == 40
    scored = [task for task in tasks.values() if task.main_metric is not None]
    assert len(scored) == 38  # of DataComp's average
    unscored = set(tasks) - {task.key for task in scored}
    assert {key: tasks[key].kind for key in unscored} == {
        "fairness/fairface": "faces",
        "fairness/utkface": "faces",
    }
    assert tasks["misc/winogavil"].kind == "associations"
    assert task_folders(tasks["misc/winogavil"], Path("d"))[0] == Path("d/winogavil")
    assert tasks["vtab/pets"].main_metric == "mean_per_class_recall"
    assert tasks["imagenet1k"].main_metric == "acc1"
    assert tasks["wilds/fmow"].group_by == {"region": 0, "year": 1}
    assert sum(task.suite == "VTAB" for task in scored) == 13
    assert task_folders(tasks["vtab/eurosat"], Path("d"))[0] == Path("d/wds_vtab-eurosat_test")
    assert Path("d/wds_dollar_street_test") in task_folders(
        tasks["fairness/dollar_street"], Path("d")
    )


def test_a_list_needs_to_say_only_what_is_its_own(tmp_path):
    path = tmp_path / "tasks.yml"
    path.write_text(
        "mine: {folder: here}\nwilds/fmow: {name: FMoW, time: 88, tags: [wilds]}\n"
        "fairness/fairface: {size: 3}\n"
    )
    mine, fmow, faces = read_task_list(str(path))
    assert (mine.name, mine.main_metric) == ("mine", "acc1")
    assert task_folders(mine, tmp_path) == [tmp_path / "here"]
    assert (fmow.main_metric, fmow.size) == ("acc_worst_region", 22108)
    assert (faces.kind, faces.main_metric, faces.size) == ("faces", None, 3)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a: [", "is not YAML"),
        ("[]", "must be an object of task key"),
        ("a: 3", "task 'a': expected an object, got 3"),
        ("a: {size: 1}\nb:\na: {size: 2}", "has the task 'a' more than once"),
        ("a: {metric: acc1}", r"task 'a': unknown entries \['metric'\]"),
        ("a: {name: 3}", "name must be a text, got 3"),
        ("a: {size: many}", "size must be a positive number, got 'many'"),
        (
            "a: {main_metric: [acc1]}",
            r"main_metric must be a .* or null, got \['acc1'\]",
        ),
        ("a: {kind: ranking}", r"kind must be one of \['classification',.*got 'ranking'"),
        ("a: {kind: faces, group_by: {race: 2}}", "group_by has no effect.*kind 'faces'"),
        ("a: {group_by: [region]}", r"group_by must be an object.*\['region'\]"),
    ],
)
def test_what_is_wrong_in_a_list_is_named(tmp_path, content, message):
    path = tmp_path / "tasks.yml"
    path.write_text(content)
    with pytest.raises(ValueError, match=message) as info:
        read_task_list(str(path))
    assert str(path) in str(info.value)


def test_missing_list_is_named():
    with pytest.raises(FileNotFoundError, match="tsk.yml does not exist.*'datacomp'"):
        read_task_list("tsk.yml")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a: {folder: ../x}", r"task 'a': '\.\./x' leads out of"),
        ("a: {folder: /etc}", "'/etc' leads out of"),
        ("../../a: {}", r"'\.\./\.\./a' leads out of"),
        ("a: &x {size: 1}\nb: *x", "has aliases"),
        ("a: " + "[" * 600 + "]" * 600, "is not YAML: maximum recursion"),
    ],
)
def test_a_list_leads_nowhere_and_stands_for_no_more_than_it_says(content, message, tmp_path):
    path = tmp_path / "list.yml"
    path.write_text(content)
    with pytest.raises(ValueError, match=message):
        for task in read_task_list(str(path)):
            task_folders(task, tmp_path)
