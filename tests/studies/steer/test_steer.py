"""`drrho steer`: every step once, the commands that it says, and going on after an interruption."""

import re
import shlex
import shutil
import tarfile
from pathlib import Path

import pytest
from tests.small_runs import TINY

import drrho
from drrho.cli import main
from drrho.data.scenes import ScenesConfig, write_scenes
from drrho.studies.steer import steer as steering
from drrho.studies.steer.config import SteerConfig

EXACT = [
    *("pairs.json", "train.json", "val.json", "recipe.py", "plain.py", "steer.json"),
    *("scores/reference.json", "scores/start.json", "scores/target.json", "scores/plain.json"),
    *("run/model/open_clip_model.safetensors", "plain/model/open_clip_model.safetensors"),
]


@pytest.fixture(scope="module", autouse=True)
def tiny_model():
    """A model of the name "small" that trains in milliseconds."""
    patch = pytest.MonkeyPatch()
    patch.setattr(SteerConfig, "target_model", TINY)
    yield
    patch.undo()


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """A folder of 50 images with captions in txt files of the same names."""
    folder = tmp_path_factory.mktemp("data")
    write_scenes(folder / "tars", ScenesConfig(num_samples=50, seed=5))
    for path in (folder / "tars").glob("*.tar"):
        with tarfile.open(path) as tar:
            tar.extractall(folder / "photos", filter="data")
    return folder / "photos"


@pytest.fixture(scope="module")
def arguments(photos, reference):
    model = f"run:{reference.parent / 'run'}"
    options = ("--output", "out", "--epochs", "1", "--with-plain", "--device", "cpu")
    return ["steer", str(photos), "--reference", model, *options]


@pytest.fixture(scope="module")
def done(arguments, tmp_path_factory):
    """The folder in which a whole run was made, and what it said."""
    patch, folder = pytest.MonkeyPatch(), tmp_path_factory.mktemp("here")
    lines: list[str] = []
    patch.chdir(folder)
    patch.setattr("drrho.studies.steer.steps.say", lines.append)
    assert main(arguments) == 0
    patch.undo()
    return folder, lines


def contents(folder):
    stored = sorted((folder / "out" / "reference").glob("*.safetensors"))
    return {path.name: path.read_bytes() for path in stored} | {
        name: (folder / "out" / name).read_bytes() for name in EXACT
    }


def test_every_step_is_done_and_says_what_it_does(done, capsys):
    folder, lines = done
    heads = [line for line in lines if re.match(r"\d/9 ", line)]
    assert [re.match(r"(\d)/9 ([\w ]+):", line)[1] for line in heads] == list("123456789")
    assert all("about" in line for line in heads if re.match("[34678]", line))
    assert (folder / "out" / "report.html").is_file()
    results = (folder / "out" / "steer.json").read_text()
    assert '"held_out": 20' in results
    assert '"pairs": 30' in results
    assert "one seed: the intervals are over held-out images" in results


def test_the_commands_that_it_says_do_the_same(done, tmp_path, monkeypatch):
    folder, lines = done
    shutil.copytree(folder / "out", tmp_path / "out")
    monkeypatch.chdir(tmp_path)
    for name in ("pairs.json", "train.json", "val.json"):
        Path("out", name).unlink()
    for name in ("reference", "run", "plain", "scores"):
        shutil.rmtree(Path("out", name))
    commands = [line.strip().removeprefix("$ ") for line in lines if line.startswith("    $ ")]
    assert len(commands) == 11
    for command in commands:
        name, *rest = shlex.split(command)
        assert (name, main(rest)) == ("drrho", 0), command
    assert contents(tmp_path) == contents(folder)


def test_an_interrupted_run_goes_on_to_the_same_bits(
    done, arguments, tmp_path, monkeypatch, capsys
):
    folder, _ = done
    monkeypatch.chdir(tmp_path)
    take, taken = steering.take, []

    def interrupted(step, number):
        if number[0] in "2468" and number not in taken:
            taken.append(number)
            raise KeyboardInterrupt
        take(step, number)

    monkeypatch.setattr(steering, "take", interrupted)
    monkeypatch.setattr("drrho.studies.steer.way.measure", lambda *_, **__: None)
    for _ in range(4):
        assert main(arguments) == 130
    assert "continues where it was in out" in capsys.readouterr().err
    assert main(arguments) == 0
    assert "target, without the reference" in capsys.readouterr().out
    assert contents(tmp_path) == contents(folder)


def test_a_dry_run_writes_nothing(photos, reference, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    model = f"run:{reference.parent / 'run'}"
    assert drrho.steer(photos, reference=model, device="cpu", dry_run=True) is None
    assert list(tmp_path.iterdir()) == []
    said = capsys.readouterr().err
    assert "8/8 report: write one page" in said
    assert "recipe = drrho.Recipe(" in said


def test_another_call_or_recipe_in_the_folder_is_an_error(
    done, arguments, tmp_path, monkeypatch, capsys
):
    folder, _ = done
    shutil.copytree(folder / "out", tmp_path / "out")
    monkeypatch.chdir(tmp_path)
    assert main([*arguments, "--seed", "3"]) == 1
    assert "another steering; take another output" in capsys.readouterr().err
    path = Path("out/recipe.py")
    path.write_text(path.read_text().replace("learning_rate=0.001", "learning_rate=0.002"))
    assert main(arguments) == 1
    assert "train by it with --recipe out/recipe.py, or remove it" in capsys.readouterr().err
    place = arguments.index("--epochs")
    given = [*arguments[:place], *arguments[place + 2 :], "--recipe", "out/recipe.py"]
    assert main(given) == 1
    assert "out/run holds a finished run of another recipe" in capsys.readouterr().err
    assert main([*given, "--output", "new"]) == 1
    assert (
        "out/recipe.py trains in out/run, and this steering's run is new/run"
        in capsys.readouterr().err
    )
