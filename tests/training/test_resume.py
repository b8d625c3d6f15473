"""Interrupted + resumed = uninterrupted, bit for bit, wherever it was interrupted."""

import os
import signal
import time
from dataclasses import replace

import pytest
import torch
from tests.processes import Process, until
from tests.training import tiny_run
from tests.training.tiny_run import CONFIG, TinyObjective, tiny_state, tiny_train

from drrho.training.checkpoint import latest_checkpoint, read_values
from drrho.training.interruption import TrainingInterrupted
from drrho.training.log import read_metrics
from drrho.training.tensor_files import read_tensors


class Crash(Exception):
    pass


def crash(_):
    raise Crash


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("uninterrupted")
    tiny_train(tiny_state(folder))
    return folder


def final_checkpoint(folder):
    path = latest_checkpoint(folder / "checkpoints")
    assert path is not None
    values = read_values(path)
    del values["seconds"]
    values["metrics"] = reproducible(values["metrics"])
    return values | read_tensors(path)


def reproducible(row):
    """Without what a clock says."""
    return {k: v for k, v in row.items() if k != "seconds" and not k.startswith("time/")}


def rows(folder):
    return [reproducible(row) for row in read_metrics(folder)]


def assert_same(actual, expected):
    assert type(actual) is type(expected)
    if isinstance(expected, torch.Tensor):
        assert torch.equal(actual, expected)
    elif isinstance(expected, dict):
        assert actual.keys() == expected.keys()
        for key in expected:
            assert_same(actual[key], expected[key])
    elif isinstance(expected, (list, tuple)):
        assert len(actual) == len(expected)
        for one, other in zip(actual, expected, strict=True):
            assert_same(one, other)
    else:
        assert actual == expected


def assert_same_run(folder, expected):
    assert_same(final_checkpoint(folder), final_checkpoint(expected))
    assert rows(folder) == rows(expected)


def resume_and_finish(folder):
    state = tiny_state(folder)
    torch.rand(7)  # whatever the generators did before is forgotten
    assert state.resume()
    return tiny_train(state)


def test_killed_process_continues_bitwise(tmp_path, uninterrupted):
    process = Process(tiny_run.resume_slowly, tmp_path, 0.02)
    until(lambda: latest_checkpoint(tmp_path / "checkpoints"), [process])
    time.sleep(0.15)
    process.kill()
    assert process.returncode == -signal.SIGKILL
    assert 0 < final_checkpoint(tmp_path)["step"] < CONFIG.steps
    resume_and_finish(tmp_path)
    assert_same_run(tmp_path, uninterrupted)


@pytest.mark.parametrize("step", [5, 6, 10, 19, 39])
def test_crash_at_any_step_continues_bitwise(tmp_path, uninterrupted, step):
    state = tiny_state(tmp_path)
    objective = TinyObjective(state)
    objective.at[step] = crash
    with pytest.raises(Crash):
        tiny_train(state, objective)
    resume_and_finish(tmp_path)
    assert_same_run(tmp_path, uninterrupted)


def test_crash_in_an_evaluation_repeats_it(tmp_path, uninterrupted):
    state = tiny_state(tmp_path)
    with pytest.raises(Crash):
        tiny_train(state, evaluators={"val": lambda: crash(None)})
    assert final_checkpoint(tmp_path)["step"] == 10, "the weights are saved before evaluation"
    assert rows(tmp_path)[-1]["step"] == 9
    resume_and_finish(tmp_path)
    assert_same_run(tmp_path, uninterrupted)


def test_finished_run_gives_its_result_again(tmp_path):
    first = tiny_train(tiny_state(tmp_path))
    before = rows(tmp_path)
    again = resume_and_finish(tmp_path)
    assert again.metrics == first.metrics
    assert again.samples_seen == first.samples_seen == 220
    assert rows(tmp_path) == before


def test_seconds_of_all_parts_are_added(tmp_path):
    state = tiny_state(tmp_path)
    state.seconds = 1000.0
    state.save(keep=1)
    state.wait_until_saved()
    assert 1000 < resume_and_finish(tmp_path).seconds < 1100


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_finishes_the_step_and_saves(tmp_path, uninterrupted, number):
    state = tiny_state(tmp_path)
    objective = TinyObjective(state)

    def send(loss):
        os.kill(os.getpid(), number)
        return loss

    objective.at[7] = send
    handler = signal.getsignal(number)
    with pytest.raises(TrainingInterrupted, match=f"{number.name} received.*step 8 of 40") as info:
        tiny_train(state, objective)
    assert info.value.received == number
    assert signal.getsignal(number) == handler
    assert final_checkpoint(tmp_path)["step"] == 8
    resume_and_finish(tmp_path)
    assert_same_run(tmp_path, uninterrupted)


@pytest.mark.parametrize("step", [10, 40])
def test_signal_in_an_evaluation_stops_after_it(tmp_path, uninterrupted, step):
    """Also in the last one: whoever trains several runs in a row must not start the next."""
    state = tiny_state(tmp_path)
    evaluators = tiny_run.tiny_evaluators(state)

    def interrupted():
        if state.step == step:
            os.kill(os.getpid(), signal.SIGTERM)
        return evaluators["val"]()

    with pytest.raises(TrainingInterrupted, match=f"after step {step} of 40"):
        tiny_train(state, evaluators={"val": interrupted})
    assert final_checkpoint(tmp_path)["step"] == step
    resume_and_finish(tmp_path)
    assert_same_run(tmp_path, uninterrupted)


def test_signal_in_an_evaluation_without_a_checkpoint_saves_one(tmp_path):
    config = replace(CONFIG, checkpoint_every=7)
    state = tiny_state(tmp_path, config)

    def interrupted():
        os.kill(os.getpid(), signal.SIGTERM)
        return {}

    with pytest.raises(TrainingInterrupted, match="after step 10 of 40"):
        tiny_train(state, config=config, evaluators={"val": interrupted})
    assert final_checkpoint(tmp_path)["step"] == 10


def test_an_ignored_signal_stays_ignored(tmp_path, uninterrupted):
    state = tiny_state(tmp_path)
    objective = TinyObjective(state)
    objective.at[7] = lambda loss: (os.kill(os.getpid(), signal.SIGINT), loss)[1]
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    tiny_train(state, objective)
    assert_same_run(tmp_path, uninterrupted)


def test_second_signal_acts_at_once(tmp_path):
    state = tiny_state(tmp_path)
    objective = TinyObjective(state)

    def send_twice(loss):
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        return loss

    objective.at[7] = send_twice
    with pytest.raises(KeyboardInterrupt):
        tiny_train(state, objective)
    assert final_checkpoint(tmp_path)["step"] == 5


def test_batches_may_draw_from_the_generators(tmp_path, uninterrupted):
    """A DataLoader does, whenever an iterator over it is made."""

    def drawing_batches():
        torch.rand(5)
        yield from tiny_run.tiny_batches(0)

    tiny_train(tiny_state(tmp_path), batches=drawing_batches())
    assert_same_run(tmp_path, uninterrupted)


def test_evaluation_does_not_change_training(tmp_path, uninterrupted):
    config = tiny_run.Training(
        steps=CONFIG.steps, optimizer=CONFIG.optimizer, max_grad_norm=1.0, log_every=3
    )
    tiny_train(tiny_state(tmp_path, config), config=config)
    without, evaluated = final_checkpoint(tmp_path), final_checkpoint(uninterrupted)
    assert_same(without, evaluated)
    assert "val/output" in rows(uninterrupted)[-1]
