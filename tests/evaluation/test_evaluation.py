"""Evaluation by several processes, of folders in clip_benchmark's layout, and of task lists."""

import json
import shutil
from dataclasses import replace

import pytest
import torch
from tests.data.tar_files import pair, picture, write_shard
from tests.evaluation import evaluation_processes
from tests.evaluation.task_folders import array, write_associations, write_faces
from tests.processes import free_port, run

from drrho.cli import main
from drrho.data.indexing import index_shards
from drrho.data.scenes import ScenesConfig, write_scenes
from drrho.evaluation.evaluate import EvaluateConfig, chance_on, evaluate_encoder
from drrho.evaluation.metrics.retrieval import retrieval_ranks, separate_texts
from drrho.evaluation.metrics.zero_shot import ensemble
from drrho.evaluation.sets import EmbeddedSet, open_evaluation_set
from drrho.evaluation.tasks.benchmark import TaskScore, averages
from drrho.evaluation.tasks.scores import KINDS, score_task
from drrho.evaluation.tasks.task import ListedTask
from drrho.runtime.distributed import Processes


def classified(folder, labels, *, regions=None, names=5):
    """Images of a class and a region, in clip_benchmark's layout."""
    samples = [{"png": picture(i), "cls": str(label).encode()} for i, label in enumerate(labels)]
    for sample, region in zip(samples, regions or [], strict=False):
        sample["npy"] = array(region, 7)
    write_shard(folder / "test" / "0.tar", samples)
    (folder / "test" / "nshards.txt").write_text("1\n")
    (folder / "classnames.txt").write_text("".join(f"class {i}\n" for i in range(names)))
    (folder / "zeroshot_classification_templates.txt").write_text("a {c}\n{c}!\n")
    return folder


def captioned(folder, captions):
    samples = [
        {"png": picture(i), "txt": "\n".join(lines).encode()} for i, lines in enumerate(captions)
    ]
    write_shard(folder / "test" / "0.tar", samples)
    (folder / "dataset_type.txt").write_text("retrieval\n")
    return folder


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sets")
    write_scenes(folder / "scenes", ScenesConfig(num_samples=18, seed=1, samples_per_shard=11))
    write_shard(folder / "one" / "0.tar", [pair(0)])  # fewer batches than processes
    classified(folder / "letters", [0, 1, 2, 3, 4, 0, 1], regions=[0, 0, 2, 2, 2, 0, 2])
    captioned(folder / "pairs", [["a b", "c"], ["d"], ["a d c", "b", "b a"], ["c a"]] * 3)
    classified(folder / "wrong", [0, 1, 2, 3, 4, 0, 5], regions=[0] * 7)
    faces = [(i % 3, i % 2, i % 5, int(i % 5 != 1)) for i in range(11)]
    write_faces(folder / "faces", faces)
    write_faces(folder / "short", [*faces, (0, 0, 1)])
    cues = [("owl", range(5), [1, 4]), ("Moon", range(3, 9), [7]), ("eel", range(12), [2, 3, 5])]
    write_associations(folder / "cues", cues)
    return folder


def test_two_processes_find_what_one_finds(sets, tmp_path):
    alone = evaluation_processes.answers(Processes(), sets)
    folder = tmp_path / "sets"
    shutil.copytree(sets, folder)
    for name in ("wrong", "short"):
        alone[name] = alone[name].replace(str(sets), str(folder))
    first = alone | {name: f"on process 1: {alone[name]}" for name in ("wrong", "short")}
    found = run(evaluation_processes.answers_of, free_port(35_000), folder, world=2, group=False)
    assert found == [first, alone]
    assert "0.tar, row 6: task 'wrong': the label 5" in alone["wrong"]
    assert "0.tar, row 11: 'race_binary' stands in column 3" in alone["short"]
    assert alone["faces"]["metrics"]["count_race:4_gender:1"] == 1
    assert 0 < alone["cues"]["metrics"]["main_metric"] < 1
    assert alone["cues"]["images"] == 23
    metrics = alone["letters"]["metrics"]
    assert metrics["count_region:0"] == 3
    assert metrics["acc_wg"] == metrics["acc_worst_region"]
    assert metrics["main_metric"] == metrics["acc1"]
    assert len(alone["scenes"]["each"]) == 18


@pytest.fixture
def tasks(tmp_path, monkeypatch):
    """A folder of tasks' folders, and a list with other troubles too."""
    monkeypatch.chdir(tmp_path)
    classified(tmp_path / "data" / "wds_vtab-letters_test", [0, 1, 2, 3])
    captioned(tmp_path / "data" / "retrieval" / "pairs", [["a", "b"], ["c"], ["d", "e"]])
    (tmp_path / "tasks.yml").write_text(
        "vtab/letters: {name: Letters, main_metric: mean_per_class_recall, suite: VTAB, time: 3}\n"
        "retrieval/pairs: {main_metric: mean_recall@1}\n"
        "vtab/nowhere: {suite: VTAB}\n"
        "misc/winogavil:\n"
        "fairness/fairface:\n"
    )
    return tmp_path


def test_a_task_list_is_done_once_and_goes_on(tasks, reference, capsys):
    run = str(reference.parent / "run")
    arguments = ["--tasks", "tasks.yml", "--data", "data", "--output", "results.jsonl"]
    assert main(["evaluate", run, *arguments]) == 0
    printed = capsys.readouterr().out
    assert "tasks have no data here: vtab/nowhere, WinoGAViL, FairFace" in printed
    assert "(the first: missing: no folder data/wds_vtab-nowhere_test" in printed
    assert "VTAB, 1 of 2 tasks" in printed
    assert "average, 2 of 4 tasks" in printed
    lines = [json.loads(line) for line in (tasks / "results.jsonl").read_text().splitlines()]
    assert [line["key"] for line in lines] == ["vtab/letters", "retrieval/pairs"]
    assert [line["dataset"] for line in lines] == ["Letters", "retrieval/pairs"]
    metrics = lines[0]["metrics"]
    assert metrics["main_metric"] == metrics["mean_per_class_recall"] == metrics["acc1"]
    assert lines[1]["metrics"]["main_metric"] == lines[1]["metrics"]["mean_recall@1"]
    assert 0 < lines[0]["chance"] <= 0.5 and 0 < lines[1]["chance"] < 1
    for line, kind in zip(lines, ("classification", "retrieval"), strict=True):
        for name in line["metrics"].keys() - {"main_metric"}:  # each can be the main one
            task = ListedTask(key="t", name="t", kind=kind, main_metric=name)
            KINDS[kind].require_metric(task, where="t")

    lines[0]["metrics"]["main_metric"] = 0.125  # to be seen not to be computed again
    (tasks / "results.jsonl").write_text(json.dumps(lines[0]) + "\n")
    assert main(["evaluate", run, *arguments]) == 0
    assert "0.1250" in capsys.readouterr().out
    again = [json.loads(line) for line in (tasks / "results.jsonl").read_text().splitlines()]
    assert again == lines

    other = ["--caption-templates", "a picture of {}"]
    assert main(["evaluate", run, *arguments, *other]) == 1
    assert "results.jsonl, line 1 is a result of another model" in capsys.readouterr().err


def test_a_wrong_main_metric_is_seen_before_a_model_is_loaded(tasks, capsys):
    (tasks / "tasks.yml").write_text("a: {kind: retrieval, main_metric: mean_recal@1}\n")
    assert main(["evaluate", "nowhere/run", "--tasks", "tasks.yml", "--data", "data"]) == 1
    error = capsys.readouterr().err
    assert "tasks.yml, task 'a' has the main metric 'mean_recal@1'" in error
    assert "did you mean 'mean_recall@1'?" in error


def test_templates_are_of_the_tasks_with_captions(tasks, reference, capsys):
    run = str(reference.parent / "run")
    arguments = ["--tasks", "tasks.yml", "--data", "data", "--caption-templates", "a picture of {}"]
    assert main(["evaluate", run, *arguments]) == 0
    assert "average, 2 of 4 tasks" in capsys.readouterr().out
    with pytest.raises(ValueError, match=r"each template needs \{\}"):
        EvaluateConfig(run=run, data=("data",), caption_templates=("a picture",))


@pytest.mark.parametrize("name", ["scenes", "pairs", "letters"])
def test_what_guessing_reaches_needs_no_model(sets, name):
    """Captions of one line and of several, and classes."""
    opened = open_evaluation_set(sets / name)
    found = chance_on(opened)
    beside = evaluate_encoder(evaluation_processes.encoder(Processes()), opened).chance
    assert found | beside == found and set(found) - set(beside) <= {"zero_shot/letters/top5"}
    assert all(0 < value <= 1 for value in found.values())


def test_a_damaged_task_does_not_end_the_others(tasks, reference, capsys):
    (tasks / "data" / "wds_vtab-letters_test" / "classnames.txt").unlink()
    run = str(reference.parent / "run")
    arguments = ["--tasks", "tasks.yml", "--data", "data", "--output", "results.jsonl"]
    assert main(["evaluate", run, *arguments]) == 1
    printed = capsys.readouterr().err
    assert "not every task could be evaluated" in printed
    assert "classnames.txt" in printed
    assert "mean_recall@1" in printed
    assert len((tasks / "results.jsonl").read_text().splitlines()) == 1
    (tasks / "results.jsonl").write_text("{}\n")
    assert main(["evaluate", run, *arguments]) == 1
    assert "results.jsonl, line 1 is no result of a task" in capsys.readouterr().err


def test_what_cannot_be_scored_is_named(sets, monkeypatch):
    encoder = evaluation_processes.encoder(Processes())
    letters = open_evaluation_set(sets / "letters")
    task = ListedTask(key="t", name="t", main_metric="acc7")
    with monkeypatch.context() as patch, pytest.raises(ValueError, match="'acc7', there are"):
        patch.setattr(EmbeddedSet, "encode", None)  # found before anything is encoded
        score_task(encoder, letters, task)
    for task, message in (
        (ListedTask(key="t", name="t", group_by={"x": 2}), r"0.tar, row 0: .*column 2.*2 columns"),
    ):
        with pytest.raises(ValueError, match=message):
            score_task(encoder, letters, task)
    with pytest.warns(UserWarning, match="T has 9 samples, and 7 were scored"):
        score_task(encoder, letters, ListedTask(key="t", name="T", size=9))


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("val.json", "val"),
        ("sub/val.json", "val"),
        ("sub/manifest.json", "sub"),
        ("sub", "sub"),
        ("sub/pairs-0.tar", "pairs-0"),
        ("sub/pairs-*.tar", "pairs"),
        ("sub/{pairs,more}-0.tar", "sub"),
        ("sub/pairs-{0..0}.tar", "pairs"),
        (".", "here"),
    ],
)
def test_a_set_is_called_by_its_file_or_folder(tmp_path, monkeypatch, source, name):
    folder = tmp_path / "here" / "sub"
    for shard in ("pairs", "more"):
        write_shard(folder / f"{shard}-0.tar", [pair(0), pair(1)])
    monkeypatch.chdir(tmp_path / "here")
    for path in ("val.json", "sub/val.json", "sub/manifest.json"):
        index_shards(folder).save(path)
    shutil.copy(folder / "pairs-0.tar", "0.tar")
    assert open_evaluation_set(source).name == name


def test_folders_of_classes_are_a_zero_shot_set(tmp_path, reference, capsys):
    names = ("red_circle", "blue square", "green star")
    for number, name in enumerate(names):
        for image in range(number + 1):
            path = tmp_path / "shapes" / name / f"{image}.PNG"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(picture(3 * number + image))
    (task,) = open_evaluation_set(tmp_path / "shapes").tasks
    assert (task.name, task.field) == ("shapes", "folder")
    assert task.prompts(task.class_names[0]) == ["a photo of a blue square."]
    assert [task.label({"folder": name}) for name in names] == [2, 0, 1]
    index_shards(tmp_path / "shapes").save(tmp_path / "later.json")
    model = f"run:{reference.parent / 'run'}"
    output = tmp_path / "scores.json"
    sources = [str(tmp_path / "shapes"), str(tmp_path / "later.json")]
    assert main(["evaluate", model, "--data", *sources, "--output", str(output)]) == 0
    scores = json.loads(output.read_text())
    assert scores["shapes"]["images"] == 6
    assert scores["shapes"]["zero_shot/shapes/chance"] == 1 / 3
    assert scores["later"]["zero_shot/later/top1"] == scores["shapes"]["zero_shot/shapes/top1"]
    assert "zero_shot/shapes/chance" in capsys.readouterr().out
    (tmp_path / "shapes" / "red_circle" / "deep").mkdir()
    (tmp_path / "shapes" / "red_circle" / "deep" / "0.png").write_bytes(picture(0))
    with pytest.raises(ValueError, match="red_circle holds images and folders of images"):
        open_evaluation_set(tmp_path / "shapes")
    with pytest.raises(ValueError, match="a folder of images for each of two classes or more"):
        open_evaluation_set(tmp_path / "shapes" / "blue square")


def test_caption_templates_change_the_texts(sets):
    encoder = evaluation_processes.encoder(Processes())
    task = ListedTask(key="t", name="t", main_metric="mean_recall@1")
    metrics = [
        score_task(encoder, open_evaluation_set(sets / "pairs", caption_templates=t), task)
        for t in ((), ("{}",), ("a picture of {}.", "{}"))
    ]
    plain, same, two = (entry["metrics"] for entry in metrics)
    assert plain == same
    assert plain.keys() == two.keys()
    captions = open_evaluation_set(sets / "pairs", caption_templates=("a picture of {}.", "{}"))
    embedded = EmbeddedSet.encode(encoder, replace(captions, caption_templates=("{}", "a {}")))
    texts, pairs = separate_texts(embedded.captions())
    assert len(texts) == 21
    ranks = embedded.caption_ranks(texts, pairs)
    averaged = ensemble(
        encoder.texts([t for text in texts for t in (text, f"a {text}")]),
        torch.arange(21).repeat_interleave(2),
    )
    expected = retrieval_ranks(embedded.images.embeddings, averaged, pairs)
    assert torch.equal(ranks.text_to_image.ahead, expected.text_to_image.ahead)
    with pytest.raises(ValueError, match=r"caption_templates: each template needs \{\}"):
        open_evaluation_set(sets / "pairs", caption_templates=("a picture",))
    with pytest.raises(ValueError, match="it has no captions"):
        open_evaluation_set(sets / "letters", caption_templates=("a {}",))


def test_averages_are_of_what_was_scored():
    def score(value, suite=None):
        return TaskScore(task=ListedTask(key="t", name="t", suite=suite), main_metric=value)

    scores = [score(0.5, "VTAB"), score(None, "VTAB"), score(0.1)]
    assert averages(scores) == {
        "VTAB, 1 of 2 tasks": 0.5,
        "average, 2 of 3 tasks": pytest.approx(0.3),
    }
    assert averages([score(None)]) == {}
