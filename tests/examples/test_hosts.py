"""The examples inside other trainers run, shortened, and steering gets through to the model."""

import importlib
import re
from pathlib import Path

import pytest
import torch

EXAMPLES = Path(__file__).parents[2] / "examples"
HOSTS = {"open_clip_training": "open_clip", "hugging_face_clip": "transformers"}
HOSTS |= {"lightning_clip": "lightning"}


def test_the_readme_gives_the_command_of_every_host():
    commands = re.findall(r"python examples/hosts/(\w+)\.py", (EXAMPLES / "README.md").read_text())
    assert set(commands) == {path.stem for path in (EXAMPLES / "hosts").glob("*_*.py")}
    assert set(commands) == set(HOSTS)


@pytest.mark.filterwarnings("ignore")  # what hosts say about machines
@pytest.mark.parametrize(("example", "host"), HOSTS.items())
def test_every_method_learns_something(example, host, tmp_path, monkeypatch):
    pytest.importorskip(host)
    monkeypatch.syspath_prepend(EXAMPLES / "hosts")
    module = importlib.import_module(example)
    arguments = ["--epochs", "4", "--samples", "512", "--output", str(tmp_path)]
    found = module.main(arguments)
    assert found.keys() == {"reference", "CLIP", "DRRho-CLIP"}
    assert min(found.values()) > 2 / 24  # chance is 1 / 24
    if example == "open_clip_training":  # finished: everything is read, nothing trained again
        (tmp_path / "DRRho-CLIP" / "epoch_4.loss.pt").unlink()
        before = torch.load(tmp_path / "DRRho-CLIP" / "epoch_4.pt")["state_dict"]
        assert module.main(arguments) == found
        after = torch.load(tmp_path / "DRRho-CLIP" / "epoch_4.pt")["state_dict"]
        assert all(torch.equal(after[name], value) for name, value in before.items())
