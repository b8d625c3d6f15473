"""A recipe trained by several processes: as by one, resumed, resharded, and stopped together."""

import json
import os
import pickle
import shutil
import signal
import time
import warnings
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from tests.processes import Process, by_srun, by_torchrun, finish, run_drrho, start_drrho, until
from torch.testing import assert_close

from drrho.models.build import Model
from drrho.models.open_clip import import_open_clip
from drrho.recipe.document import read_run_results
from drrho.recipe.recipe import Evaluation
from drrho.recipe.train import train_recipe
from drrho.reference.build import PrecomputeConfig, precompute_reference
from drrho.reference.store import ReferenceStore
from drrho.training import loop
from drrho.training.checkpoint import list_checkpoints, read_values
from drrho.training.log import read_metrics
from drrho.training.tensor_files import read_tensors

# No BatchNorm: its statistics would be those of a process's part of the batch.
TINY_CLIP = {
    "embed_dim": 8,
    "vision_cfg": {"image_size": 64, "layers": 2, "width": 16, "patch_size": 32, "head_width": 8},
    "text_cfg": {"context_length": 32, "vocab_size": 49408, "width": 8, "heads": 1, "layers": 2},
}
RECIPE = "import pickle; recipe = pickle.loads({})"


@pytest.fixture(scope="module")
def transformer(tmp_path_factory):
    """A folder that open_clip loads."""
    folder = tmp_path_factory.mktemp("transformer")
    open_clip = import_open_clip()
    torch.manual_seed(0)
    module = open_clip.CLIP(**TINY_CLIP)
    torch.save(module.state_dict(), folder / "open_clip_pytorch_model.bin")
    config = {"model_cfg": TINY_CLIP, "preprocess_cfg": {"size": 64}}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    return Model(name=f"local-dir:{folder}")


@pytest.fixture(scope="module")
def steered(steered_recipe, transformer, reference, tmp_path_factory):
    """DRRho-CLIP of the transformer; the variances over held-out pairs are logged too."""
    stored = str(tmp_path_factory.mktemp("held-out") / "reference")
    held_out = steered_recipe.evaluation
    model = f"run:{reference.parent / 'run'}"
    precompute_reference(
        PrecomputeConfig(data=held_out.data, model=model, output=stored, device="cpu")
    )
    return replace(
        steered_recipe,
        model=transformer,
        training=replace(steered_recipe.training, max_grad_norm=1.0),
        evaluation=replace(held_out, references=(stored,)),
    )


@pytest.fixture
def recipe(steered, tmp_path):
    return replace(steered, output=str(tmp_path / "run"))


def written(recipe, folder):
    """A file that `drrho train` takes."""
    folder.mkdir(exist_ok=True)
    (folder / "recipe.py").write_text(RECIPE.format(pickle.dumps(recipe)))
    return folder / "recipe.py"


def start(recipe, folder, *, size, environments=by_torchrun):
    """`drrho train` in processes as torchrun or srun would start them."""
    return start_drrho(["train", str(written(recipe, folder))], environments(size))


def run(recipe, folder, *, environments=by_torchrun):
    statuses, outputs, errors = finish(start(recipe, folder, size=2, environments=environments))
    assert statuses == [0, 0], errors
    return outputs


def forget_the_end(folder):
    """As if the run had stopped after the checkpoint before its last."""
    (folder / "results.json").unlink()
    before, last = list_checkpoints(folder / "checkpoints")
    assert (before.name, last.name) == ("step-00000003", "step-00000006")
    shutil.rmtree(last)


def weights(folder):
    return load_file(folder / "model" / "open_clip_model.safetensors")


def comparable(rows):
    return [
        {k: v for k, v in row.items() if k != "seconds" and not k.startswith("time/")}
        for row in rows
    ]


@pytest.fixture(scope="module")
def alone(steered, tmp_path_factory):
    """The run of one process."""
    folder = tmp_path_factory.mktemp("alone")
    train_recipe(replace(steered, output=str(folder)))
    return folder


@pytest.mark.parametrize("parallel", ["replicated", "sharded"])
def test_two_processes_train_what_one_trains(recipe, alone, tmp_path, parallel):
    recipe = replace(recipe, parallel=parallel, gradient_checkpointing=True, micro_batch_size=2)
    outputs = run(recipe, tmp_path)
    assert "48 samples" in outputs[0]
    assert outputs[1] == "", "one process prints"
    for name, expected in weights(alone).items():
        assert_close(weights(tmp_path / "run")[name], expected, rtol=1e-3, atol=1e-5)
    ours, theirs = (comparable(read_metrics(folder)) for folder in (tmp_path / "run", alone))
    for row, expected in zip(ours, theirs, strict=True):
        assert row == pytest.approx(expected, rel=2e-3, abs=1e-4)
    assert theirs[-1]["evaluation/excess_loss_variance/reference"] > 1e-3
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["processes"] == 2
    assert results["samples_seen"] == 48


def test_the_tasks_of_a_slurm_step_train_together(recipe, alone, tmp_path):
    outputs = run(recipe, tmp_path, environments=by_srun)
    assert "48 samples" in outputs[0]
    assert outputs[1] == "", "one process prints"
    for name, expected in weights(alone).items():
        assert_close(weights(tmp_path / "run")[name], expected, rtol=1e-3, atol=1e-5)
    assert json.loads((tmp_path / "run" / "results.json").read_text())["processes"] == 2


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a compiler for C++")
def test_compiled_towers_train_what_others_train_and_go_on_without(recipe, alone, tmp_path):
    """Two processes with shares of the weights stop half-way; one without compiling continues."""
    training = replace(recipe.training, checkpoint_every=3)
    first = replace(recipe, parallel="sharded", compile=True, training=training)
    run(first, tmp_path)
    forget_the_end(tmp_path / "run")
    train_recipe(recipe)
    for name, expected in weights(alone).items():
        assert_close(weights(tmp_path / "run")[name], expected, rtol=1e-3, atol=1e-5)


def test_another_number_of_processes_goes_on(recipe, alone, tmp_path):
    """From one to two; what two wrote is read by one in the tests of the per-sample state."""
    stopped = replace(recipe, training=replace(recipe.training, checkpoint_every=3))
    train_recipe(stopped)
    forget_the_end(tmp_path / "run")
    run(stopped, tmp_path)
    for name, expected in weights(alone).items():
        assert_close(weights(tmp_path / "run")[name], expected, rtol=1e-3, atol=1e-5)
    found = read_tensors(list_checkpoints(tmp_path / "run" / "checkpoints")[-1])
    for name, expected in read_tensors(list_checkpoints(alone / "checkpoints")[-1]).items():
        assert_close(found[name], expected, rtol=2e-3, atol=1e-5)


def endless(recipe):
    training = replace(
        recipe.training, steps=100_000, checkpoint_every=5, evaluate_every=None, log_every=5
    )
    return replace(recipe, training=training)


def test_a_signal_to_one_process_stops_all_after_the_same_step(recipe, tmp_path):
    processes = start(endless(recipe), tmp_path, size=2)
    checkpoints = tmp_path / "run" / "checkpoints"
    until(lambda: list_checkpoints(checkpoints), processes)
    processes[1].send_signal(signal.SIGTERM)
    statuses, _, errors = finish(processes)
    assert statuses == [75, 75], errors
    step = read_values(list_checkpoints(checkpoints)[-1])["step"]
    assert all(f"SIGTERM received: training stopped after step {step} of" in e for e in errors)


def train_and_die(arguments):
    """Killed between the first checkpoint and the second, when the first is there."""
    take_step = loop.take_step

    def take_step_or_die(*arguments, state, **options):
        if state.step == 7:
            until(lambda: list_checkpoints(state.folder / "checkpoints"), [])
            os.kill(os.getpid(), signal.SIGKILL)
        return take_step(*arguments, state=state, **options)

    setattr(loop, "take_step", take_step_or_die)  # noqa: B010
    run_drrho(arguments)


def test_when_one_process_dies_the_other_ends_and_the_run_goes_on_bitwise(recipe, tmp_path):
    training = replace(recipe.training, steps=12, checkpoint_every=5, evaluate_every=None)
    whole = replace(recipe, training=training, output=str(tmp_path / "whole"))
    cut = replace(whole, output=str(tmp_path / "run"))
    run(whole, tmp_path / "a")
    arguments = ["train", str(written(cut, tmp_path / "b"))]
    functions = (run_drrho, train_and_die)
    processes = [
        Process(function, arguments, environment=environment)
        for function, environment in zip(functions, by_torchrun(2), strict=True)
    ]
    processes[1].wait()
    died = time.monotonic()
    statuses, _, errors = finish(processes)
    assert time.monotonic() - died < 30
    assert statuses == [1, -signal.SIGKILL]
    assert "process 0 of 2 cannot continue" in errors[0]
    assert "was killed, that came first" in errors[0]
    assert [it.name for it in list_checkpoints(tmp_path / "run" / "checkpoints")] == [
        "step-00000005"
    ]
    assert not (tmp_path / "run" / "results.json").exists()
    run(cut, tmp_path / "b")
    finals = [list_checkpoints(tmp_path / name / "checkpoints")[-1] for name in ("run", "whole")]
    ours, theirs = (read_tensors(path) for path in finals)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert comparable(read_metrics(tmp_path / "run")) == comparable(
        read_metrics(tmp_path / "whole")
    )


def test_what_the_first_process_finds_wrong_all_report(recipe, tmp_path):
    wrong = replace(recipe, evaluation=replace(recipe.evaluation, data=str(tmp_path / "nowhere")))
    statuses, _, errors = finish(start(wrong, tmp_path, size=2))
    assert statuses == [1, 1]
    assert all("nowhere" in error for error in errors)


def train_without_the_first(recipe):
    gather = ReferenceStore.gather

    def without_the_first(store, sample_ids):
        found = gather(store, sample_ids)
        return found._replace(present=found.present & (sample_ids != 0))

    setattr(ReferenceStore, "gather", without_the_first)  # noqa: B010
    warnings.simplefilter("ignore")
    train_recipe(recipe)


def test_a_process_whose_share_of_a_batch_is_empty_takes_part(recipe, tmp_path):
    training = replace(recipe.training, steps=13, evaluate_every=None, checkpoint_every=13)
    loading = replace(recipe.loading, batch_size=3)
    small = replace(recipe, training=training, loading=loading, evaluation=Evaluation())
    groups = {"alone": [{}], "together": by_torchrun(3)}
    for name, environments in groups.items():
        one = replace(small, output=str(tmp_path / name))
        started = [Process(train_without_the_first, one, environment=it) for it in environments]
        statuses, _, errors = finish(started)
        assert set(statuses) == {0}, errors
    for name, expected in weights(tmp_path / "alone").items():
        assert_close(weights(tmp_path / "together")[name], expected, rtol=1e-3, atol=1e-5)
    found = [read_run_results(tmp_path / name) for name in groups]
    counts = [(results.samples_seen, results.skipped) for results in found if results]
    assert counts == [(38, {"no reference embedding": 1})] * 2


def test_sharding_one_process_is_refused(plain_recipe, tmp_path):
    recipe = replace(plain_recipe, parallel="sharded", output=str(tmp_path))
    with pytest.raises(ValueError, match="parallel = 'sharded' has no effect on one process"):
        train_recipe(recipe)


def test_two_processes_store_the_embeddings_that_one_stores(scenes, reference, tmp_path):
    arguments = ["--data", str(scenes / "train" / "manifest.json"), "--device", "cpu"]
    arguments += ["--model", f"run:{reference.parent / 'run'}", "--output", str(tmp_path / "out")]
    statuses, outputs, errors = finish(
        start_drrho(["reference", "precompute", *arguments], by_torchrun(2))
    )
    assert statuses == [0, 0], errors
    assert "embeddings of 40 of 40 samples; 0 shards were there already" in outputs[0]
    assert outputs[1] == ""
    names = sorted(path.name for path in reference.glob("[!.]*"))
    assert len(names) == 3, "a card and two shards"
    for name in names:
        assert (tmp_path / "out" / name).read_bytes() == (reference / name).read_bytes()
