"""Hugging Face's dual encoders give what transformers gives, train, and are written back."""

import json
import pickle

import numpy as np
import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch.testing import assert_close

from drrho.encoding.encoder import EmbeddingModel
from drrho.models.build import Model, build_model, load_model, save_model
from drrho.models.hugging_face import import_transformers

transformers = import_transformers()

WORDS = ["<pad>", "<s>", "</s>", "a", "red", "blue", "circle", "square", "<unk>"]
TOWER = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
}
VISION = TOWER | {"image_size": 32, "patch_size": 16}
TEXT = TOWER | {"vocab_size": 9, "max_position_embeddings": 10}
TEXTS = ["a red circle", "blue square", "a a a a a a a a a a a a a a a"]


def tokenizer(*, pad, end="</s>"):
    words = Tokenizer(models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=words,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token=end,
        pad_token=pad,
        model_max_length=10,
    )


def clip(**text):
    return transformers.CLIPModel(
        transformers.CLIPConfig(
            text_config=TOWER
            | {"vocab_size": 9, "max_position_embeddings": 10, "eos_token_id": 2}
            | text,
            vision_config=TOWER | {"image_size": 32, "patch_size": 16},
            projection_dim=12,
        )
    )


def siglip():
    return transformers.SiglipModel(
        transformers.SiglipConfig(
            text_config=TOWER | {"vocab_size": 9, "max_position_embeddings": 10},
            vision_config=TOWER | {"image_size": 32, "patch_size": 16},
        )
    )


def dual(**_):
    """A text tower that looks both ways, so that its mask matters."""
    text = transformers.BertConfig(vocab_size=9, max_position_embeddings=10, **TOWER)
    vision = transformers.CLIPVisionConfig(image_size=32, patch_size=16, **TOWER)
    return transformers.VisionTextDualEncoderModel(
        transformers.VisionTextDualEncoderConfig.from_vision_text_configs(
            vision, text, projection_dim=12
        )
    )


def alt_clip():
    text = TOWER | {"vocab_size": 9, "max_position_embeddings": 12, "project_dim": 12}
    vision = TOWER | {"image_size": 32, "patch_size": 16}
    return transformers.AltCLIPModel(
        transformers.AltCLIPConfig(text_config=text, vision_config=vision, projection_dim=12)
    )


def chinese_clip():
    text = TOWER | {"vocab_size": 9, "max_position_embeddings": 10}
    vision = TOWER | {"image_size": 32, "patch_size": 16}
    return transformers.ChineseCLIPModel(
        transformers.ChineseCLIPConfig(text_config=text, vision_config=vision, projection_dim=12)
    )


def clipseg():
    return transformers.CLIPSegModel(
        transformers.CLIPSegConfig(
            text_config=TEXT | {"bos_token_id": 1, "eos_token_id": 2},
            vision_config=VISION,
            projection_dim=12,
        )
    )


def meta_clip():
    return transformers.MetaClip2Model(
        transformers.MetaClip2Config(
            text_config=TEXT | {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0},
            vision_config=VISION,
            projection_dim=12,
        )
    )


def aim():
    return transformers.Aimv2Model(
        transformers.Aimv2Config(
            text_config=TEXT | {"eos_token_id": 2}, vision_config=VISION, projection_dim=12
        )
    )


def group_vit():
    stages = {"depths": [1, 1, 1], "num_group_tokens": [8, 4, 0], "num_output_groups": [8, 4, 0]}
    vision = {"image_size": 32, "patch_size": 4, "num_hidden_layers": 3}
    return transformers.GroupViTModel(
        transformers.GroupViTConfig(
            text_config=TEXT | {"bos_token_id": 1, "eos_token_id": 2},
            vision_config=TOWER | vision | stages,
            projection_dim=12,
            projection_intermediate_dim=16,
        )
    )


KINDS = {
    "clip": (clip, "<pad>"),
    "clip filled up with its end": (clip, "</s>"),
    "siglip": (siglip, "<pad>"),
    "dual": (dual, "<pad>"),
    "dual filled up with a word": (dual, "a"),
    "dual filled up with its end": (dual, "</s>"),
    "alt clip": (alt_clip, "<pad>"),
    "chinese clip": (chinese_clip, "<pad>"),
    "clipseg": (clipseg, "<pad>"),
    "meta clip": (meta_clip, "<pad>"),
    "aim": (aim, "<pad>"),
    "group vit": (group_vit, "<pad>"),
}


@pytest.fixture(params=KINDS)
def folder(request, tmp_path):
    make, pad = KINDS[request.param]
    torch.manual_seed(0)
    make().save_pretrained(tmp_path)
    processor = transformers.CLIPImageProcessor(size=40, crop_size=32)
    processor.save_pretrained(tmp_path)
    tokenizer(pad=pad).save_pretrained(tmp_path)
    return tmp_path


def picture():
    pixels = np.random.default_rng(0).integers(0, 256, (50, 60, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def features(found):
    return found if isinstance(found, torch.Tensor) else found.pooler_output


def test_embeddings_are_those_of_transformers(folder):
    model = build_model(Model(name=f"transformers:{folder}"), seed=0)
    theirs = transformers.AutoModel.from_pretrained(folder).eval()
    processor = transformers.AutoImageProcessor.from_pretrained(folder)
    their_tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model.module.eval()
    images = torch.stack([model.eval_transform(picture())])
    pixels = processor(images=picture(), return_tensors="pt")["pixel_values"]
    assert_close(images, pixels)
    inputs = their_tokenizer(
        TEXTS, padding="max_length", truncation=True, max_length=10, return_tensors="pt"
    )
    mask = None if "Siglip" in type(theirs).__name__ else inputs["attention_mask"]
    with torch.no_grad():
        ours = model.module.encode_image(images), model.module.encode_text(model.tokenizer(TEXTS))
        expected = (
            theirs.get_image_features(pixel_values=pixels),
            theirs.get_text_features(input_ids=inputs["input_ids"], attention_mask=mask),
        )
    for one, other in zip(ours, map(features, expected), strict=True):
        assert_close(one, other)
    unit = model.module.encode_text(model.tokenizer(TEXTS), normalize=True).norm(dim=1)
    assert_close(unit, torch.ones(3))


@pytest.mark.parametrize("make", [clip, alt_clip, clipseg, meta_clip, aim, group_vit])
def test_cosines_are_those_that_the_model_itself_compares(make, tmp_path):
    torch.manual_seed(0)
    theirs = make().eval()
    theirs.save_pretrained(tmp_path)
    transformers.CLIPImageProcessor(size=40, crop_size=32).save_pretrained(tmp_path)
    tokenizer(pad="<pad>").save_pretrained(tmp_path)
    model = build_model(Model(name=f"transformers:{tmp_path}"), seed=0)
    model.module.eval()
    images, tokens = model.eval_transform(picture())[None], model.tokenizer(TEXTS)
    mask = (tokens != 0).long()
    with torch.no_grad():
        found = theirs(input_ids=tokens, pixel_values=images, attention_mask=mask)
        texts = model.module.encode_text(tokens, normalize=True)
        cosines = model.module.encode_image(images, normalize=True) @ texts.T
    scale = found.logits_per_image[0, 0] / cosines[0, 0]
    assert_close(found.logits_per_image, scale * cosines, rtol=1e-4, atol=1e-4)


def test_it_trains_and_is_written_as_transformers_reads_it(folder, tmp_path):
    model = build_model(Model(name=f"transformers:{folder}"), seed=0)
    trainable = [p for p in model.module.parameters() if p.requires_grad]
    assert all(p.ndim > 0 for p in trainable), "its temperature is not trained"
    model.module.encode_text(model.tokenizer(TEXTS)).sum().backward()
    torch.optim.SGD(trainable, lr=0.1).step()
    save_model(model, tmp_path / "out")
    again = load_model(tmp_path / "out")
    for one, other in zip(
        again.module.state_dict().values(), model.module.state_dict().values(), strict=True
    ):
        assert torch.equal(one, other)
    assert torch.equal(again.tokenizer(TEXTS), model.tokenizer(TEXTS))
    assert again.identity["eval_transform"] == model.identity["eval_transform"]
    theirs = transformers.AutoModel.from_pretrained(tmp_path / "out")
    assert_close(
        features(theirs.get_image_features(pixel_values=torch.ones(1, 3, 32, 32))),
        again.module.encode_image(torch.ones(1, 3, 32, 32)),
    )


def test_workers_can_have_its_transform_and_tokenizer(folder):
    model = build_model(Model(name=f"transformers:{folder}"), seed=0)
    transform, tokens = pickle.loads(pickle.dumps((model.eval_transform, model.tokenizer)))
    assert torch.equal(transform(picture()), model.eval_transform(picture()))
    assert torch.equal(tokens(TEXTS), model.tokenizer(TEXTS))


def test_quantised_weights_that_cannot_be_loaded_name_their_method(folder):
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "awq", "bits": 4}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"cannot be loaded.*quantised by awq: install"):
        build_model(Model(name=f"transformers:{folder}"), seed=0)


@pytest.mark.parametrize("bits", [4, 8])
def test_quantised_weights_embed_on_a_processor_about_as_the_whole_ones(tmp_path, bits):
    """In 4 or 8 bits by bitsandbytes, which has code for processors."""
    pytest.importorskip("bitsandbytes", reason="it quantises, and is no dependency of drrho")
    wide = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2}
    torch.manual_seed(0)
    config = transformers.CLIPConfig(
        text_config=TEXT | wide | {"eos_token_id": 2}, vision_config=VISION | wide
    )
    transformers.CLIPModel(config).save_pretrained(tmp_path / "whole")
    quantised = transformers.CLIPModel.from_pretrained(
        str(tmp_path / "whole"),
        quantization_config=transformers.BitsAndBytesConfig(
            load_in_4bit=bits == 4, load_in_8bit=bits == 8, bnb_4bit_compute_dtype=torch.float32
        ),
        device_map="cpu",
    )
    quantised.save_pretrained(tmp_path / "quantised")
    models = []
    for name in ("whole", "quantised"):
        transformers.CLIPImageProcessor(size=40, crop_size=32).save_pretrained(tmp_path / name)
        tokenizer(pad="<pad>").save_pretrained(tmp_path / name)
        model = build_model(Model(name=f"transformers:{tmp_path / name}"), seed=0)
        models.append(EmbeddingModel.frozen(model, device="cpu"))
    for whole, less in zip(
        *((model.encode_text(TEXTS), model.encode_image(picture())) for model in models),
        strict=True,
    ):
        cosines = (whole * less).sum(dim=1)
        assert (cosines > 0.95).all()
        assert not torch.allclose(whole, less, rtol=0, atol=1e-5), "nothing was quantised"


def test_a_siglip_of_images_of_any_shape_is_refused(tmp_path):
    """Its image tower takes patches, with their number in each direction (NaFlex)."""
    text = TOWER | {"vocab_size": 9, "max_position_embeddings": 8, "projection_size": 16}
    config = transformers.Siglip2Config(text_config=text, vision_config=TOWER | {"num_patches": 4})
    transformers.Siglip2Model(config).save_pretrained(tmp_path)
    transformers.CLIPImageProcessor(size=40, crop_size=32).save_pretrained(tmp_path)
    tokenizer(pad="<pad>").save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="is a Siglip2Model, which does not embed images of one"):
        build_model(Model(name=f"transformers:{tmp_path}"), seed=0)


def test_what_is_no_dual_encoder_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"it has no config\.json.*save_pretrained"):
        build_model(Model(name=f"transformers:{tmp_path}"), seed=0)
    transformers.BertModel(transformers.BertConfig(vocab_size=9, **TOWER)).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="cannot be loaded.*preprocessor_config"):
        build_model(Model(name=f"transformers:{tmp_path}"), seed=0)
    transformers.CLIPImageProcessor(size=40, crop_size=32).save_pretrained(tmp_path)
    tokenizer(pad="<pad>").save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="is a BertModel, which does not embed images"):
        build_model(Model(name=f"transformers:{tmp_path}"), seed=0)


def test_a_pickle_is_not_read(folder):
    weights = folder / "model.safetensors"
    torch.save({"weight": torch.ones(3)}, folder / "pytorch_model.bin")
    weights.unlink()
    with pytest.raises(ValueError, match="a .bin is a pickle, which is not read"):
        build_model(Model(name=f"transformers:{folder}"), seed=0)


def test_weights_of_one_tower_are_no_dual_encoder(folder):
    """transformers would draw the other tower, and only log that."""
    config = clip().config
    transformers.CLIPForImageClassification(config).save_pretrained(folder)
    with pytest.raises(ValueError, match=r"lack \d+ parameters of a CLIPModel.*another class"):
        build_model(Model(name=f"transformers:{folder}"), seed=0)


def test_a_tokenizer_that_cannot_fill_up_is_refused(folder):
    words = tokenizer(pad="<pad>")
    words.pad_token = None
    words.save_pretrained(folder)
    with pytest.raises(ValueError, match=r"no padding token; set the one"):
        build_model(Model(name=f"transformers:{folder}"), seed=0)


def test_half_precision_weights_are_computed_with_in_float32(tmp_path, folder):
    transformers.AutoModel.from_pretrained(folder).half().save_pretrained(folder)
    model = build_model(Model(name=f"transformers:{folder}"), seed=0)
    floating = [p for p in model.module.state_dict().values() if p.is_floating_point()]
    assert {p.dtype for p in floating} == {torch.float32}


def test_one_that_embeds_every_token_is_refused(tmp_path):
    text = TOWER | {"vocab_size": 9, "max_position_embeddings": 10}
    image = TOWER | {"image_size": 32, "patch_size": 16}
    config = transformers.FlavaConfig(text_config=text, image_config=image, projection_dim=12)
    transformers.FlavaModel(config).save_pretrained(tmp_path)
    transformers.CLIPImageProcessor(size=40, crop_size=32).save_pretrained(tmp_path)
    tokenizer(pad="<pad>").save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="is a FlavaModel, which does not embed"):
        build_model(Model(name=f"transformers:{tmp_path}"), seed=0)
