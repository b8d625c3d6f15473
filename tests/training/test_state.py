"""A checkpoint is restored into the run that wrote it, or not at all."""

from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from tests.processes import run
from torch import nn

from drrho.runtime import provenance
from drrho.runtime.distributed import Processes
from drrho.runtime.errors import CheckpointError
from drrho.runtime.provenance import plain, versions
from drrho.training.checkpoint import read_values, why_not_readable
from drrho.training.optimizer import Optimizer, build_optimizer
from drrho.training.state import TrainingState
from drrho.training.tensor_files import read_tensors


def state(folder, *, config=None, width=3, with_loss=True, processes=None):
    model = nn.Linear(4, width)
    loss = nn.BatchNorm1d(2, affine=False) if with_loss else None
    return TrainingState(
        folder=folder,
        model=model,
        loss=loss,
        optimizer=build_optimizer(model, Optimizer(learning_rate=0.1)),
        config={"a": {"b": 1, "c": (1, 2)}, "data": {"workers": 4}} if config is None else config,
        processes=processes or Processes(),
    )


def save(state):
    path = state.save(keep=1)
    state.wait_until_saved()
    return path


def buffers_of_two(rank, folder):
    """Save with statistics that differ between the processes; the file, and what each has."""
    groups = dist.new_group(), dist.new_group()
    saved = state(folder, processes=Processes(rank, 2, *groups))
    saved.model.register_buffer("statistics", torch.full((2,), float(rank)))
    path = save(saved)
    return path, saved.model.statistics


def test_buffers_are_given_from_the_first_process(tmp_path):
    for path, own in run(buffers_of_two, tmp_path, world=2):
        assert own.tolist() == read_tensors(path)["model.statistics"].tolist() == [0, 0]


def test_nothing_to_resume(tmp_path):
    assert state(tmp_path).resume() is False


def test_everything_comes_back(tmp_path):
    first = state(tmp_path)
    first.step, first.samples_seen, first.seconds, first.metrics = 7, 70, 1.5, {"loss": 2.0}
    first.skipped.update({"corrupt image": 3})
    save(first)
    second = state(tmp_path)
    assert second.resume()
    for name in ("step", "samples_seen", "seconds", "metrics", "skipped"):
        assert getattr(second, name) == getattr(first, name)
    for one, other in zip(second.model.parameters(), first.model.parameters(), strict=True):
        assert torch.equal(one, other)


def test_versions_and_config_are_in_the_file(tmp_path):
    contents = read_values(save(state(tmp_path)))
    assert contents["config"]["a"]["b"] == 1
    assert contents["versions"]["torch"] == str(torch.__version__)
    assert {"drrho", "python", "numpy"} <= contents["versions"].keys()


def test_versions_name_the_libraries_that_are_installed(monkeypatch):
    assert versions()["pillow"] == version("pillow")

    def without_torchvision(name):
        if name == "torchvision":
            raise PackageNotFoundError(name)
        return version(name)

    monkeypatch.setattr(provenance, "version", without_torchvision)
    assert {"open_clip_torch", "pillow"} <= versions().keys()
    assert "torchvision" not in versions()


def test_other_config_is_named(tmp_path):
    save(state(tmp_path))
    other = state(tmp_path, config={"a": {"b": 2, "d": 0}, "data": {"workers": 4}})
    with pytest.raises(CheckpointError, match="another run") as info:
        other.resume()
    text = str(info.value)
    assert "config a.b: 1 before, 2 now" in text
    assert "config a.c: [1, 2] before, absent now" in text
    assert "config a.d: absent before, 0 now" in text
    assert "workers" not in text
    assert "another folder" in text


def test_config_that_may_change_may(tmp_path):
    save(state(tmp_path))
    other = state(tmp_path, config={"a": {"b": 1, "c": [1, 2]}, "data": {"workers": 0}})
    with pytest.raises(CheckpointError, match="data.workers"):
        other.resume()
    assert other.resume(may_change={"data.workers"})


def test_what_a_version_adds_had_its_default(tmp_path):
    save(state(tmp_path))
    new = {"a": {"b": 1, "c": [1, 2], "d": 0}, "data": {"workers": 4}, "e": None}
    with pytest.raises(CheckpointError, match=r"config a\.d: absent before, 0 now"):
        state(tmp_path, config=new).resume(upgrade=lambda saved: {**saved, "e": None})

    def upgrade(saved):
        return {**saved, "a": {"d": 0, **saved["a"]}, "e": None}

    assert state(tmp_path, config=new).resume(upgrade=upgrade)
    other = {"a": {"b": 1, "c": [1, 2], "d": 5}, "data": {"workers": 4}, "e": None}
    with pytest.raises(CheckpointError, match=r"config a\.d: 0 before, 5 now"):
        state(tmp_path, config=other).resume(upgrade=upgrade)


def test_other_shapes_are_named_and_nothing_is_changed(tmp_path):
    save(state(tmp_path))
    other = state(tmp_path, width=5, with_loss=False)
    before = [p.detach().clone() for p in other.model.parameters()]
    with pytest.raises(CheckpointError) as info:
        other.resume()
    text = str(info.value)
    assert "model.weight: shape (3, 4) before, shape (5, 4) now" in text
    assert "loss.running_mean: shape (2,) before, absent now" in text
    assert all(torch.equal(a, b) for a, b in zip(before, other.model.parameters(), strict=True))
    assert other.step == 0


def after_a_step(folder, *, frozen=()):
    """A state whose optimiser has moments, of what is not frozen."""
    stepped = state(folder)
    for name in frozen:
        stepped.model.get_parameter(name).requires_grad_(False)
    stepped.optimizer = build_optimizer(stepped.model, Optimizer(learning_rate=0.1))
    stepped.model(torch.ones(2, 4)).sum().backward()
    stepped.optimizer.step()
    return stepped


def test_moments_come_back(tmp_path):
    first, second = after_a_step(tmp_path), state(tmp_path)
    save(first)
    second.resume()
    for parameter, other in zip(first.model.parameters(), second.model.parameters(), strict=True):
        moments, others = first.optimizer.state[parameter], second.optimizer.state[other]
        assert moments.keys() == others.keys()
        assert all(torch.equal(moments[name], others[name]) for name in moments)


def test_moments_that_were_not_there_are_not_there(tmp_path):
    save(state(tmp_path))
    other = state(tmp_path)
    other.resume()
    assert not other.optimizer.state


def test_other_trainable_parameters_are_named(tmp_path):
    save(after_a_step(tmp_path))
    other = after_a_step(tmp_path, frozen=["bias"])
    with pytest.raises(CheckpointError) as info:
        other.resume()
    assert "optimizer.model.bias.exp_avg: shape (3,) before, absent now" in str(info.value)


def test_a_newer_format_is_named(tmp_path, monkeypatch):
    with monkeypatch.context() as newer:
        newer.setattr("drrho.training.state.FORMAT", 99)
        save(state(tmp_path))
    with pytest.raises(CheckpointError, match="has format 99, this version reads 3.*by drrho"):
        state(tmp_path).resume()


def test_config_is_plain_data():
    assert plain({"path": Path("a/b"), "betas": (0.9, 0.98)}) == {
        "path": "a/b",
        "betas": [0.9, 0.98],
    }
    with pytest.raises(TypeError):
        plain({"model": object()})


DTYPES = sorted(
    (value for value in vars(torch).values() if isinstance(value, torch.dtype)), key=str
)


def with_buffer(folder, buffer):
    run = state(folder)
    run.model.register_buffer("extra", buffer)
    return run


@pytest.mark.filterwarnings("ignore:ComplexHalf")
@pytest.mark.parametrize("dtype", dict.fromkeys(DTYPES), ids=str)
def test_a_tensor_comes_back_or_is_refused_before_the_first_step(tmp_path, dtype):
    try:
        buffer = torch.zeros(3, 2).to(dtype)
    except (RuntimeError, NotImplementedError, TypeError):
        pytest.skip("torch makes no such tensor")
    run = with_buffer(tmp_path, buffer)
    if (reason := why_not_readable(buffer)) is not None:
        with pytest.raises(ValueError, match=f"model.extra {reason}"):
            run.require_saveable()
        return
    run.require_saveable()
    save(run)
    again = with_buffer(tmp_path, torch.ones(3, 2).to(dtype))
    assert again.resume()
    assert torch.equal(again.model.extra, buffer)


@pytest.mark.parametrize(
    ("buffer", "reason"),
    [
        (torch.eye(2).to_sparse(), "has the layout torch.sparse_coo"),
        (torch.empty(2, device="meta"), "has no content"),
    ],
)
def test_what_could_not_be_read_back_is_refused_before_the_first_step(tmp_path, buffer, reason):
    run = with_buffer(tmp_path, buffer)
    with pytest.raises(ValueError, match=f"model.extra {reason}.*persistent=False"):
        run.require_saveable()


def test_another_dtype_is_named(tmp_path):
    save(with_buffer(tmp_path, torch.zeros(2, dtype=torch.int64)))
    with pytest.raises(CheckpointError, match=r"model.extra: shape \(2,\) of int64 before, shape"):
        with_buffer(tmp_path, torch.zeros(2)).resume()
