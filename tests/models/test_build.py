"""Names become models: seeded, saved and loaded whole, with errors that say what exists."""

import json
from dataclasses import replace

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch.testing import assert_close

from drrho.models.build import Model, build_model, load_model, save_model
from drrho.models.open_clip import import_open_clip, plain_checkpoint
from drrho.models.small import SmallConfig

SMALL = Model(
    name="small", small=SmallConfig(embed_dim=8, image_width=2, text_width=8, text_heads=1)
)
# A CLIP of open_clip's own architecture, small enough to build in a test.
TINY_CLIP = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 16},
    "text_cfg": {
        "context_length": 16,
        "vocab_size": 49408,
        "width": 16,
        "heads": 2,
        "layers": 1,
    },
}


@pytest.fixture
def local_dir(tmp_path):
    """A folder as open_clip's push_to_hf_hub writes it, with random weights."""
    torch.manual_seed(3)
    open_clip = import_open_clip()
    module = open_clip.CLIP(**TINY_CLIP)
    preprocess = {"mean": [0.4, 0.4, 0.4], "std": [0.2, 0.2, 0.2]}
    (tmp_path / "open_clip_config.json").write_text(
        json.dumps({"model_cfg": TINY_CLIP, "preprocess_cfg": preprocess})
    )
    save_file(module.state_dict(), tmp_path / "open_clip_model.safetensors")
    return tmp_path, module


@pytest.fixture
def architecture(tmp_path):
    """A small architecture among those of open_clip, by a name with a slash."""
    (tmp_path / "test-tiny.json").write_text(json.dumps(TINY_CLIP))
    import_open_clip().add_model_config(tmp_path / "test-tiny.json")
    return "test/tiny"


def same_weights(a, b):
    left, right = a.state_dict(), b.state_dict()
    return left.keys() == right.keys() and all(torch.equal(left[k], right[k]) for k in left)


def test_the_seed_gives_the_weights_and_nothing_else_is_drawn():
    before = torch.get_rng_state()
    first, second, other = (build_model(SMALL, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    assert same_weights(first.module, second.module)
    assert first.identity == second.identity
    assert not same_weights(first.module, other.module)
    assert first.identity["weights_sha256"] != other.identity["weights_sha256"]


def test_a_saved_model_is_loaded_whole(tmp_path):
    model = build_model(SMALL, seed=1)
    with torch.no_grad():
        model.module.text_projection.weight.mul_(2)
    save_model(model, tmp_path / "run" / "model")
    loaded = build_model(Model(name=f"run:{tmp_path / 'run'}"), seed=0)
    assert same_weights(loaded.module, model.module)
    image = Image.new("RGB", (80, 70), "red")
    assert_close(loaded.eval_transform(image), model.eval_transform(image))
    assert_close(loaded.tokenizer(["a red box"]), model.tokenizer(["a red box"]))


def test_a_local_folder_is_loaded_with_its_own_transform_and_tokenizer(local_dir):
    folder, module = local_dir
    model = build_model(Model(name=f"local-dir:{folder}"), seed=0)
    assert same_weights(model.module, module)
    image = model.eval_transform(Image.new("RGB", (50, 40), (102, 102, 102)))
    assert image.shape == (3, 32, 32)
    assert_close(image, torch.zeros(3, 32, 32), atol=1e-6, rtol=0)  # (0.4 - mean) / std
    assert model.tokenizer(["a red box"]).shape == (1, 16)
    assert model.module.encode_image(image[None], normalize=True).shape == (1, 16)
    assert not model.module.logit_scale.requires_grad


def test_an_open_clip_model_trained_here_needs_nothing_but_its_folder(local_dir, tmp_path):
    """Weights, transform and tokenizer survive, for us and for open_clip itself."""
    folder, _ = local_dir
    model = build_model(Model(name=f"local-dir:{folder}"), seed=0)
    with torch.no_grad():
        model.module.text_projection.mul_(2)
    save_model(model, tmp_path / "run" / "model")
    (folder / "open_clip_config.json").unlink()  # the place it came from is gone
    loaded = build_model(Model(name=f"run:{tmp_path / 'run'}"), seed=0)
    assert same_weights(loaded.module, model.module)
    for part in ("eval_transform", "tokenizer"):
        assert loaded.identity[part] == model.identity[part]
    theirs, _, _ = import_open_clip().create_model_and_transforms(
        f"local-dir:{tmp_path / 'run' / 'model'}"
    )
    assert same_weights(theirs, model.module)


def test_an_architecture_of_open_clip_gets_random_weights_from_the_seed(architecture):
    config = Model(name=architecture)
    with pytest.raises(ValueError, match="random weights"):
        config.require_trained()
    models = [build_model(config, seed=seed) for seed in (0, 0)]
    assert same_weights(models[0].module, models[1].module)


def test_a_checkpoint_file_is_a_pretrained_model(architecture, tmp_path):
    module = build_model(Model(name=architecture), seed=4).module
    save_file(module.state_dict(), tmp_path / "mine.safetensors")
    config = Model(name=architecture, pretrained=str(tmp_path / "mine.safetensors"))
    config.require_trained()
    assert same_weights(build_model(config, seed=0).module, module)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"name": "ViT-B-99"}, "near: .*ViT-B-32"),
        ({"name": "ViT-B-32", "pretrained": "laion9b"}, "laion2b_s34b_b79k"),
        ({"name": "local-dir:/nowhere"}, "open_clip_config.json"),
        ({"name": "ViT-B-32", "pretrained": "openai"}, "ViT-B-32-quickgelu"),
        ({"name": "ViT-B-32-quickgelu", "pretrained": "laion2b_s34b_b79k"}, "neither a file"),
        ({"name": "small", "pretrained": "x"}, "no effect"),
        ({"name": "ViT-B-32", "small": SmallConfig(embed_dim=4)}, "no effect"),
    ],
)
def test_errors_say_what_there_is(config, message):
    with pytest.raises(ValueError, match=message):
        build_model(Model(**config), seed=0)


def test_an_unfinished_run_is_no_model(tmp_path):
    with pytest.raises(FileNotFoundError, match="Finish the run"):
        build_model(Model(name=f"run:{tmp_path}"), seed=0)


def test_a_folder_without_weights_is_no_trained_model(local_dir):
    folder, _ = local_dir
    (folder / "open_clip_model.safetensors").unlink()
    with pytest.raises(ValueError, match="no weights"):
        build_model(Model(name=f"local-dir:{folder}"), seed=0)


def test_weights_of_another_shape_are_refused(tmp_path):
    save_model(build_model(SMALL, seed=0), tmp_path)
    widths = json.loads((tmp_path / "small.json").read_text()) | {"embed_dim": 9}
    (tmp_path / "small.json").write_text(json.dumps(widths))
    with pytest.raises(ValueError, match="does not fit"):
        load_model(tmp_path)


def test_what_was_not_built_here_cannot_be_saved(tmp_path):
    stranger = replace(build_model(SMALL, seed=0), architecture={})
    with pytest.raises(ValueError, match="no architecture"):
        save_model(stranger, tmp_path)


@pytest.mark.parametrize(
    ("rename", "message"),
    [
        ("weights.pt", r"but weights\.pt; .* open_clip does not read a \.pt there"),
        ("weights.ckpt", r"has no weights \(.*\) beside .*weights\.ckpt"),
        (("a.safetensors", "b.safetensors"), r"which of a\.safetensors, b\.safetensors"),
    ],
)
def test_a_folder_whose_weights_are_not_read_is_refused(rename, message, local_dir):
    folder, _ = local_dir
    weights = folder / "open_clip_model.safetensors"
    for name in [rename] if isinstance(rename, str) else rename:
        (folder / name).write_bytes(weights.read_bytes())
    weights.unlink()
    with pytest.raises(ValueError, match=message):
        build_model(Model(name=f"local-dir:{folder}"), seed=0)


@pytest.mark.parametrize("change", ["missing", "unexpected", "shape", "damaged"])
@pytest.mark.parametrize("kind", ["open_clip", "small"])
def test_weights_that_do_not_fit_are_an_error(kind, change, local_dir, tmp_path):
    folder, module = local_dir
    if kind == "small":
        folder = tmp_path / "small"
        model = build_model(SMALL, seed=0)
        save_model(model, folder)
        module = model.module
    weights = {name: value.contiguous() for name, value in module.state_dict().items()}
    first = next(iter(weights))
    if change == "missing":
        del weights[first]
    elif change == "unexpected":
        weights["other"] = torch.zeros(2)
    else:
        weights[first] = torch.zeros(2, 3, 4, 5, 6)
    save_file(weights, folder / "open_clip_model.safetensors")
    if change == "damaged":
        (folder / "open_clip_model.safetensors").write_bytes(b"\0" * 40)
    with pytest.raises(ValueError, match=r"could not load|does not fit") as info:
        build_model(Model(name=f"run:{folder}"), seed=0)
    assert len(str(info.value)) < 1500


@pytest.mark.parametrize(
    "prefix", ["_orig_mod.", "module.", "model.", "module._orig_mod.", "model.model."]
)
@pytest.mark.parametrize("suffix", ["safetensors", "pt"])
@pytest.mark.parametrize("place", [None, "state_dict", "model"])
def test_prefixes_of_wrappers_are_removed_from_checkpoints(prefix, suffix, place, tmp_path):
    module = torch.nn.Linear(2, 3)
    weights = {prefix + name: value for name, value in module.state_dict().items()}
    path = tmp_path / f"weights.{suffix}"
    if suffix == "safetensors":
        save_file(weights, path)
    else:
        torch.save(weights if place is None else {place: weights, "epoch": 3}, path)
    (tmp_path / "plain").mkdir()
    plain = torch.load(plain_checkpoint(str(path), str(tmp_path / "plain")), weights_only=True)
    assert plain["state_dict"].keys() == {"weight", "bias"}
    assert torch.equal(plain["state_dict"]["bias"], module.bias)


def test_a_checkpoint_of_a_compiled_model_is_loaded(architecture, tmp_path):
    model = build_model(Model(name=architecture), seed=4)
    assert model.architecture["open_clip_config.json"]["model_cfg"]["embed_dim"] == 16
    weights = {f"_orig_mod.{name}": value for name, value in model.module.state_dict().items()}
    save_file(weights, tmp_path / "mine.safetensors")
    config = Model(name=architecture, pretrained=str(tmp_path / "mine.safetensors"))
    assert same_weights(build_model(config, seed=0).module, model.module)
    for content, message in (
        ({"state_dict": {"weight": "none"}}, "'weight' is no tensor"),
        (torch.zeros(3), "holds a Tensor, no tensors by name"),
        ({"model": weights | {"more": torch.ones(1)}}, "more"),
    ):
        torch.save(content, tmp_path / "mine.pt")
        with pytest.raises(ValueError, match=message):
            build_model(Model(name=architecture, pretrained=str(tmp_path / "mine.pt")), seed=0)
