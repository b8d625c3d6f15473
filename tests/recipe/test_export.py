"""What is exported is loaded by others, with the same embeddings."""

import json
from dataclasses import replace

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch.testing import assert_close

from drrho.cli import main
from drrho.models.build import Model, build_model, load_model, save_model
from drrho.models.export import export_hugging_face
from drrho.models.hugging_face import as_tensor, import_transformers
from drrho.models.open_clip import import_open_clip
from drrho.recipe.train import train_recipe

open_clip = import_open_clip()
NAME = "drrho-test-vit"
ARCHITECTURE = {
    "embed_dim": 8,
    "vision_cfg": {"image_size": 64, "layers": 2, "width": 16, "patch_size": 32, "head_width": 8},
    "text_cfg": {"context_length": 32, "vocab_size": 49408, "width": 8, "heads": 1, "layers": 2},
}
CAPTIONS = ["a large red circle, at the top left", "two"]


@pytest.fixture(scope="module")
def run(plain_recipe, tmp_path_factory):
    """A run of an architecture that open_clip knows by name."""
    folder = tmp_path_factory.mktemp("architectures")
    (folder / f"{NAME}.json").write_text(json.dumps(ARCHITECTURE))
    open_clip.add_model_config(folder)
    output = tmp_path_factory.mktemp("run")
    train_recipe(replace(plain_recipe, model=Model(name=NAME), output=str(output)))
    return output


def inputs():
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(2, 3, 64, 64, generator=generator)
    return images, open_clip.get_tokenizer(NAME)(CAPTIONS)


def embeddings(module):
    module.eval()
    images, tokens = inputs()
    with torch.no_grad():
        return module.encode_image(images), module.encode_text(tokens)


@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
def test_open_clip_loads_it_as_pretrained(run, tmp_path, capsys, suffix):
    output = tmp_path / f"model.{suffix}"
    assert main(["export", str(run), "--format", "open-clip", "--output", str(output)]) == 0
    assert str(output) in capsys.readouterr().out
    module, _, _ = open_clip.create_model_and_transforms(NAME, pretrained=str(output))
    expected = embeddings(load_model(run / "model").module)
    assert_close(embeddings(module), expected, rtol=0, atol=0)


def test_a_checkpoint_is_exported(run, tmp_path):
    checkpoint = run / "checkpoints" / "step-00000004"
    output = tmp_path / "model.pt"
    arguments = ["--format", "open-clip", "--output", str(output), "--checkpoint", str(checkpoint)]
    assert main(["export", str(run), *arguments]) == 0
    module, _, _ = open_clip.create_model_and_transforms(NAME, pretrained=str(output))
    found, final = embeddings(module)[0], embeddings(load_model(run / "model").module)[0]
    assert not torch.equal(found, final), "of step 4, not of step 6"
    assert_close(found, final, rtol=0.2, atol=0.1)


@pytest.mark.parametrize("quick_gelu", [False, True])
def test_transformers_loads_it(run, tmp_path, quick_gelu):
    transformers = import_transformers()
    folder = run
    if quick_gelu:
        architectures = tmp_path / "architectures"
        architectures.mkdir()
        config = ARCHITECTURE | {"quick_gelu": True}
        (architectures / f"{NAME}-quick.json").write_text(json.dumps(config))
        open_clip.add_model_config(architectures)
        model = build_model(Model(name=f"{NAME}-quick"), seed=1)
        folder = tmp_path / "run"
        save_model(model, folder / "model")
    output = tmp_path / "hf"
    assert main(["export", str(folder), "--format", "hugging-face", "--output", str(output)]) == 0
    theirs = transformers.CLIPModel.from_pretrained(output).eval()
    ours = load_model(folder / "model")
    tokens = transformers.AutoTokenizer.from_pretrained(output)(
        CAPTIONS, padding="max_length", return_tensors="pt"
    )
    images, our_tokens = inputs()
    ends = (our_tokens == 49407).int().argmax(dim=1) + 1
    for row, end in enumerate(ends.tolist()):
        assert torch.equal(tokens["input_ids"][row, :end], our_tokens[row, :end])
    with torch.no_grad():
        found = [
            theirs.get_image_features(pixel_values=images),
            theirs.get_text_features(input_ids=tokens["input_ids"]),
        ]
    for one, other in zip(found, embeddings(ours.module), strict=True):
        assert_close(as_tensor(one), other, rtol=1e-5, atol=1e-5)
    picture = Image.effect_noise((90, 70), 50).convert("RGB")
    pixels = transformers.AutoImageProcessor.from_pretrained(output)(
        images=picture, return_tensors="pt"
    )["pixel_values"]
    # Resized once by PIL and once by torchvision: a level or two of 255.
    assert_close(pixels[0], ours.eval_transform(picture), rtol=0, atol=0.06)


def local_model(folder, *, architecture=ARCHITECTURE, preprocess):
    torch.manual_seed(2)
    save_file(open_clip.CLIP(**architecture).state_dict(), folder / "open_clip_model.safetensors")
    (folder / "open_clip_config.json").write_text(
        json.dumps({"model_cfg": architecture, "preprocess_cfg": preprocess})
    )
    return build_model(Model(name=f"local-dir:{folder}"), seed=0)


@pytest.mark.parametrize("resize_mode", ["shortest", "squash"])
def test_images_are_resized_as_they_were(tmp_path, resize_mode):
    transformers = import_transformers()
    model = local_model(tmp_path, preprocess={"resize_mode": resize_mode})
    export_hugging_face(model, tmp_path / "hf")
    picture = Image.linear_gradient("L").resize((150, 70)).rotate(30).convert("RGB")
    pixels = transformers.AutoImageProcessor.from_pretrained(tmp_path / "hf")(
        images=picture, return_tensors="pt"
    )["pixel_values"]
    assert_close(pixels[0], model.eval_transform(picture), rtol=0, atol=0.06)


def test_a_way_to_resize_that_transformers_has_not_is_refused(tmp_path):
    model = local_model(tmp_path, preprocess={"resize_mode": "longest"})
    with pytest.raises(ValueError, match="resized with 'longest'"):
        export_hugging_face(model, tmp_path / "hf")
    assert not (tmp_path / "hf").exists()


def test_what_a_configuration_leaves_out_is_what_open_clip_takes(tmp_path):
    transformers = import_transformers()
    architecture = {
        "embed_dim": 8,
        "vision_cfg": {"image_size": 64, "layers": 1, "width": 64, "patch_size": 32},
        "text_cfg": {"context_length": 32, "width": 64, "layers": 1},
    }
    model = local_model(tmp_path, architecture=architecture, preprocess={})
    export_hugging_face(model, tmp_path / "hf")
    config = transformers.CLIPModel.from_pretrained(tmp_path / "hf").config
    assert config.text_config.vocab_size == 49408
    assert config.text_config.num_attention_heads == 8
    assert config.vision_config.num_attention_heads == 1


def test_a_checkpoint_of_another_model_is_refused(run, plain_recipe, tmp_path, capsys):
    train_recipe(replace(plain_recipe, output=str(tmp_path / "other")))
    checkpoint = tmp_path / "other" / "checkpoints" / "step-00000004"
    arguments = ["--format", "open-clip", "--output", str(tmp_path / "x.pt")]
    assert main(["export", str(run), *arguments, "--checkpoint", str(checkpoint)]) == 1
    assert f"step-00000004 is not one of the model of {run}" in capsys.readouterr().err


def test_what_cannot_be_expressed_is_refused(run, plain_recipe, tmp_path, capsys):
    small = tmp_path / "small"
    train_recipe(replace(plain_recipe, output=str(small)))
    assert main(["export", str(small), "--format", "open-clip", "--output", "x.pt"]) == 1
    assert "give a name without ending" in capsys.readouterr().err
    assert main(["export", str(run), "--format", "open-clip", "--output", "x.bin"]) == 1
    assert "must end in .safetensors or .pt" in capsys.readouterr().err
    resnet = build_model(Model(name="RN50"), seed=0)
    with pytest.raises(ValueError, match="cannot be written as a Hugging Face CLIPModel"):
        export_hugging_face(resnet, tmp_path / "hf")
