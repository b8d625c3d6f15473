"""No file that a user was sent runs code: not by the model it names, nor by its tokenizer."""

import contextlib
import hashlib
import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from tests.models.test_build import TINY_CLIP
from tests.models.test_hugging_face import clip, tokenizer
from tests.models.test_program import PROGRAM
from tests.test_old_files import FIXTURES

import drrho
from drrho import load
from drrho.cli import main
from drrho.data.manifest import Manifest
from drrho.data.reading import storage
from drrho.data.scenes import ScenesConfig, write_scenes
from drrho.models.build import Model, build_model, build_recorded_model, load_model
from drrho.models.hugging_face import import_transformers
from drrho.models.open_clip import import_open_clip
from drrho.models.program import trusting

CLASS = """
from pathlib import Path
Path({marker!r}).touch()
from transformers import PreTrainedTokenizerFast, CLIPConfig, CLIPModel
class Evil(PreTrainedTokenizerFast): pass
"""


@pytest.fixture
def evil(tmp_path):
    """A program that leaves a mark when it is run, and the mark."""
    mark, program = tmp_path / "was-run", tmp_path / "evil.py"
    program.write_text(f"from pathlib import Path\nPath({str(mark)!r}).touch()\n{PROGRAM}")
    return program, mark


@pytest.fixture
def received(evil, tmp_path):
    """The folder of a run whose model names the program."""
    program, _ = evil
    model = tmp_path / "run" / "model"
    model.mkdir(parents=True)
    digest = hashlib.sha256(program.read_bytes()).hexdigest()
    (model / "program.json").write_text(json.dumps({"path": str(program), "sha256": digest}))
    weights = build_model(Model("small"), seed=0).module.state_dict()
    plain = {name: value.contiguous() for name, value in weights.items()}
    save_file(plain, model / "model.safetensors")
    return model.parent


@pytest.mark.parametrize(
    "command",
    [
        ["evaluate", "RUN", "--data", "absent"],
        ["export", "RUN", "--format", "open-clip", "--output", "x.pt"],
        ["reference", "precompute", "--data", "DATA", "--model", "run:RUN", "--output", "OUT"],
    ],
    ids=lambda command: command[0],
)
def test_a_received_run_runs_no_program_without_trust(command, received, evil, tmp_path, capsys):
    places = {"RUN": str(received), "OUT": str(tmp_path / "out"), "DATA": str(tmp_path / "data")}
    write_scenes(tmp_path / "data", ScenesConfig(num_samples=4, seed=0))
    for name, place in places.items():
        command = [argument.replace(name, place) for argument in command]
    assert main([*command, "--device", "cpu"] if command[0] != "export" else command) == 1
    error = capsys.readouterr().err
    assert "asks for running the program" in error
    assert "say --trust (trust=True in Python)" in error
    assert not evil[1].exists()


def test_what_the_user_names_or_trusts_is_run(received, evil):
    program, mark = evil
    for refused in (lambda: load(received), lambda: build_model(Model(f"run:{received}"), seed=0)):
        with pytest.raises(ValueError, match="asks for running the program"):
            refused()
    with trusting("python:other.py", "small"), pytest.raises(ValueError, match="say --trust"):
        load_model(received / "model")
    assert not mark.exists()
    load(received, trust=True, device="cpu")
    with trusting(f"python:{program}"):
        load_model(received / "model")
    assert mark.exists()
    with pytest.raises(ValueError, match="say --trust"):
        load_model(received / "model")


@pytest.mark.parametrize("name", ["python:EVIL", "hf-hub:them/model", "run:RUN", "RN50@openai"])
def test_the_model_that_a_recipe_records_is_not_built_without_trust(name, received, evil):
    name = name.replace("EVIL", str(evil[0])).replace("RUN", str(received))
    name, _, pretrained = name.partition("@")
    with pytest.raises(ValueError, match="say --trust"):
        build_recorded_model(Model(name, pretrained=pretrained or None), seed=0, run=received)
    assert not evil[1].exists()


@pytest.mark.parametrize(
    "changed",
    [
        {"model": {"name": "python:evil.py"}},
        {"model": {"name": "hf-hub:them/model"}},
        {"model": {"name": "RN50", "pretrained": "openai"}},
        {"data": "https://user:word@host/train.json"},
        {"evaluation": {"data": "s3://bucket/test.json"}},
        {"training": {"steps": 6, "trackers": ["python:evil.py"]}},
    ],
    ids=json.dumps,
)
def test_a_received_recipe_is_handed_out_with_trust_only_where_it_names_code_or_urls(changed, run):
    folder = run / "trained" / "steered"
    path = folder / "recipe.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content | {"model": {"name": "small"}}))
    assert drrho.Run(folder).recipe.model.name == "small"
    path.write_text(json.dumps(content | {"model": {"name": "small"}} | changed))
    with pytest.raises(ValueError, match=r"say --trust \(trust=True in Python\)") as refused:
        drrho.Run(folder).recipe  # noqa: B018  # a property, read where a recipe is wanted
    assert "word" not in str(refused.value)
    assert drrho.Run(folder, trust=True).recipe.training.steps is not None
    assert not (run / "was-run").exists()


@pytest.mark.parametrize("path", [["no"], 3, None], ids=repr)
def test_a_program_file_of_other_types_is_named(path, received):
    place = received / "model" / "program.json"
    place.write_text(json.dumps({"path": path, "sha256": "0"}))
    with pytest.raises(ValueError, match=r"program\.json\.path must be"):
        load_model(place.parent)


def with_code(folder, evil):
    """A folder of open_clip's with a tokenizer that has code of its own."""
    tokenizer(pad="<pad>").save_pretrained(folder)
    path = folder / "tokenizer_config.json"
    settings = json.loads(path.read_text()) | {
        "tokenizer_class": "Evil",
        "auto_map": {"AutoTokenizer": ["evil.Evil", "evil.Evil"]},
    }
    path.write_text(json.dumps(settings))
    (folder / "evil.py").write_text(CLASS.format(marker=str(evil[1])))
    text = TINY_CLIP["text_cfg"] | {
        "hf_tokenizer_name": "anything",
        "tokenizer_kwargs": {"trust_remote_code": True},
    }
    config = TINY_CLIP | {"text_cfg": text}
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config}))
    save_file(import_open_clip().CLIP(**TINY_CLIP).state_dict(), folder / "model.safetensors")


def test_a_tokenizer_runs_no_code_whatever_its_configuration_says(tmp_path, evil):
    folder = tmp_path / "model"
    folder.mkdir()
    with_code(folder, evil)
    with contextlib.suppress(ValueError):
        build_model(Model(f"local-dir:{folder}"), seed=0)
    assert not evil[1].exists()


@pytest.mark.parametrize("kind", ["AutoConfig", "AutoModel", "AutoTokenizer", "kernel", "adapter"])
def test_a_folder_of_transformers_runs_no_code(kind, tmp_path, evil):
    folder = tmp_path / "model"
    clip().save_pretrained(folder)
    tokenizer(pad="<pad>").save_pretrained(folder)
    import_transformers().CLIPImageProcessor(size=32, crop_size=32).save_pretrained(folder)
    (folder / "evil.py").write_text(CLASS.format(marker=str(evil[1])))
    path = folder / ("tokenizer_config.json" if kind == "AutoTokenizer" else "config.json")
    content = json.loads(path.read_text())
    match kind:
        case "kernel":
            content["text_config"]["attn_implementation"] = "them/kernel"
        case "adapter":
            path = folder / "adapter_config.json"
        case _:
            content["auto_map"] = {kind: "evil.Evil"}
            content |= {"model_type": "evil"} if kind == "AutoConfig" else {}
    path.write_text(json.dumps(content))
    is_known = kind in ("AutoModel", "AutoTokenizer")  # its own class is there without the code
    with contextlib.nullcontext() if is_known else pytest.raises(ValueError, match=str(folder)):
        build_model(Model(f"transformers:{folder}"), seed=0)
    assert not evil[1].exists()


def test_a_vision_model_of_another_place_is_refused(tmp_path):
    config = TINY_CLIP | {"vision_cfg": {"timm_model_name": "hf-hub:them/model", "image_size": 32}}
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": config}))
    save_file({"x": torch.zeros(1)}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="hf-hub:them/model' from elsewhere"):
        build_model(Model(f"local-dir:{tmp_path}"), seed=0)


class Payload:
    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return (open, (self.mark, "w"))


@pytest.mark.parametrize("suffix", ["pt", "pth", "bin"])
def test_a_pickle_among_weights_is_not_executed(suffix, tmp_path, evil):
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": TINY_CLIP}))
    torch.save({"state_dict": Payload(str(evil[1]))}, tmp_path / f"model.{suffix}")
    for config in (
        Model(f"local-dir:{tmp_path}"),
        Model("RN50", pretrained=str(tmp_path / f"model.{suffix}")),
    ):
        with pytest.raises(ValueError, match="could not load|has no weights"):
            build_model(config, seed=0)
    assert not evil[1].exists()


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A finished run of an earlier version whose program leaves a mark, in the working folder."""
    folder = tmp_path / "received"
    shutil.copytree(FIXTURES, folder)
    monkeypatch.chdir(folder)
    program = folder / "encoder.py"
    program.write_text("from pathlib import Path\nPath('was-run').touch()\n" + program.read_text())
    content = {"path": str(program), "sha256": hashlib.sha256(program.read_bytes()).hexdigest()}
    for path in folder.rglob("program.json"):
        path.write_text(json.dumps(content))
    return folder


def test_commands_on_a_received_run_run_no_program(run, capsys):
    checkpoint = "trained/steered-interrupted/checkpoints/step-00000004"
    assert main(["report", "trained/steered", "trained/steered-interrupted"]) == 0
    assert "say --trust" in (run / "report.html").read_text()
    assert main(["curate", "trained/steered", "--output", "curated"]) == 1
    arguments = ["--format", "open-clip", "--output", "x.pt", "--checkpoint", checkpoint]
    assert main(["export", "trained/steered-interrupted", *arguments]) == 1
    assert capsys.readouterr().err.count("say --trust") == 2
    assert not (run / "was-run").exists()
    assert main(["report", "trained/steered", "--trust"]) == 0
    assert (run / "was-run").exists()
    assert "say --trust" not in (run / "report.html").read_text()


def test_urls_that_a_received_file_names_are_not_fetched(run, monkeypatch, capsys):
    fetched = []
    monkeypatch.setattr(storage, "open_file", fetched.append)
    recipe = run / "trained" / "steered" / "recipe.json"
    content = json.loads(recipe.read_text())
    for data in ("https://user:word@host/train.json", "received.json"):
        recipe.write_text(json.dumps(content | {"data": data}))
        manifest = Manifest.load(Path("train/manifest.json"))
        shards = [replace(it, url="https://user:word@host/x.tar") for it in manifest.shards[:1]]
        Manifest(shards=tuple(shards)).save(Path("received.json"))
        assert main(["report", "trained/steered"]) == 0
        page = (run / "report.html").read_text()
        assert "asks for data at https://host/" in page
        assert "word" not in page
        assert main(["curate", "trained/steered", "--output", "curated"]) == 1
        error = capsys.readouterr().err
        assert "asks for data at https://host/" in error
        assert "word" not in error
    assert not fetched
