"""Processes meet, agree before they begin, and notice the end of another."""

import os
import signal
import time
from datetime import timedelta
from types import SimpleNamespace

import pytest
from tests.processes import Process, by_torchrun, finish, free_port, run

from drrho.runtime import launch, meeting
from drrho.runtime.distributed import Processes
from drrho.runtime.errors import ProcessFailed
from drrho.runtime.meeting import Address, Meeting, meeting_time

CONFIG = {
    "seed": 1,
    "training": {
        "precision": "float32",
        "checkpoint_every": 5,
        "optimizer": {"betas": [0.9, 0.98]},
    },
    "micro_batch_size": None,
    "data": "0123",
    "reference": {"sha256": "4567"},
}
DIFFERENT = {
    "seed": (2, "seed: 1 on process 0, 2 on process 1"),
    "training.precision": ("bfloat16", "precision: float32 on process 0, bfloat16 on process 1"),
    "training.checkpoint_every": (6, "training.checkpoint_every: 5 on process 0, 6 on"),
    "training.optimizer.betas": ([0.9, 0.9], r"betas: \[0.9, 0.98\] on process 0, \[0.9, 0.9\]"),
    "micro_batch_size": (3, "micro_batch_size: None on process 0, 3 on process 1"),
    "data": ("89ab", "data: 0123 on process 0, 89ab on process 1"),
    "reference": (None, "reference.sha256: 4567 on process 0, absent on process 1"),
}


def changed(config, name, value):
    first, _, rest = name.partition(".")
    return config | {first: changed(config[first], rest, value) if rest else value}


def messages_of_differences(rank):
    processes, found = Processes(rank, 2), {}
    processes.require_same(**CONFIG)
    for name, (value, _) in DIFFERENT.items():
        own = changed(CONFIG, name, value) if rank else CONFIG
        try:
            processes.require_same(**own)
        except ValueError as error:
            found[name] = str(error)
    return found


def test_whatever_differs_between_processes_is_named_on_all():
    of_first, of_second = run(messages_of_differences, world=2)
    assert of_first == of_second
    for name, (_, pattern) in DIFFERENT.items():
        with pytest.raises(ValueError, match=pattern):
            raise ValueError(of_first[name])


def tries_folders(rank, folder):
    launch.SECONDS_TO_APPEAR = 0.1
    processes, found = Processes(rank, 2), []
    for own in (folder, folder / str(rank)):
        own.mkdir(exist_ok=True)
        try:
            launch.require_shared(own, processes)
            found.append("")
        except ValueError as error:
            found.append(str(error))
    return found


def test_an_output_folder_that_machines_do_not_share_is_refused(tmp_path):
    answers = run(tries_folders, tmp_path, world=2)
    assert answers[0][0] == answers[1][0] == ""
    for _, refused in answers:
        assert "process 1, on " in refused
        assert "does not see what process 0 wrote" in refused
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == []


def raises_on_one(rank):
    def make():
        if rank == 1:
            raise FileNotFoundError("nowhere")
        return rank

    try:
        return Processes(rank, 2).on_each(make)
    except (ValueError, OSError) as error:
        return f"{type(error).__name__}: {error}"


def test_an_error_of_one_process_is_raised_on_all():
    assert run(raises_on_one, world=2) == [
        "ValueError: on process 1: nowhere",
        "FileNotFoundError: nowhere",
    ]


def meets(rank, port, cards):
    own = Meeting(rank, 2, Address("127.0.0.1", port), timedelta(seconds=600))
    try:
        own.meet(cards[rank])
    except ValueError as error:
        return str(error)
    return sorted(own.others)


@pytest.mark.parametrize(
    ("cards", "answers"),
    [
        (({"torch": "2.6", "device": "cpu"},) * 2, [[1], [0]]),
        (({"torch": "2.6"}, {"torch": "2.7"}), ["differ in torch: 2.6 on process 0, 2.7"] * 2),
    ],
)
def test_processes_meet_and_compare_their_versions(cards, answers):
    found = run(meets, free_port(33_000), cards, world=2, group=False)
    for answer, expected in zip(found, answers, strict=True):
        assert expected in answer if isinstance(expected, str) else expected == answer


@pytest.mark.parametrize(("rank", "missing"), [(0, "processes 1, 2"), (1, "process 0")])
def test_who_does_not_come_is_named_while_and_after_it_is_waited_for(
    rank, missing, monkeypatch, capsys
):
    monkeypatch.setattr(meeting, "SECONDS_BETWEEN_NOTICES", 0.05)
    alone = Meeting(rank, 3, Address("127.0.0.1", free_port(34_000)), timedelta(seconds=0.3))
    with pytest.raises(
        ProcessFailed, match=f"waits for {missing} at .*, without success .*MEETING_MINUTES"
    ):
        alone.meet({})
    assert f"process {rank} of 3 waits for {missing} at 127.0.0.1" in capsys.readouterr().err


def test_the_time_of_the_meeting_is_an_option():
    assert meeting_time({}) == timedelta(minutes=5)
    assert meeting_time({"DRRHO_MEETING_MINUTES": "0.5"}) == timedelta(seconds=30)
    for wrong in ("", "x", "0", "-1", "nan", "inf"):
        with pytest.raises(ValueError, match="DRRHO_MEETING_MINUTES must be a positive number"):
            meeting_time({"DRRHO_MEETING_MINUTES": wrong})


def dies_or_computes(how):
    meeting.SECONDS_BETWEEN_LOOKS = meeting.SECONDS_TO_END = 0.1
    own = launch.Launch.from_environment(os.environ)
    with launch.joined(own, device_type="cpu") as (processes, _):
        processes.barrier()
        if processes.rank == how["rank"]:
            if how["error"]:
                raise ValueError("a wrong path\nand more")
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(600)  # in no collective, which would notice by itself


@pytest.mark.parametrize("rank", [0, 1])
def test_when_a_process_dies_another_ends_though_it_computes(rank):
    how = {"rank": rank, "error": False}
    started = time.monotonic()
    statuses, _, errors = finish(
        [Process(dies_or_computes, how, environment=it) for it in by_torchrun(2)]
    )
    assert time.monotonic() - started < 60
    assert statuses[rank] == -signal.SIGKILL
    assert statuses[1 - rank] == 1
    assert errors[1 - rank] == (
        f"drrho: error: process {1 - rank} of 2 cannot continue: process {rank} has died\n"
    )


def test_the_error_of_a_process_is_reported_by_the_others():
    how = {"rank": 1, "error": True}
    statuses, _, errors = finish(
        [Process(dies_or_computes, how, environment=it) for it in by_torchrun(2)]
    )
    assert statuses[0] == 1
    assert errors[0] == (
        "drrho: error: process 0 of 2 cannot continue: process 1 failed: a wrong path\n"
    )


def test_a_silent_process_of_another_machine_counts_as_dead(monkeypatch):
    monkeypatch.setattr(meeting, "SECONDS_BETWEEN_LOOKS", 0.01)
    monkeypatch.setattr(meeting, "SECONDS_OF_SILENCE", 0.1)
    alone = Meeting(0, 2, Address("127.0.0.1", free_port(35_000)), timedelta(seconds=5))
    alone._reach_store()
    alone.others = {1: {"place": "elsewhere", "pid": "1"}}
    assert alone._wait_for_death() == 1
    alone.leave()
    assert alone._wait_for_death() is None


def test_groups_that_are_not_finished_end_with_the_process(monkeypatch):
    ended = []
    monkeypatch.setattr(launch, "end_at_once", ended.append)
    monkeypatch.setattr(launch, "dist", SimpleNamespace(is_initialized=lambda: False))
    assert launch.end_with_groups(3) == 3
    assert ended == []
    monkeypatch.setattr(launch, "dist", SimpleNamespace(is_initialized=lambda: True))
    launch.end_with_groups(4)
    assert ended == [4]
