"""A checkpoint is whole or absent, and a damaged one loses nothing but itself."""

import os
import pickle
import shutil

import pytest
import torch
import torch.distributed.checkpoint as dcp

from drrho.runtime.distributed import Processes
from drrho.runtime.errors import CheckpointError
from drrho.training.checkpoint import (
    CheckpointWriter,
    latest_checkpoint,
    list_checkpoints,
    read_latest_values,
    read_values,
)
from drrho.training.tensor_files import read_into, read_shapes, read_tensors


def save(folder, step, *, keep=3):
    writer = CheckpointWriter(folder, Processes())
    tensors = {"weight": torch.full((1000,), float(step)), "count": torch.tensor(step)}
    path = writer.start(tensors, {"step": step}, step=step, keep=keep)
    writer.wait()
    return path


def weights_of(path):
    return path / "__0_0.distcp"


def flip_a_bit(path):
    data = bytearray(weights_of(path).read_bytes())
    data[len(data) // 2] ^= 1  # in the middle of the weight
    weights_of(path).write_bytes(data)


def truncate(path):
    weights_of(path).write_bytes(weights_of(path).read_bytes()[:-100])


def remove_the_weights(path):
    weights_of(path).unlink()


def damage_the_values(path):
    (path / "checkpoint.json").write_text("{")


def damage_the_index(path):
    (path / ".metadata").write_bytes(b"")


DAMAGES = [flip_a_bit, truncate, remove_the_weights, damage_the_values, damage_the_index]


def test_what_is_saved_is_read(tmp_path):
    path = save(tmp_path, 100)
    assert path.name == "step-00000100"
    assert read_values(path) == {"step": 100}
    assert read_shapes(path) == {"weight": (1000,), "count": ()}
    tensors = read_tensors(path)
    assert torch.equal(tensors["weight"], torch.full((1000,), 100.0))
    assert torch.equal(tensors["count"], torch.tensor(100))


def test_it_holds_the_tensors_as_they_were(tmp_path):
    """Training goes on while they are written."""
    writer = CheckpointWriter(tmp_path, Processes())
    weight = torch.zeros(1_000_000)
    path = writer.start({"weight": weight}, {}, step=1, keep=1)
    weight += 1
    writer.wait()
    assert not read_tensors(path)["weight"].any()


def test_tensors_are_read_in_place(tmp_path):
    path = save(tmp_path, 5)
    weight = torch.zeros(1000)
    read_into({"weight": weight}, path, Processes())
    assert torch.equal(weight, torch.full((1000,), 5.0))
    for wrong in ({"weight": torch.zeros(7)}, {"other": torch.zeros(1000)}):
        with pytest.raises(CheckpointError, match="step-00000005 cannot be read"):
            read_into(wrong, path, Processes())


def test_newest_are_kept_and_found_in_the_order_of_steps(tmp_path):
    for step in (8, 9, 10, 123456789, 99):
        save(tmp_path, step, keep=2)
    assert [path.name for path in list_checkpoints(tmp_path)] == [
        "step-00000010",
        "step-00000099",
        "step-123456789",  # of a later step than the last one saved: not ours to delete
    ]
    latest = latest_checkpoint(tmp_path)
    assert latest is not None
    assert latest.name == "step-123456789"


def test_the_same_step_again_takes_its_place(tmp_path):
    save(tmp_path, 3)
    path = save(tmp_path, 3)
    assert list_checkpoints(tmp_path) == [path]
    assert read_values(path) == {"step": 3}


def test_nothing_saved_is_nothing_found(tmp_path):
    assert latest_checkpoint(tmp_path / "absent") is None
    assert read_latest_values(tmp_path / "absent") is None


def test_at_least_one_is_kept(tmp_path):
    with pytest.raises(ValueError, match="keep must be at least 1, got 0"):
        save(tmp_path, 1, keep=0)


@pytest.mark.parametrize("function", ["replace", "fsync"])
def test_a_full_disk_leaves_the_old_one(tmp_path, monkeypatch, function):
    save(tmp_path, 1, keep=1)

    def crash(*_):
        raise OSError("no space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, function, crash)
        with pytest.raises(OSError, match="no space"):
            save(tmp_path, 2, keep=1)
    found = read_latest_values(tmp_path)
    assert found is not None
    assert found[1]["step"] == 1
    save(tmp_path, 3, keep=1)
    assert os.listdir(tmp_path) == ["step-00000003"], "the half-written folder is cleared away"


def test_a_full_disk_is_said_before_the_next_one(tmp_path, monkeypatch):
    writer = CheckpointWriter(tmp_path, Processes())

    def crash(*_):
        raise OSError("no space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", crash)
        writer.start({"weight": torch.ones(3)}, {}, step=1, keep=1)
        with pytest.raises(OSError, match="no space"):
            writer.start({"weight": torch.ones(3)}, {}, step=2, keep=1)


def test_folder_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    calls = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda fd: (calls.append("fsync"), fsync(fd)))
    monkeypatch.setattr(
        os, "replace", lambda a, b: (calls.append(f"replace {b.name}"), replace(a, b))
    )
    save(tmp_path, 1)
    assert calls.index("replace step-00000001") > calls.index("replace checkpoint.json") > 1
    assert calls[-1] == "fsync"


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_an_error_that_names_it(tmp_path, damage):
    path = save(tmp_path, 5)
    damage(path)
    with pytest.raises(CheckpointError, match="step-00000005 cannot be read"):
        read_values(path)


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_newest_falls_back_to_the_one_before(tmp_path, damage):
    save(tmp_path, 1)
    save(tmp_path, 2)
    damage(save(tmp_path, 3))
    with pytest.warns(UserWarning, match="step-00000003.*continuing from step-00000002 "):
        found = read_latest_values(tmp_path)
    assert found is not None
    assert found[1]["step"] == 2
    assert len(list_checkpoints(tmp_path)) == 3, "nothing is deleted by reading"


def test_only_damaged_ones_are_not_a_fresh_start(tmp_path):
    for step in (1, 2):
        truncate(save(tmp_path, step))
    with pytest.raises(CheckpointError, match="no checkpoint can be read") as info:
        read_latest_values(tmp_path)
    assert "step-00000001" in str(info.value)
    assert "step-00000002" in str(info.value)


class Malicious:
    def __reduce__(self):
        return os.mkdir, ("owned",)


def test_code_in_an_index_is_not_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = save(tmp_path, 1)
    (path / ".metadata").write_bytes(pickle.dumps(Malicious()))
    for read in (read_shapes, read_tensors):
        with pytest.raises(CheckpointError, match="its index names .*mkdir"):
            read(path)
    assert not (tmp_path / "owned").exists()


def test_code_among_the_tensors_is_not_run(tmp_path, monkeypatch):
    """What torch.distributed.checkpoint holds beside tensors it would unpickle."""
    monkeypatch.chdir(tmp_path)
    path = save(tmp_path, 1)
    shutil.rmtree(path)
    dcp.save({"weight": Malicious()}, checkpoint_id=path, no_dist=True)
    with pytest.raises(CheckpointError, match="cannot be read"):
        read_into({"weight": torch.zeros(1000)}, path, Processes())
    assert not (tmp_path / "owned").exists()
