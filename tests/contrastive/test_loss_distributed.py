"""Every objective on K processes is that of one process, and so is its state, saved and read."""

import warnings
from contextlib import contextmanager

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch.testing import assert_close

from tests.contrastive import loss_processes as processes


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("processes")


@contextmanager
def single_process():
    """The checkpoint library says so when there is no process group."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        yield


@pytest.fixture(scope="module")
def alone(folder):
    """History and state of one process without a group, whose states are saved too."""
    answers = {}
    for name, config in processes.CONFIGS.items():
        history, objective = processes.train(config, torch.arange(processes.NUM_PAIRS))
        answers[name] = (history, processes.whole_state(objective))
        with single_process():
            dcp.save(objective.state_dict(), checkpoint_id=folder / "1" / name)
    return answers


def assert_all_close(found, expected):
    assert len(found) == len(expected)
    for ours, theirs in zip(found, expected, strict=True):
        assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


def test_processes_are_one_process_and_their_state_moves_between_numbers_of_them(alone, folder):
    saved_by = 1
    for world in (2, 4):
        answers = processes.run(world, folder, saved_by=saved_by)
        for name, (history, state) in alone.items():
            for answer in answers:
                found, found_state = answer[name]
                assert_all_close(found, history)
                assert_all_close(found_state.values(), state.values())
                if name + " in micro-batches" in answer:
                    assert_all_close(answer[name + " in micro-batches"][0], history)
                # What another number of processes saved is read exactly.
                assert_all_close(answer["resharded " + name].values(), state.values())
        saved_by = world
    for name, (_, state) in alone.items():
        objective = processes.make_objective(processes.CONFIGS[name])
        read = objective.state_dict()
        with single_process():
            dcp.load(read, checkpoint_id=folder / "4" / name)
        objective.load_state_dict(read)
        assert_all_close(processes.whole_state(objective).values(), state.values())
