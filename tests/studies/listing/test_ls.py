"""`drrho ls`: what is listed of a folder, in which state, and what is said of damaged files."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from drrho.cli import main
from drrho.evaluation.metrics.chance import reciprocal_rank_chance
from drrho.runtime.locks import exclusive
from drrho.studies.listing.found import Score, chance_of_mrr, score_of
from drrho.studies.listing.ls import ListConfig, list_folder, run_ls, size_in_words
from drrho.studies.listing.walk import MOST_HEADS

BASELINE = Path(__file__).parents[2] / "fixtures" / "baseline"


@pytest.fixture
def folder(tmp_path):
    """A comparison with its store, two data sets, runs finished and interrupted, a probe."""
    shutil.copytree(BASELINE, tmp_path / "all")
    return tmp_path / "all"


def listed(folder, **options):
    return {one.path: one for one in list_folder(ListConfig(str(folder), **options))}


def test_everything_is_listed_with_its_state_and_score(folder):
    found = listed(folder)
    assert {path: one.kind for path, one in found.items()} == {
        "advise": "advice",
        "compare": "comparison",
        "probe": "probe",
        "reference": "reference",
        "test/manifest.json": "manifest",
        "train/manifest.json": "manifest",
        "trained/individual": "run",
        "trained/individual-interrupted": "run",
        "trained/reference": "run",
        "trained/steered": "run",
        "trained/steered-interrupted": "run",
    }
    assert found["trained/steered-interrupted"].state == "interrupted at step 3 of 6"
    steered = found["trained/steered"]
    assert (steered.state, steered.what) == ("finished", "drrho_clip, 6 steps")
    written = json.loads((folder / "trained" / "steered" / "results.json").read_text())
    assert steered.score is not None
    assert steered.score.value == written["metrics"]["evaluation/mrr"]
    assert steered.score.chance == pytest.approx(chance_of_mrr(12))
    files = (folder / "trained" / "steered").rglob("*")
    assert steered.size == sum(file.stat().st_size for file in files if file.is_file())
    assert found["compare"].what == "2 methods, 2 runs; best: drrho_clip"
    assert found["train/manifest.json"].what == "16 samples in 2 shards"


def test_parts_of_a_study_are_listed_where_they_are_asked_for(folder):
    parts = {path: one.part_of for path, one in listed(folder, all=True).items()}
    inside = {path for path in parts if path.startswith("compare/")}
    assert inside
    assert {parts[path] for path in inside} == {"compare"}
    assert not inside & set(listed(folder))


def test_what_is_missing_or_at_work_is_said(folder):
    store = folder / "reference"
    next(store.glob("*.safetensors")).unlink()
    with exclusive(folder / "trained" / "individual-interrupted"):
        found = listed(folder)
    assert found["reference"].state == "1 of 2 shards"
    if sys.platform == "linux":
        assert found["trained/individual-interrupted"].state == "at work, step 3 of 6"


@pytest.mark.parametrize(
    ("file", "content", "path"),
    [
        ("trained/steered/recipe.json", b"{", "trained/steered"),
        ("trained/steered/results.json", b'{"metrics": 3}', "trained/steered"),
        ("trained/steered-interrupted/metrics.jsonl", b"\0" * 90, "trained/steered-interrupted"),
        ("compare/results.json", b'{"methods": [1]}', "compare"),
        ("reference/reference.json", b'{"shards": {}}', "reference"),
        (
            "train/manifest.json",
            b'{"format": "drrho manifest", "shards": 3}',
            "train/manifest.json",
        ),
        ("probe/probe.json", b"[]", "probe"),
    ],
)
def test_a_damaged_file_is_said_and_hides_nothing(folder, file, content, path):
    before = set(listed(folder))
    (folder / file).write_bytes(content)
    found = listed(folder)
    assert found[path].is_damaged
    assert Path(file).name in found[path].state
    assert set(found) >= before
    table = run_ls(ListConfig(str(folder)))
    assert f"\nDamaged:\n{path}: " in table


def test_a_damaged_part_of_a_study_is_listed_with_the_study(folder):
    card = next(folder.glob("compare/references/*/*/reference.json"))
    card.write_bytes(b"{}")
    path = card.parent.relative_to(folder).as_posix()
    assert listed(folder)[path].is_damaged


def test_files_of_others_are_not_listed(tmp_path):
    (tmp_path / "results.json").write_text('{"accuracy": 0.5}')
    (tmp_path / "notes.json").write_text("{ no json")
    (tmp_path / "page.html").write_text("<html>")
    for number in range(MOST_HEADS + 1):
        (tmp_path / "images").mkdir(exist_ok=True)
        (tmp_path / "images" / f"{number}.json").write_text('{"format": "drrho manifest"}')
    assert listed(tmp_path) == {}
    assert run_ls(ListConfig(str(tmp_path))).endswith("holds nothing that drrho has written")


def test_scores_and_pages_are_found(tmp_path):
    (tmp_path / "scores.json").write_text('{"test": {"mrr": 0.5, "mrr/chance": 0.1, "images": 9}}')
    (tmp_path / "a.html").write_text('<meta name="generator" content="drrho 1">')
    found = listed(tmp_path)
    assert found["scores.json"].score == Score(value=0.5, metric="mrr", chance=0.1)
    assert found["a.html"].kind == "page"


def test_the_command_prints_a_table_or_json(folder, capsys):
    assert main(["ls", str(folder)]) == 0
    table = capsys.readouterr().out
    assert "trained/steered-interrupted" in table
    assert "MRR" in table
    assert main(["ls", str(folder), "--json"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert {one["path"] for one in content} == set(listed(folder, all=True))


def test_a_folder_that_is_not_there_is_an_error():
    with pytest.raises(FileNotFoundError, match="is no folder"):
        list_folder(ListConfig("nowhere"))


def test_accuracy_is_the_score_where_there_is_no_rank():
    metrics = {"zero_shot/shape/top1": 0.4, "zero_shot/shape/top1/chance": 0.2, "images": 3.0}
    assert score_of(metrics) == Score(value=0.4, metric="zero_shot/shape/top1", chance=0.2)
    assert score_of({"loss": 1.0}) is None


@pytest.mark.parametrize("candidates", [1, 2, 12, 1000])
def test_guessing_reaches_what_the_evaluation_says(candidates):
    assert chance_of_mrr(candidates) == pytest.approx(reciprocal_rank_chance(candidates))


@pytest.mark.parametrize(
    ("size", "words"),
    [(0, "0 B"), (999, "999 B"), (1234, "1.2 kB"), (99_950, "100 kB"), (6e7, "60.0 MB")],
)
def test_sizes_have_three_digits(size, words):
    assert size_in_words(size) == words


def test_a_list_does_not_import_torch():
    code = "import sys, drrho.studies.listing.ls; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
