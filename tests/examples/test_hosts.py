"""The examples inside other trainers run, shortened, learn, and continue where they stopped."""

import importlib
import re
import shutil
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch.testing import assert_close

HOSTS = Path(__file__).parents[2] / "examples" / "hosts"
# The package that each example needs, and its checkpoint of an epoch, of two steps each.
EXAMPLES = {
    "open_clip_training": ("open_clip_train", "epoch_{epoch}.pt"),
    "hugging_face_clip": ("transformers", "checkpoint-{step}"),
    "lightning_clip": ("lightning", "epoch={index}.ckpt"),
}
CHANCE = sum(1 / rank for rank in range(1, 301)) / 300  # with 300 test pairs


def test_the_readme_gives_the_command_of_every_host():
    readme = (HOSTS.parent / "README.md").read_text(encoding="utf-8")
    commands = set(re.findall(r"python examples/hosts/(\w+)\.py", readme))
    assert commands == {path.stem for path in HOSTS.glob("*.py")} - {"comparison"} == set(EXAMPLES)


def read(checkpoint):
    """The model and the loss's averages."""
    if checkpoint.is_dir():  # of Hugging Face's Trainer
        files = [checkpoint / "model.safetensors", checkpoint / "contrastive.safetensors"]
        model, loss = map(safetensors.torch.load_file, files)
    else:
        saved = torch.load(checkpoint)
        model = saved["state_dict"]
        loss = saved["callbacks"]["Steering"] if "callbacks" in saved else saved["loss"]
    return model, loss


def entries(checkpoint):
    _, loss = checkpoint
    return next(value for name, value in loss.items() if name.endswith("entries"))


@pytest.mark.filterwarnings("ignore")  # what hosts say about machines
@pytest.mark.parametrize("name", EXAMPLES)
def test_steering_helps_and_a_stopped_run_ends_as_if_never_stopped(name, tmp_path, monkeypatch):
    package, file = EXAMPLES[name]
    pytest.importorskip(package, reason=f"{package} is not installed")
    monkeypatch.syspath_prepend(HOSTS)
    example = importlib.import_module(name)
    arguments = ["--pairs", "200", "--epochs", "10", "--output", str(tmp_path)]
    found = example.main(arguments)
    assert found["reference"] > 2 * CHANCE
    # 1.38 to 1.39 times; with the reference's rows moved by one it is 0.8 to 1.11 times.
    assert found["DRRho-CLIP"] > 1.2 * found["CLIP"]

    halfway, end = (
        tmp_path / "DRRho-CLIP" / file.format(epoch=epoch, step=2 * epoch, index=epoch - 1)
        for epoch in (5, 10)
    )
    written, expected = halfway.stat().st_mtime_ns, read(end)
    assert not torch.equal(entries(read(halfway)), entries(expected))
    (shutil.rmtree if end.is_dir() else Path.unlink)(end)
    assert example.main(arguments) == found
    assert_close(read(end), expected, rtol=0, atol=0)
    assert halfway.stat().st_mtime_ns == written
