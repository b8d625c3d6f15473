"""A checkpoint is whole or absent, and a damaged one loses nothing but itself."""

import json
import os
import pickle
import shutil
import sys
from contextlib import contextmanager
from dataclasses import replace

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
from drrho.training.tensor_files import describe_tensors, read_into, read_tensors


def save(folder, step, *, keep=3, value=None):
    writer = CheckpointWriter(folder, Processes())
    value = float(step) if value is None else value
    tensors = {"weight": torch.full((1000,), value), "count": torch.tensor(step)}
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
    assert describe_tensors(path) == {"weight": "shape (1000,)", "count": "shape () of int64"}
    tensors = read_tensors(path)
    assert torch.equal(tensors["weight"], torch.full((1000,), 100.0))
    assert torch.equal(tensors["count"], torch.tensor(100))


def test_it_holds_the_tensors_as_they_were(tmp_path):
    """Training continues while they are written."""
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
    for read in (describe_tensors, read_tensors):
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


class Killed(BaseException):
    """What a killed process does not survive; no handler of Exception sees it."""


class Killer:
    """Ends a process, in effect, at its n-th operation on files of a folder.

    Python reports every operation to audit hooks. All later ones fail too, so that nothing cleans
    up after the kill.
    """

    def __init__(self):
        self.folder, self.left = None, 0
        sys.addaudithook(self)

    def __call__(self, event, arguments):
        if self.folder is None or event not in OPERATIONS:
            return
        if any(str(self.folder) in str(argument) for argument in arguments[:2]):
            self.left -= 1
            if self.left < 0:
                raise Killed

    @contextmanager
    def after(self, operations, folder):
        self.folder, self.left = folder, operations
        try:
            yield
        finally:
            self.folder = None


OPERATIONS = {"open", "os.rename", "os.remove", "os.rmdir", "os.mkdir", "shutil.rmtree"}


@pytest.fixture(scope="module")
def killer():
    return Killer()  # for good: an audit hook cannot be removed


@pytest.mark.parametrize("step", [1, 2], ids=["of the same step", "of the next step"])
def test_whenever_it_is_killed_a_checkpoint_is_there(killer, tmp_path, step):
    for operations in range(1000):
        folder = tmp_path / str(operations)
        save(folder, 1, keep=1, value=1.0)
        try:
            with killer.after(operations, folder):
                save(folder, step, keep=1, value=2.0)
        except (Killed, CheckpointError):  # torch reports its own part of the work
            found = read_latest_values(folder)
            assert found is not None
            value = read_tensors(found[0])["weight"][0]
            assert value in (1.0, 2.0)
            save(folder, step, keep=1, value=3.0)  # and the next attempt succeeds
        else:
            break
        assert sorted(os.listdir(folder)) == [f"step-{step:08d}"]
        assert read_tensors(folder / f"step-{step:08d}")["weight"][0] == 3.0
    assert 10 < operations < 999


def test_no_flipped_bit_of_the_values_is_read(tmp_path):
    path = save(tmp_path, 5) / "checkpoint.json"
    whole = path.read_bytes()
    for bit in range(0, 8 * len(whole), 7):  # another one of each byte
        data = bytearray(whole)
        data[bit // 8] ^= 1 << bit % 8
        path.write_bytes(data)
        try:
            values = read_values(path.parent)
        except CheckpointError:
            continue
        assert values["step"] == 5, "it was white space"
    path.write_bytes(whole)
    assert read_values(path.parent)["step"] == 5


def test_values_without_a_checksum_are_those_of_an_earlier_version(tmp_path):
    path = save(tmp_path, 5)
    content = json.loads((path / "checkpoint.json").read_text())
    del content["sha256"]
    (path / "checkpoint.json").write_text(json.dumps(content))
    assert read_values(path)["step"] == 5


def test_files_outside_the_checkpoint_are_not_read(tmp_path):
    path = save(tmp_path, 5)
    content = json.loads((path / "checkpoint.json").read_text())
    content = {"files": {"../step-00000005/.metadata": [1, 2]}, "values": content["values"]}
    (path / "checkpoint.json").write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match="which is not in the folder"):
        read_values(path)


def test_checkpoints_that_are_gone_are_missed(tmp_path):
    shutil.rmtree(save(tmp_path, 5))
    with pytest.raises(CheckpointError, match="has no checkpoint any more.*move the folder"):
        read_latest_values(tmp_path)


def test_a_full_disk_is_said_in_one_sentence(tmp_path, monkeypatch):
    def full(*_, **__):
        raise RuntimeError("[enforce fail at container.cc:668] . unexpected pos 704 vs 598\nat")

    monkeypatch.setattr("drrho.training.tensor_files.write_tensors", full)
    with pytest.raises(OSError, match=r"^checkpoint .* not be written: no space left") as info:
        save(tmp_path, 1)
    assert "\n" not in str(info.value)


def claims_more_than_there_is(metadata):
    metadata.state_dict_metadata["weight"].size = torch.Size([10**12])


def has_a_negative_size(metadata):
    metadata.state_dict_metadata["weight"].size = torch.Size([-1000])


def reads_another_folder(metadata):
    for key, place in metadata.storage_data.items():
        metadata.storage_data[key] = replace(place, relative_path="../step-00000004/__0_0.distcp")


def has_no_sizes(metadata):
    metadata.state_dict_metadata["weight"].size = "1000"


def has_another_dtype(metadata):
    metadata.state_dict_metadata["weight"].properties.dtype = "float32"


def has_no_entries(metadata):
    metadata.state_dict_metadata = None


@pytest.mark.parametrize(
    "forge",
    [
        *(claims_more_than_there_is, has_a_negative_size, reads_another_folder),
        *(has_no_sizes, has_another_dtype, has_no_entries),
    ],
)
def test_a_forged_index_of_tensors_is_refused(tmp_path, forge):
    path = save(tmp_path, 5)
    metadata = pickle.loads((path / ".metadata").read_bytes())
    forge(metadata)
    (path / ".metadata").write_bytes(pickle.dumps(metadata))
    for read in (describe_tensors, read_tensors):
        with pytest.raises(CheckpointError, match="cannot be read"):
            read(path)


def test_the_loss_of_another_process_is_no_full_disk(tmp_path, monkeypatch):
    def lost(*_, **__):
        raise RuntimeError("[/gloo/transport/tcp/pair.cc:553] Connection closed by peer")

    monkeypatch.setattr("drrho.training.tensor_files.write_tensors", lost)
    with pytest.raises(RuntimeError, match="^.*Connection closed by peer$"):
        save(tmp_path, 1)
