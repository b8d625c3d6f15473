"""A program of the user's builds a model, which trains and is loaded again with that program."""

import pytest
import torch
from safetensors.torch import load_file

from drrho.models.build import Model, build_model, load_model, save_model
from drrho.models.program import trusting

PROGRAM = """
from dataclasses import replace
from drrho.models.build import Model, build_model

def build():
    model = build_model(Model(name="small"), seed=5)
    return replace(model, identity=model.identity | {"architecture": "mine"})
"""


def test_a_program_builds_a_model(tmp_path):
    path = tmp_path / "encoder.py"
    path.write_text(PROGRAM)
    assert build_model(Model(name=f"python:{path}"), seed=0).identity["architecture"] == "mine"
    for text, message in (
        ("build = 3", "must define build()"),
        ("def build(): return 3", "got int"),
        ("def build(): raise KeyError('x')", "KeyError"),
    ):
        path.write_text(text)
        with pytest.raises(ValueError, match=message):
            build_model(Model(name=f"python:{path}"), seed=0)
    with pytest.raises(FileNotFoundError, match="there is no such file"):
        build_model(Model(name=f"python:{tmp_path}/absent.py"), seed=0)


TIED = """
import torch
from drrho.models.two_tower import TwoTower

class Towers(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.image = self.text = torch.nn.Linear(3, 3)

def build():
    transform = torch.nn.Identity()
    return TwoTower(
        module=Towers(),
        train_transform=transform,
        eval_transform=transform,
        tokenizer=transform,
        identity={"architecture": "tied"},
    )
"""


@pytest.fixture(params=[PROGRAM, TIED], ids=["of a model of ours", "tied weights"])
def saved(request, tmp_path):
    """The program, and the folder of the model that was trained with it."""
    path, folder = tmp_path / "encoder.py", tmp_path / "run" / "model"
    path.write_text(request.param)
    model = build_model(Model(name=f"python:{path}"), seed=0)
    with torch.no_grad():
        for parameter in model.module.parameters():
            parameter.add_(1)
    save_model(model, folder)
    return path, folder, model


def test_a_trained_one_is_loaded_with_its_program(saved):
    path, folder, model = saved
    with trusting(f"python:{path}"):
        loaded = build_model(Model(name=f"run:{folder.parent}"), seed=0)
    theirs = loaded.module.state_dict()
    assert all(torch.equal(theirs[k], v) for k, v in model.module.state_dict().items())
    assert loaded.identity["architecture"] == model.identity["architecture"]
    assert loaded.identity["pretrained"] == "trained with drrho"
    assert load_file(folder / "model.safetensors").keys() == theirs.keys(), "tensors alone"


def test_another_program_is_not_run_for_it(saved):
    path, folder, _ = saved
    path.write_text("raise SystemExit")
    with trusting(everything=True):
        with pytest.raises(ValueError, match="was built by another .*put the file back as it was"):
            load_model(folder)
        path.unlink()
        with pytest.raises(FileNotFoundError, match=r"is built by .*encoder\.py, which is gone"):
            load_model(folder)
