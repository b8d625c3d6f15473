"""Paths mean the same to every command: `~` is the home, and outputs stay on the machine."""

import inspect
from dataclasses import dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import get_type_hints

import pytest

from drrho import cli
from drrho.contrastive.objectives.clip import CLIP
from drrho.data.index import IndexConfig, MixConfig
from drrho.data.indexing import open_manifest
from drrho.data.manifest import Manifest
from drrho.data.scenes import DrawConfig, ScenesConfig
from drrho.evaluation.evaluate import EvaluateConfig
from drrho.models.build import Model
from drrho.recipe.export import ExportConfig
from drrho.recipe.filtering import Filtering
from drrho.recipe.folder import read_run
from drrho.recipe.recipe import Evaluation, Recipe
from drrho.recipe.train import train_recipe
from drrho.reference.build import PrecomputeConfig, VerifyConfig
from drrho.reference.store import REFERENCE_CARDS
from drrho.runtime.files import expand_paths
from drrho.studies.curate.curate import CurateConfig
from drrho.studies.demo import DemoConfig
from drrho.studies.probe.probe import LossesProbeConfig
from drrho.studies.report.write import ReportConfig
from drrho.studies.scaling.results import FitConfig


def as_json(path):
    return f"{path}.json" if path.startswith("~") else path


CONFIGS = {
    "index": lambda path: IndexConfig(data=path, output=as_json(path)),
    "mix": lambda path: MixConfig(manifests=(path, path), output=as_json(path)),
    "precompute": lambda path: PrecomputeConfig(data=path, model="run:x", output=path),
    "evaluate": lambda path: EvaluateConfig(run=path, data=(path,), output=path),
    "export": lambda path: ExportConfig(path, format="open-clip", output=path, checkpoint=path),
    "report": lambda path: ReportConfig(runs=(path,), output=path),
    "curate": lambda path: CurateConfig(run=path, output=path),
    "demo": lambda path: DemoConfig(output=path),
    "fit": lambda path: FitConfig(results=(path,), output=path),
    "probe losses": lambda path: LossesProbeConfig(losses=path, pilots=(path, path), output=path),
    "draw": lambda path: DrawConfig(folder=path, scenes=ScenesConfig(num_samples=2, seed=0)),
    "train": lambda path: Recipe(
        output=path,
        data=path,
        model=Model(name="x"),
        objective=CLIP(),
        evaluation=Evaluation(data=path, references=(path,)),
    ),
}
INPUTS = {
    "verify": lambda path: VerifyConfig(folder=path, data=path),
    "filter": lambda path: Filtering(reference=path, threshold=0.1),
}


def texts(config):
    """All texts of a configuration, in tuples and parts too."""
    for part in fields(config):
        value = getattr(config, part.name)
        if is_dataclass(value):
            yield from texts(value)
        yield from (it for it in (value if isinstance(value, tuple) else (value,)))


@pytest.mark.parametrize("build", [*CONFIGS.values(), *INPUTS.values()], ids=[*CONFIGS, *INPUTS])
def test_the_home_is_written_out(build, monkeypatch):
    monkeypatch.setenv("HOME", "/home/somebody")
    found = [text for text in texts(build("~/x")) if isinstance(text, str)]
    assert "/home/somebody/x" in found
    assert [text for text in found if text.startswith("~")] == []
    with pytest.raises(ValueError, match="the home of nobody"):
        build("~nobody-of-this-name/x")


@pytest.mark.parametrize("url", ["s3://b/x", "gs://b", "https://h/x", "file:///x", "hdfs:/x", ""])
@pytest.mark.parametrize("name", CONFIGS)
def test_an_output_that_is_no_path_of_this_machine_is_refused(name, url):
    if (name, url) == ("train", ""):  # a method of a comparison leaves it to the comparison
        recipe = CONFIGS["train"]("x")
        with pytest.raises(ValueError, match="output = '' names no folder to train in"):
            train_recipe(replace(recipe, output=""))
        return
    with pytest.raises(ValueError, match="must be a path on this machine"):
        CONFIGS[name](url)


@pytest.mark.parametrize("name", CONFIGS)
def test_an_output_that_begins_with_a_variable_is_refused(name):
    with pytest.raises(ValueError, match="begins with a variable"):
        CONFIGS[name]("$HOME/x")


def test_a_path_object_is_a_path(tmp_path):
    @dataclass(frozen=True)
    class Config:
        data: object
        several: object
        output: object

        def __post_init__(self):
            expand_paths(self, "data", "several")

    found = Config(data=tmp_path, several=(tmp_path, "b", None), output=Path("out"))
    assert (found.data, found.output) == (str(tmp_path), "out")
    assert found.several == (str(tmp_path), "b", None)


def test_a_relative_path_stays_as_it_was_written():
    assert CONFIGS["train"]("runs/a b:c/~x/").output == "runs/a b:c/~x/"
    assert PrecomputeConfig(data="s3://b/x.tar", model="run:x", output="y").data == "s3://b/x.tar"


def test_every_command_that_writes_checks_its_paths():
    without = []
    for place in cli.COMMANDS.values():
        function = cli._load(place)
        (kind,) = (it for name, it in get_type_hints(function).items() if name != "return")
        takes = {part.name for part in fields(kind)} if is_dataclass(kind) else set()
        if {"output", "folder"} & takes and "expand_paths(" not in inspect.getsource(kind):
            without.append(kind.__name__)
    assert without == []


@pytest.mark.parametrize(
    ("read", "what"),
    [
        (Manifest.load, "manifest"),
        (open_manifest, "manifest"),
        (lambda url: read_run(Path(url).parent), "run"),
        (lambda url: REFERENCE_CARDS.load(Path(url).parent), "folder of embeddings"),
    ],
)
def test_what_is_read_at_no_url_says_so(read, what):
    with pytest.raises(ValueError, match=f"{what} s3:.* is a URL; .*copy it here") as caught:
        read("s3://bucket/folder/train.json?key=secret.json")
    assert "secret" not in str(caught.value)
