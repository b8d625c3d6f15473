"""What a received configuration makes a loader build is in proportion to the weights beside it."""

import json
import resource
import time
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file
from tests.models.test_build import TINY_CLIP
from tests.models.test_hugging_face import clip, tokenizer

from drrho.models.build import Model, build_model, build_recorded_model, save_model
from drrho.models.hugging_face import import_transformers
from drrho.models.open_clip import import_open_clip
from drrho.models.program import trusting
from drrho.models.small import SmallConfig

SMALL = SmallConfig(embed_dim=8, image_width=2, text_width=8, text_layers=1, text_heads=2)
HUGE = 10**9


def write_open_clip(folder):
    save_file(import_open_clip().CLIP(**TINY_CLIP).state_dict(), folder / "model.safetensors")
    preprocess = {"size": 32, "mean": [0.5] * 3, "std": [0.3] * 3}
    config = {"model_cfg": TINY_CLIP, "preprocess_cfg": preprocess}
    (folder / "open_clip_config.json").write_text(json.dumps(config))


def write_hugging_face(folder):
    clip().save_pretrained(folder)
    tokenizer(pad="<pad>").save_pretrained(folder)
    import_transformers().CLIPImageProcessor(size=32, crop_size=32).save_pretrained(folder)


def write_small(folder):
    save_model(build_model(Model("small", small=SMALL), seed=0), folder)


WRITERS = {
    "open_clip_config.json": (write_open_clip, "local-dir"),
    "config.json": (write_hugging_face, "transformers"),
    "preprocessor_config.json": (write_hugging_face, "transformers"),
    "small.json": (write_small, "run"),
}


def fields_of(value, place=()):
    """The places of all whole numbers."""
    if isinstance(value, dict):
        return [it for name, part in value.items() for it in fields_of(part, (*place, name))]
    if isinstance(value, list):
        return [it for i, part in enumerate(value) for it in fields_of(part, (*place, i))]
    return [place] if type(value) is int else []


def changed(content, place, value):
    part = content
    for name in place[:-1]:
        part = part[name]
    part[place[-1]] = value
    return content


@pytest.mark.parametrize(
    ("name", "size"),
    [*((name, HUGE) for name in WRITERS), ("open_clip_config.json", 10**5), ("small.json", 10**5)],
)
def test_a_large_number_anywhere_is_an_error_that_names_it_or_changes_nothing(name, size, tmp_path):
    write, schema = WRITERS[name]
    write(tmp_path)
    path = tmp_path / name
    original, messages = path.read_text(), {}
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    named = {
        next(it for it in reversed(p) if isinstance(it, str)): p
        for p in fields_of(json.loads(original))
    }
    for field, place in named.items():
        path.write_text(json.dumps(changed(json.loads(original), place, size)))
        start = time.monotonic()
        try:
            build_model(Model(f"{schema}:{tmp_path}"), seed=0)
        except ValueError as error:
            messages[field] = str(error)
        assert time.monotonic() - start < 5
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 500_000  # kilobytes
    expected = {
        "open_clip_config.json": {"embed_dim", "width", "layers", "image_size", "vocab_size"},
        "config.json": {"hidden_size", "num_hidden_layers", "image_size", "vocab_size"},
        "preprocessor_config.json": {"height", "width", "shortest_edge"},
        "small.json": {"embed_dim", "text_width", "text_layers", "context_length"},
    }
    assert expected[name] <= messages.keys() | ({"vocab_size"} if size != HUGE else set())
    for field, message in messages.items() if size == HUGE else ():
        assert name in message
        assert field in message
    path.write_text(original)
    build_model(Model(f"{schema}:{tmp_path}"), seed=0)


def test_the_message_names_the_file_the_field_and_what_the_weights_hold(tmp_path):
    write_small(tmp_path)
    path = tmp_path / "small.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content | {"text_layers": 5000}))
    with pytest.raises(ValueError, match=r"small\.json: text_layers = 5,000 is more than 1,024"):
        build_model(Model(f"run:{tmp_path}"), seed=0)
    path.write_text(json.dumps(content | {"image_width": 4096}))
    with pytest.raises(ValueError, match=r"small\.json asks for a model of .*image_width = 4,096"):
        build_model(Model(f"run:{tmp_path}"), seed=0)


@pytest.mark.parametrize("suffix", ["bin", "pth"])
def test_a_pickle_bounds_what_is_built_too(suffix, tmp_path):
    write_open_clip(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    weights = import_open_clip().CLIP(**TINY_CLIP).state_dict()
    torch.save(weights, tmp_path / f"model.{suffix}")
    path = tmp_path / "open_clip_config.json"
    build_model(Model(f"local-dir:{tmp_path}"), seed=0)
    content = json.loads(path.read_text())
    content["model_cfg"]["vision_cfg"]["width"] = 10**5
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"vision_cfg\.width = 100,000"):
        build_model(Model(f"local-dir:{tmp_path}"), seed=0)


@pytest.mark.parametrize(
    "model",
    [Model("small", small=replace(SMALL, embed_dim=10**8)), Model("ViT-bigG-14")],
    ids=["small", "architecture"],
)
def test_the_model_that_a_recipe_records_is_bounded_by_the_weights_of_its_run(model, tmp_path):
    write_small(tmp_path / "model")
    with pytest.raises(ValueError, match=r"recipe\.json.*(embed_dim = 100,000,000|ViT-bigG-14)"):
        build_recorded_model(model, seed=0, run=tmp_path)
    with trusting(everything=True), pytest.raises(ValueError, match=r"recipe\.json"):
        build_recorded_model(model, seed=0, run=tmp_path)
    build_recorded_model(Model("small", small=SMALL), seed=0, run=tmp_path)
