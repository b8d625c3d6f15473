"""`drrho.load`: a trained model, or an exported one, embeds images and texts."""

import json

import pytest
import torch
from PIL import Image
from tests.small_runs import TINY

import drrho
from drrho.cli import main
from drrho.data.examples import evaluation_batches
from drrho.data.indexing import open_manifest
from drrho.encoding.encoder import EmbeddingModel
from drrho.encoding.shared import Encoder
from drrho.models.build import build_model, load_model, save_model
from drrho.models.open_clip import import_open_clip

open_clip = import_open_clip()
ARCHITECTURE = {
    "embed_dim": 8,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 16, "patch_size": 16, "head_width": 8},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 8, "heads": 1, "layers": 1},
}
TEXTS = ["a lemon", "two large red circles"]


@pytest.fixture(scope="module")
def run(reference):
    """The finished run of the reference."""
    return reference.parent / "run"


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Two files, one of them with transparency."""
    folder = tmp_path_factory.mktemp("images")
    Image.new("RGB", (80, 70), "teal").save(folder / "teal.png")
    Image.new("RGBA", (64, 90), (200, 30, 30, 100)).save(folder / "red.png")
    return [folder / "teal.png", folder / "red.png"]


def test_embeddings_are_those_of_the_trainer_bit_for_bit(run, plain_recipe):
    """Of the evaluation during training, on the same batches."""
    manifest = open_manifest(plain_recipe.evaluation.data)
    towers = load_model(run / "model")
    towers.module.eval()
    encoder = Encoder(model=EmbeddingModel(towers, device="cpu"), batch_size=5)
    encoded = encoder.images(manifest, name="test", parts=("caption",))
    captions = [several[0] for several in encoded.own_captions]
    model = drrho.load(run, device="cpu")
    batches = evaluation_batches(manifest, model.transform, batch_size=5)
    pixels = torch.cat([batch.images for batch in batches])
    assert torch.equal(model.encode_image(pixels, batch_size=5), encoded.embeddings)
    assert torch.equal(model.encode_text(captions, batch_size=5), encoder.texts(captions))
    lengths = encoded.embeddings.norm(dim=-1)
    assert torch.allclose(lengths, torch.ones(len(lengths)))


def test_paths_pictures_and_tensors_are_the_same_images(run, images):
    model = drrho.load(str(run), device="cpu")
    expected = model.encode_image(images)
    opened = [Image.open(path) for path in images]
    assert torch.equal(model.encode_image([str(path) for path in images]), expected)
    assert torch.equal(model.encode_image(opened), expected)
    rgb = [Image.open(images[0]), Image.new("RGB", (64, 90), (233, 166, 166))]
    tensors = [model.transform(image) for image in rgb]
    assert torch.equal(model.encode_image(tensors), model.encode_image(torch.stack(tensors)))
    assert torch.allclose(model.encode_image(tensors), expected, atol=1e-2), "white ground"
    alone = model.encode_image(images[0])
    assert alone.shape == (1, 8)
    assert alone.dtype == torch.float32
    assert not alone.requires_grad
    assert not model.module.training


def test_one_text_or_several(run):
    model = drrho.load(run, device="cpu")
    assert torch.allclose(model.encode_text(TEXTS)[:1], model.encode_text("a lemon"), atol=1e-6)
    assert "small" in repr(model)


def test_exported_models_embed_as_the_run_does(tmp_path, images):
    (tmp_path / "drrho-test-load.json").write_text(json.dumps(ARCHITECTURE))
    open_clip.add_model_config(tmp_path)
    run = tmp_path / "run"
    model = drrho.Model(name="drrho-test-load")
    save_model(build_model(model, seed=0), run / "model")
    ours = drrho.load(run, device="cpu")
    expected = ours.encode_image(images), ours.encode_text(TEXTS)

    weights, folder = tmp_path / "model.safetensors", tmp_path / "hf"
    for form, output in (("open-clip", weights), ("hugging-face", folder)):
        assert main(["export", str(run), "--format", form, "--output", str(output)]) == 0
    loaded = drrho.load("drrho-test-load", pretrained=str(weights), device="cpu")
    assert torch.equal(loaded.encode_image(images), expected[0])
    assert torch.equal(loaded.encode_text(TEXTS), expected[1])
    for name in (str(run / "model"), f"local-dir:{run / 'model'}", f"run:{run}"):
        assert torch.equal(drrho.load(name, device="cpu").encode_text(TEXTS), expected[1])
    theirs = drrho.load(folder, device="cpu")
    assert torch.allclose(theirs.encode_text(TEXTS), expected[1], atol=1e-5)
    assert torch.allclose(theirs.encode_image(images), expected[0], atol=1e-5)


def test_a_model_of_another_kind_in_a_folder_is_found(tmp_path):
    save_model(build_model(TINY, seed=0), tmp_path / "small")
    assert drrho.load(tmp_path / "small", device="cpu").encode_text(TEXTS).shape == (2, 8)


def test_what_cannot_be_loaded_is_said(tmp_path, run):
    with pytest.raises(FileNotFoundError, match="holds no model"):
        drrho.load(tmp_path)
    with pytest.raises(ValueError, match="random weights"):
        drrho.load("ViT-B-32")
    with pytest.raises(ValueError, match="pretrained has no effect beside a Model"):
        drrho.load(drrho.Model(name="ViT-B-32", pretrained="openai"), pretrained="openai")
    model = drrho.load(run, device="cpu")
    (tmp_path / "none.png").write_text("no picture")
    with pytest.raises(ValueError, match=r"none\.png: corrupt image"):
        model.encode_image(tmp_path / "none.png")
    with pytest.raises(ValueError, match="texts must be at least one"):
        model.encode_text([])
