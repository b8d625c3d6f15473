"""A checkpoint file is whole or absent, and a damaged one loses nothing but itself."""

import os
import pickle

import pytest
import torch

from drrho.training.checkpoint import (
    CheckpointError,
    latest_checkpoint,
    list_checkpoints,
    load_checkpoint,
    load_latest_checkpoint,
    save_checkpoint,
)


def save(folder, step, *, keep=3):
    contents = {"step": step, "weight": torch.full((1000,), float(step))}
    return save_checkpoint(contents, folder, step=step, keep=keep)


def flip_a_bit(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1  # in the middle of the weight
    path.write_bytes(data)


def truncate(path):
    path.write_bytes(path.read_bytes()[:-100])


def empty(path):
    path.write_bytes(b"")


DAMAGES = [flip_a_bit, truncate, empty]


def test_what_is_saved_is_loaded(tmp_path):
    path = save(tmp_path, 100)
    assert path.name == "step-00000100.pt"
    loaded = load_checkpoint(path)
    assert loaded["step"] == 100
    assert torch.equal(loaded["weight"], torch.full((1000,), 100.0))


def test_newest_are_kept_and_found_in_the_order_of_steps(tmp_path):
    for step in (8, 9, 10, 123456789, 99):
        save(tmp_path, step, keep=2)
    assert [path.name for path in list_checkpoints(tmp_path)] == [
        "step-00000010.pt",
        "step-00000099.pt",
        "step-123456789.pt",  # of a later step than the last one saved: not ours to delete
    ]
    latest = latest_checkpoint(tmp_path)
    assert latest is not None
    assert latest.name == "step-123456789.pt"


def test_nothing_saved_is_nothing_found(tmp_path):
    assert latest_checkpoint(tmp_path / "absent") is None
    assert load_latest_checkpoint(tmp_path / "absent") is None


@pytest.mark.parametrize("function", ["replace", "fsync"])
def test_crash_while_saving_leaves_the_old_one(tmp_path, monkeypatch, function):
    save(tmp_path, 1, keep=1)

    def crash(*_):
        raise OSError("no space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, function, crash)
        with pytest.raises(OSError, match="no space"):
            save(tmp_path, 2, keep=1)
    found = load_latest_checkpoint(tmp_path)
    assert found is not None
    assert found[1]["step"] == 1
    save(tmp_path, 3, keep=1)
    assert os.listdir(tmp_path) == ["step-00000003.pt"], "the half-written file is cleared away"


def test_file_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    calls = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda fd: (calls.append("fsync"), fsync(fd)))
    monkeypatch.setattr(os, "replace", lambda a, b: (calls.append("replace"), replace(a, b)))
    save(tmp_path, 1)
    assert calls[:2] == ["fsync", "replace"]


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_file_is_an_error_that_names_it(tmp_path, damage):
    path = save(tmp_path, 5)
    damage(path)
    with pytest.raises(CheckpointError, match="step-00000005.pt cannot be read"):
        load_checkpoint(path)


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_newest_falls_back_to_the_one_before(tmp_path, damage):
    save(tmp_path, 1)
    save(tmp_path, 2)
    damage(save(tmp_path, 3))
    with pytest.warns(UserWarning, match="step-00000003.pt.*continuing from step-00000002.pt"):
        found = load_latest_checkpoint(tmp_path)
    assert found is not None
    assert found[1]["step"] == 2
    assert len(list_checkpoints(tmp_path)) == 3, "nothing is deleted by reading"


def test_only_damaged_files_are_not_a_fresh_start(tmp_path):
    for step in (1, 2):
        truncate(save(tmp_path, step))
    with pytest.raises(CheckpointError, match="no checkpoint can be read") as info:
        load_latest_checkpoint(tmp_path)
    assert "step-00000001.pt" in str(info.value)
    assert "step-00000002.pt" in str(info.value)


class Malicious:
    def __reduce__(self):
        return os.mkdir, ("owned",)


def test_code_in_a_file_is_not_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "step-00000001.pt"
    torch.save({"step": Malicious()}, path)
    with pytest.raises(CheckpointError):
        load_checkpoint(path)
    assert not (tmp_path / "owned").exists()
    path.write_bytes(pickle.dumps({"step": 1}))
    with pytest.raises(CheckpointError):
        load_checkpoint(path)


def test_keep_must_be_positive(tmp_path):
    with pytest.raises(ValueError, match="keep must be at least 1, got 0"):
        save(tmp_path, 1, keep=0)
