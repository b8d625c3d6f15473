"""Towers by name: their features are those of their own libraries, and what they read is plain."""

import json
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from tests.models.test_hugging_face import TEXT, TEXTS, VISION, clip, picture, tokenizer

from drrho.models.build import Model, build_model
from drrho.models.hugging_face import import_transformers
from drrho.models.towers.files import load_tower, save_tower
from drrho.models.towers.sentence_transformers import (
    build_sentence_tower,
    build_sentence_two_tower,
    import_sentence_transformers,
)
from drrho.models.towers.sources import build_tower
from drrho.models.towers.vision import VisionConfig, VisionTransform
from drrho.runtime.records import read_record
from drrho.runtime.torchvision import import_torchvision

transformers = import_transformers()


def saved_again(tower, side, folder) -> Any:
    save_tower(tower, folder, tower.module.state_dict())
    again = load_tower(folder, side)
    again.module.eval()
    return again


def test_a_model_of_timm_gives_its_features_and_is_saved(tmp_path):
    import_torchvision()
    timm: Any = pytest.importorskip("timm")
    torch.manual_seed(0)
    theirs = timm.create_model("resnet10t", pretrained=False).eval()
    save_file(theirs.state_dict(), tmp_path / "weights.safetensors")
    source = f"timm:resnet10t@{tmp_path / 'weights.safetensors'}"
    tower: Any = build_tower(source, "image", image_size=32)
    pixels = tower.transform(picture())[None]
    assert pixels.shape == (1, 3, 32, 32)
    with torch.no_grad():
        expected = theirs.forward_head(theirs.forward_features(pixels), pre_logits=True)
        torch.testing.assert_close(tower.module(pixels), expected)
        again = saved_again(tower, "image", tmp_path / "saved")
        torch.testing.assert_close(again.module(pixels), expected)
    assert again.identity == tower.identity
    assert torch.equal(again.transform(picture()), tower.transform(picture()))


def test_weights_of_another_architecture_are_refused(tmp_path):
    save_file({"conv1.weight": torch.ones(3)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match=r"does not fit it|lacks \d+ of its tensors"):
        build_tower(f"timm:resnet10t@{tmp_path / 'other.safetensors'}", "image")


@pytest.mark.parametrize("size", [0, 5000])
def test_a_transform_has_a_size_that_can_be(size, tmp_path):
    fine = VisionTransform(
        size=32, resize=36, interpolation="bicubic", mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)
    )
    with pytest.raises(ValueError, match="size must be 1 to 4096 pixels"):
        VisionTransform(**vars(fine) | {"size": size})
    content = {"format": 1, "library": "timm", "architecture": "resnet10t"}
    (tmp_path / "vision.json").write_text(
        json.dumps(content | {"transform": {**vars(fine), "size": size}})
    )
    with pytest.raises(ValueError, match="size must be 1 to 4096 pixels"):
        read_record(tmp_path / "vision.json", VisionConfig)


def test_a_text_model_of_transformers_is_the_mean_of_its_tokens(tmp_path):
    torch.manual_seed(0)
    theirs: Any = transformers.BertModel(transformers.BertConfig(**TEXT)).eval()
    theirs.save_pretrained(tmp_path)
    tokenizer(pad="<pad>").save_pretrained(tmp_path)
    tower: Any = build_tower(f"transformers:{tmp_path}", "text")
    tokens = tower.tokenizer(TEXTS)
    mask = (tokens != 0).long()
    with torch.no_grad():
        hidden = theirs(input_ids=tokens, attention_mask=mask).last_hidden_state
        expected = (hidden * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
        torch.testing.assert_close(tower.module(tokens), expected)
        again = saved_again(tower, "text", tmp_path / "saved")
        torch.testing.assert_close(again.module(tokens), expected)


def test_a_vision_model_of_transformers_gives_its_pooled_output(tmp_path):
    torch.manual_seed(0)
    theirs: Any = transformers.ViTModel(transformers.ViTConfig(**VISION)).eval()
    theirs.save_pretrained(tmp_path)
    transformers.CLIPImageProcessor(size=40, crop_size=32).save_pretrained(tmp_path)
    tower: Any = build_tower(f"transformers:{tmp_path}", "image")
    pixels = tower.transform(picture())[None]
    with torch.no_grad():
        expected = theirs(pixel_values=pixels).pooler_output
        torch.testing.assert_close(tower.module(pixels), expected)
        again = saved_again(tower, "image", tmp_path / "saved")
        torch.testing.assert_close(again.module(pixels), expected)


@pytest.fixture
def sentence_model(tmp_path):
    pytest.importorskip("sentence_transformers")
    library = import_sentence_transformers()
    modules: Any = pytest.importorskip("sentence_transformers.sentence_transformer.modules")
    torch.manual_seed(0)
    plain = tmp_path / "plain"
    transformers.BertModel(transformers.BertConfig(**TEXT)).save_pretrained(plain)
    tokenizer(pad="<pad>").save_pretrained(plain)
    words = modules.Transformer(str(plain), max_seq_length=10)
    pooling = modules.Pooling(16)
    model = library.SentenceTransformer(modules=[words, pooling, modules.Normalize()], device="cpu")
    model.save_pretrained(str(tmp_path / "model"), create_model_card=False)
    return model, tmp_path / "model"


@pytest.mark.filterwarnings("ignore")
def test_a_sentence_model_gives_the_embeddings_of_its_library(sentence_model, tmp_path):
    theirs, folder = sentence_model
    tower: Any = build_tower(f"sentence-transformers:{folder}", "text")
    expected = theirs.encode(TEXTS, convert_to_tensor=True)
    with torch.no_grad():
        torch.testing.assert_close(tower.module(tower.tokenizer(TEXTS)), expected)
        again = saved_again(tower, "text", tmp_path / "saved")
        torch.testing.assert_close(again.module(again.tokenizer(TEXTS)), expected)
    assert again.identity == tower.identity


@pytest.mark.filterwarnings("ignore")
def test_a_sentence_model_of_images_and_texts_is_a_dual_encoder(tmp_path):
    pytest.importorskip("sentence_transformers")
    library = import_sentence_transformers()
    modules: Any = pytest.importorskip("sentence_transformers.sentence_transformer.modules")
    torch.manual_seed(0)
    plain = tmp_path / "plain"
    clip().save_pretrained(plain)
    images = transformers.CLIPImageProcessor(size=40, crop_size=32)
    transformers.CLIPProcessor(images, tokenizer(pad="<pad>")).save_pretrained(plain)
    theirs = library.SentenceTransformer(modules=[modules.Transformer(str(plain))], device="cpu")
    theirs.save_pretrained(str(tmp_path / "model"), create_model_card=False)
    source = f"sentence-transformers:{tmp_path / 'model'}"
    model: Any = build_model(Model(source), seed=0)
    model.module.eval()
    pixels, tokens = model.eval_transform(picture())[None], model.tokenizer(TEXTS)
    text: Any = build_tower(source, "text")
    with torch.no_grad():
        torch.testing.assert_close(
            model.module.encode_image(pixels), theirs.encode([picture()], convert_to_tensor=True)
        )
        expected = theirs.encode(TEXTS, convert_to_tensor=True)
        torch.testing.assert_close(model.module.encode_text(tokens), expected)
        torch.testing.assert_close(text.module(text.tokenizer(TEXTS)), expected)


def test_a_sentence_model_of_texts_alone_is_no_dual_encoder(sentence_model):
    with pytest.raises(ValueError, match="embeds texts, and cannot be given as the image tower"):
        build_tower(f"sentence-transformers:{sentence_model[1]}", "image")
    with pytest.raises(ValueError, match="embeds texts alone"):
        build_sentence_two_tower(sentence_model[1])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"type": "os.system"}, "has a part 'os.system'"),
        ({"type": "sentence_transformers.models.Evil"}, "has a part"),
        ({"path": "../elsewhere"}, "a part outside the folder"),
        ({"path": "/etc"}, "a part outside the folder"),
        ({"type": 3}, "no list of parts"),
    ],
)
def test_a_sentence_model_names_no_code_and_no_other_place(change, message, tmp_path):
    part = {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"}
    (tmp_path / "modules.json").write_text(json.dumps([part | change]))
    with pytest.raises(ValueError, match=message):
        build_sentence_tower(tmp_path)


def test_a_sentence_model_as_a_pickle_is_not_read(tmp_path):
    part = {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"}
    (tmp_path / "modules.json").write_text(json.dumps([part]))
    (tmp_path / "pytorch_model.bin").write_bytes(b"pickle")
    with pytest.raises(ValueError, match="weights as a pickle"):
        build_sentence_tower(tmp_path)
