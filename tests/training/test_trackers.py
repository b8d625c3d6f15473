"""Trackers get every row once, in the run that they had before, from the first process alone."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass, field, replace
from types import ModuleType, SimpleNamespace

import pytest
import torch.distributed as dist
from tests import processes
from tests.training.tiny_run import CONFIG, TinyObjective, tiny_state, tiny_train

import drrho
from drrho.recipe.document import read_recipe
from drrho.runtime.distributed import Processes
from drrho.runtime.records import to_json
from drrho.training.log import MetricsLog, read_metrics
from drrho.training.tracking.tracker import Tracker, open_tracker

PROGRAM = """
import json
from pathlib import Path

class Lines:
    def begin(self, run):
        self.file = (run.folder / "lines.jsonl").open("a")
        self.line("begin", run.folder.name, run.step, run.logged, sorted(run.config))

    def line(self, *values):
        self.file.write(json.dumps(values) + "\\n")
        self.file.flush()

    def log(self, metrics, *, step):
        self.line("log", step, metrics.get("loss"))

    def finish(self):
        self.line("finish")
        self.file.close()

def build():
    return Lines()
"""


@dataclass
class Notes:
    """A tracker that keeps what it is told."""

    told: list = field(default_factory=list)

    def begin(self, run):
        self.told.append(("begin", run.step, run.logged))

    def log(self, metrics, *, step):
        self.told.append((step, dict(metrics)))

    def finish(self):
        self.told.append("finish")


def write(folder, steps, *, trackers, start_step=0, value=1.0, **others):
    with MetricsLog(folder, start_step=start_step, trackers=trackers, **others) as log:
        for step in steps:
            log.write({"loss": value, "val/mrr": 0.5}, step=step, samples=8 * step, seconds=0.1)


def lines(folder):
    return [json.loads(line) for line in (folder / "lines.jsonl").read_text().splitlines()]


@pytest.fixture
def program(tmp_path):
    path = tmp_path / "lines.py"
    path.write_text(PROGRAM)
    return f"python:{path}"


def test_a_tracker_of_ones_own_gets_every_row_and_what_was_logged_before(tmp_path):
    notes = Notes()
    assert isinstance(notes, Tracker)
    write(tmp_path / "run", [2, 4], trackers=[notes])
    row = {"loss": 1.0, "val/mrr": 0.5, "seconds": 0.1}
    expected = [
        ("begin", 0, -1),
        (2, row | {"samples": 16}),
        (4, row | {"samples": 32}),
        "finish",
    ]
    assert notes.told == expected
    again = Notes()
    write(tmp_path / "run", [4], trackers=[again], start_step=3)
    assert again.told == [("begin", 3, 4), (4, row | {"samples": 32}), "finish"]


def test_a_recipe_names_a_program_and_python_gives_an_object(plain_recipe, program, tmp_path):
    notes = Notes()
    recipe = replace(
        plain_recipe,
        output=str(tmp_path / "run"),
        training=replace(plain_recipe.training, trackers=(program,)),
    )
    run = drrho.train(recipe, trackers=[notes])
    steps = [row["step"] for row in read_metrics(tmp_path / "run")]
    assert len(steps) > 1
    begun, *logged, finished = lines(tmp_path / "run")
    assert begun[:4] == ["begin", "run", 0, -1]
    assert {"contents", "model", "objective"} <= set(begun[4])
    assert [step for _, step, _ in logged] == steps
    assert finished == ["finish"]
    assert [told[0] for told in notes.told[1:-1]] == steps
    assert run.recipe.training.trackers == (program,)
    assert not (tmp_path / "run" / "tensorboard").exists(), "it was not named"


class Crash(Exception):
    pass


def test_an_interrupted_run_is_continued_and_its_tracker_closed(tmp_path, program):
    def crash(_):
        raise Crash

    config = replace(CONFIG, trackers=(program,))
    state = tiny_state(tmp_path, config)
    objective = TinyObjective(state)
    objective.at[23] = crash
    with pytest.raises(Crash):
        tiny_train(state, objective, config=config)
    state = tiny_state(tmp_path, config)
    state.resume()
    assert state.step == 20, "its last checkpoint"
    tiny_train(state, config=config)
    found = lines(tmp_path)
    second = max(i for i, line in enumerate(found) if line[0] == "begin")
    assert found[second - 1] == ["finish"]
    # It is told that step 21 was logged, and gets the rows from the checkpoint on again.
    assert found[second][2:4] == [20, 21]
    assert found[second + 1][1] == 20
    assert found[-1] == ["finish"]


def tracked(rank, folder):
    notes = Notes()
    group = dist.new_group()
    together = Processes(rank=rank, size=2, host=dist.group.WORLD, background=group)
    state = replace(tiny_state(folder), processes=together, trackers=[notes])
    tiny_train(state, config=replace(CONFIG, trackers=()))
    return len(notes.told)


def test_of_several_processes_only_the_first_logs(tmp_path):
    first, second = processes.run(tracked, tmp_path, world=2)
    rows = len(read_metrics(tmp_path))
    assert first == rows + 2
    assert second == 0


@dataclass
class Service:
    """Stands in for wandb and trackio: keeps rows by run, and what `init` was called with."""

    asked: list = field(default_factory=list)
    rows: dict = field(default_factory=dict)
    finished: int = 0
    knows_step: bool = True  # as wandb does of a run that is continued with a network

    def init(self, **arguments):
        self.asked.append(arguments)
        key = arguments.get("id", arguments["name"])
        rows = self.rows.setdefault(key, [])

        def finish():
            self.finished += 1

        last = rows[-1][0] if rows and self.knows_step else -1
        return SimpleNamespace(
            log=lambda values, step: rows.append((step, values)),
            finish=finish,
            step=last + 1,
            _next_step=last + 1,
        )


SERVICES = ["wandb", "trackio"]


def install(monkeypatch, name, init):
    """Puts a module in the place of a package."""
    module = ModuleType(name)
    module.__dict__["init"] = init
    monkeypatch.setitem(sys.modules, name, module)


@pytest.fixture(params=SERVICES)
def service(request, monkeypatch):
    found = Service()
    install(monkeypatch, request.param, found.init)
    found.name = f"{request.param}:mine"
    return found


def test_a_service_continues_its_run_and_has_no_step_twice(service, tmp_path):
    folder = tmp_path / "run"
    config = {"seed": 3}
    write(folder, [2, 4, 6], trackers=[service.name], config=config)
    write(folder, [4, 6, 8], trackers=[service.name], config=config, start_step=4, value=3.0)
    ((key, rows),) = service.rows.items()
    assert [(step, values["loss"]) for step, values in rows] == [(2, 1), (4, 1), (6, 1), (8, 3)]
    assert rows[0][1] == {"loss": 1.0, "val/mrr": 0.5, "samples": 16, "seconds": 0.1}
    assert service.finished == 2
    first, second = service.asked
    assert first == second
    assert (first["project"], first["resume"], first["config"]) == ("mine", "allow", config)
    assert first["name"].startswith("run")
    assert json.loads((folder / "trackers.json").read_text()) == {service.name: key}


def test_what_a_kill_lost_is_logged_again(service, tmp_path):
    write(tmp_path, [2, 4, 6], trackers=[service.name])
    (rows,) = service.rows.values()
    rows.pop()  # it was in a queue
    write(tmp_path, [4, 6], trackers=[service.name], start_step=4)
    assert [step for step, _ in rows] == [2, 4, 6]


def test_offline_the_folder_says_what_was_logged(tmp_path, monkeypatch):
    service = Service(knows_step=False)
    install(monkeypatch, "wandb", service.init)
    write(tmp_path, [2, 4], trackers=["wandb:mine"])
    write(tmp_path, [4, 6], trackers=["wandb:mine"], start_step=4)
    (rows,) = service.rows.values()
    assert [step for step, _ in rows] == [2, 4, 6]


def test_a_service_that_joins_a_continued_run_gets_all_its_rows(service, tmp_path):
    write(tmp_path, [2, 4, 6], trackers=[])
    write(tmp_path, [4, 6, 8], trackers=[service.name], start_step=4)
    (rows,) = service.rows.values()
    assert [step for step, _ in rows] == [4, 6, 8]


def test_runs_of_folders_with_one_name_are_two(service, tmp_path):
    for folder in ("a/seed0", "b/seed0"):
        write(tmp_path / folder, [2], trackers=[service.name])
    assert len(service.rows) == 2


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_that_is_not_installed_is_an_error_that_says_how(tmp_path, monkeypatch, name):
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ModuleNotFoundError, match=rf"need: pip install .*\[{name}\]"):
        MetricsLog(tmp_path, start_step=0, trackers=[f"{name}:mine"])


def raising(*_, **__):
    raise RuntimeError("no network\nand a trace")


@pytest.mark.parametrize("name", SERVICES)
def test_without_a_key_or_a_network_the_run_goes_on(tmp_path, monkeypatch, name):
    install(monkeypatch, name, raising)
    hint = ".*WANDB_MODE=offline" if name == "wandb" else ""
    with pytest.warns(UserWarning, match=rf"do not go to {name}:mine \(no network{hint}.*; train"):
        write(tmp_path, [2, 4], trackers=[f"{name}:mine"])
    assert [row["step"] for row in read_metrics(tmp_path)] == [2, 4]


@pytest.mark.parametrize("method", ["begin", "log", "finish"])
def test_a_tracker_that_fails_does_not_end_the_run(tmp_path, method):
    notes, other = Notes(), Notes()
    setattr(notes, method, raising)
    with pytest.warns(UserWarning, match=r"go to Notes \(no network\); training") as warned:
        write(tmp_path, [2, 4], trackers=[notes, other])
    assert len(warned) == 1
    assert [row["step"] for row in read_metrics(tmp_path)] == [2, 4]
    assert len(other.told) == 4, "the other one has all"


def test_without_tensorboard_there_is_a_note_and_the_rows(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.warns(UserWarning, match="tensorboard is not installed.*metrics.jsonl"):
        write(tmp_path, [1], trackers=["tensorboard"])
    assert len(read_metrics(tmp_path)) == 1


@pytest.mark.parametrize("name", ["tensorbord", "wandb", "wandb:", "mlflow:mine", "python:", ""])
def test_a_name_that_is_no_tracker_is_refused(name):
    with pytest.raises(ValueError, match="no tracker; give 'tensorboard', 'wandb:PROJECT'"):
        drrho.Training(steps=1, trackers=(name,))


@pytest.mark.parametrize(
    ("program", "message"),
    [
        ("x = 1", "must define build.*got NoneType"),
        ("def build(): return 3", "must define build.*got int"),
        ("def build(): raise KeyError('token')", "KeyError: 'token'"),
        ("import nowhere_at_all", "ModuleNotFoundError: No module named 'nowhere_at_all'"),
    ],
)
def test_a_program_that_makes_no_tracker_is_named(tmp_path, program, message):
    path = tmp_path / "own.py"
    path.write_text(program)
    with pytest.raises(ValueError, match=rf"own\.py': .*{message}"):
        open_tracker(f"python:{path}")
    with pytest.raises(FileNotFoundError, match=r"gone\.py': there is no such file"):
        open_tracker(f"python:{tmp_path / 'gone.py'}")


@pytest.mark.parametrize("content", ["nonsense", "[1]", '{"wandb:mine": 3}', "[" * 100_000])
def test_damaged_ids_are_said_and_end_nothing(service, tmp_path, content):
    (tmp_path / "trackers.json").write_text(content)
    with pytest.warns(UserWarning, match=r"trackers\.json .*remove it for new runs"):
        write(tmp_path, [2], trackers=[service.name])
    assert not service.asked


def test_a_recipe_of_the_time_of_one_tracker_is_read(plain_recipe):

    def trackers(**training):
        return read_recipe(to_json(plain_recipe) | {"training": training}).training.trackers

    assert trackers(steps=3, wandb_project=None) == ("tensorboard",)
    assert trackers(steps=3, wandb_project="p") == ("tensorboard", "wandb:p")


REAL = """
import json, sys
from pathlib import Path
from drrho.runtime.records import to_json
from drrho.training.log import MetricsLog
name, folder, start, *steps = sys.argv[1:]
with MetricsLog(Path(folder), start_step=int(start), trackers=[name], config={"seed": 3}) as log:
    for step in map(int, steps):
        log.write({"loss": float(start), "nan": float("nan")}, step=step, samples=1, seconds=0.1)
"""


def in_a_process(name, folder, start, *steps, **environment):
    arguments = [name, str(folder), str(start), *map(str, steps)]
    subprocess.run(
        [sys.executable, "-c", REAL, *arguments], env=os.environ | environment, check=True
    )


def test_the_real_trackio_has_no_step_twice(tmp_path):
    pytest.importorskip("trackio")
    storage = tmp_path / "trackio"
    for start, steps in ((0, (2, 4, 6)), (4, (4, 6, 8))):
        in_a_process("trackio:mine", tmp_path / "run", start, *steps, TRACKIO_DIR=str(storage))
    program = (
        "import json\n"
        "from trackio.sqlite_storage import SQLiteStorage as storage\n"
        "runs = storage.get_runs('mine')\n"
        "print(json.dumps([storage.get_logs('mine', run) for run in runs]))"
    )
    found = subprocess.run(
        [sys.executable, "-c", program],
        env=os.environ | {"TRACKIO_DIR": str(storage)},
        check=True,
        capture_output=True,
    )
    (rows,) = json.loads(found.stdout)
    assert [(row["step"], row["loss"]) for row in rows] == [(2, 0), (4, 0), (6, 0), (8, 4)]


def test_the_real_wandb_takes_the_calls_offline(tmp_path):
    pytest.importorskip("wandb")
    for start, steps in ((0, (2, 4, 6)), (4, (4, 6, 8))):
        in_a_process("wandb:mine", tmp_path / "run", start, *steps, WANDB_MODE="offline")
    (ids,) = json.loads((tmp_path / "run" / "trackers.json").read_text()).values()
    parts = list((tmp_path / "run" / "wandb").glob(f"offline-run-*-{ids}"))
    assert parts, "both parts are of one run"
    assert not [*(tmp_path / "run" / "wandb").glob("offline-run-*/error*")]
