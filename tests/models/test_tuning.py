"""Locks are open_clip's, adapters merge exactly, and an option without effect is an error."""

import copy

import pytest
import torch
from tests.recipe.test_models import hugging_face, program
from tests.small_runs import TINY
from torch import nn
from torch.testing import assert_close

from drrho.models.build import Model, build_model
from drrho.models.layers import layers_of, sample_inputs
from drrho.models.lora import LoRA, merged_weights
from drrho.models.open_clip import import_open_clip
from drrho.models.tuning import Tuning, tune

open_clip = import_open_clip()
TEXT = {"context_length": 16, "vocab_size": 49408, "width": 8, "heads": 1, "layers": 2}
VISION = {"image_size": 64, "layers": 2, "width": 16, "patch_size": 32, "head_width": 8}
RESNET = VISION | {"layers": [1, 1, 1, 1], "width": 2, "head_width": 8}
TIMM = {"timm_model_name": "test_resnet", "timm_pool": "avg", "timm_proj": "linear"}
TOWERS = {"vit": VISION, "resnet": RESNET, "timm": TIMM | {"image_size": 64}}


@pytest.fixture(params=TOWERS)
def model(request, tmp_path_factory):
    return architecture(request.param, tmp_path_factory)


def architecture(name, tmp_path_factory):
    """A model of open_clip, built by its name."""
    patch, full = pytest.MonkeyPatch(), f"drrho-tuning-{name}"
    config = {"embed_dim": 8, "vision_cfg": TOWERS[name], "text_cfg": TEXT}
    patch.setitem(open_clip.factory._MODEL_CONFIGS, full, config)
    try:
        return build_model(Model(full), seed=0)
    finally:
        patch.undo()


def trained(module):
    return {name for name, p in module.named_parameters() if p.requires_grad}


def embedded(model, images):
    with torch.no_grad():
        return model.module.encode_image(images), model.module.encode_text(sample_inputs(model)[1])


@pytest.mark.parametrize("number", range(4))
@pytest.mark.parametrize("tower", ["image", "text"])
def test_locks_are_those_of_open_clip(model, tower, number):
    theirs = copy.deepcopy(model.module)
    option = "unlocked_groups" if tower == "image" else "unlocked_layers"
    try:
        getattr(theirs, f"lock_{tower}_tower")(**{option: number})
    except AssertionError:  # a tower that open_clip locks wholly or not at all
        with pytest.raises(ValueError, match="partial locking not currently supported"):
            tune(model, Tuning(lock_image=True, lock_image_unlocked_groups=number), seed=0)
        return
    tune(model, Tuning(**{f"lock_{tower}": True, f"lock_{tower}_{option}": number}), seed=0)
    assert trained(model.module) == trained(theirs) != trained(build_like(model))


def build_like(model):
    module = copy.deepcopy(model.module)
    return module.requires_grad_(True)


@pytest.mark.parametrize("tower", ["image", "text"])
def test_layers_are_the_groups_that_open_clip_unlocks(tmp_path_factory, tower):
    model = architecture("vit", tmp_path_factory)
    layers = layers_of(model).of(tower)
    assert len(layers) == 4, "embeddings, two blocks, projection"
    option = "unlocked_groups" if tower == "image" else "unlocked_layers"
    for number in range(len(layers) + 1):
        theirs = copy.deepcopy(model.module)
        getattr(theirs, f"lock_{tower}_tower")(**{option: number})
        own = {name for layer in layers for name in layer}
        unlocked = {name for layer in layers[len(layers) - number :] for name in layer}
        assert trained(theirs) & own == unlocked


@pytest.mark.parametrize("freeze", [None, True, False])
@pytest.mark.parametrize("name", ["resnet", "timm"])
def test_statistics_of_a_locked_tower_stay_as_with_open_clips_option(
    tmp_path_factory, name, freeze
):
    model = architecture(name, tmp_path_factory)
    theirs = copy.deepcopy(model.module)
    theirs.lock_image_tower(freeze_bn_stats=freeze is not False)
    tune(model, Tuning(lock_image=True, lock_image_freeze_bn_stats=freeze), seed=0)
    images = torch.randn(4, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    for module in (model.module, theirs):
        module.train()
        module.encode_image(images)
    assert_close(model.module.encode_image(images), theirs.encode_image(images), rtol=0, atol=0)
    buffers = {n: b for n, b in model.module.named_buffers() if "running" in n}
    others = dict(theirs.state_dict())
    assert all(torch.equal(value, others[name]) for name, value in buffers.items())


@pytest.mark.parametrize("name", ["vit", "resnet", "small", "hugging_face", "program"])
def test_layers_leave_the_model_as_it_was(name, tmp_path_factory):
    model = any_model(name, tmp_path_factory)
    before = copy.deepcopy(model.module)
    state = torch.get_rng_state()
    layers = layers_of(model)
    named = [name for tower in (layers.image, layers.text) for layer in tower for name in layer]
    assert len(set(named)) == len(named)
    assert torch.equal(state, torch.get_rng_state())
    assert all(p.grad is None for p in model.module.parameters())
    assert model.module.training == before.training
    for one, other in zip(
        model.module.state_dict().values(), before.state_dict().values(), strict=True
    ):
        assert torch.equal(one, other)


def any_model(name, tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    match name:
        case "small":
            return build_model(TINY, seed=0)
        case "hugging_face":
            return build_model(Model(hugging_face(folder)), seed=0)
        case "program":
            return build_model(Model(program(folder)), seed=0)
    return architecture(name, tmp_path_factory)


@pytest.mark.parametrize("name", ["small", "hugging_face"])
@pytest.mark.parametrize("tower", ["image", "text"])
def test_other_models_are_locked_layer_by_layer(name, tower, tmp_path_factory):
    model = any_model(name, tmp_path_factory)
    layers = layers_of(model).of(tower)
    before = trained(model.module)
    option = "unlocked_groups" if tower == "image" else "unlocked_layers"
    tune(model, Tuning(**{f"lock_{tower}": True, f"lock_{tower}_{option}": 1}), seed=0)
    assert before - trained(model.module) == {it for layer in layers[:-1] for it in layer}
    too_many = Tuning(**{f"lock_{tower}": True, f"lock_{tower}_{option}": len(layers)})
    with pytest.raises(ValueError, match=f"lock_{tower}_{option} = {len(layers)} leaves nothing"):
        tune(any_model(name, tmp_path_factory), too_many, seed=0)


def test_batch_norm_of_a_locked_small_tower_stays(tmp_path_factory):
    model = any_model("small", tmp_path_factory)
    tune(model, Tuning(lock_image=True, lock_image_unlocked_groups=1), seed=0)
    before = copy.deepcopy(model.module.state_dict())
    model.module.train()
    model.module.encode_image(torch.randn(4, 3, 64, 64))
    for name, value in model.module.state_dict().items():
        assert torch.equal(value, before[name]), name


@pytest.mark.parametrize(
    ("name", "config", "message"),
    [
        ("vit", {"lock_image": True, "lock_image_freeze_bn_stats": True}, "no BatchNorm"),
        ("vit", {"lock_image": True, "lock_image_unlocked_groups": 4}, "locks nothing"),
        ("vit", {"lock_image": True, "lock_image_unlocked_groups": 9}, "locks nothing"),
        ("vit", {"lock_text": True, "lock_text_unlocked_layers": 9}, "locks nothing"),
        ("vit", {"lock_text": True, "lock_text_freeze_layer_norm": False}, "has no LayerNorm"),
        ("vit", {"lock_text": True, "lock_image": True}, "nothing of the model would be trained"),
        ("program", {"lock_image": True, "lock_image_unlocked_groups": 1}, "has 1 layer"),
        ("vit", {"lora": LoRA(targets=("nothing",))}, "is called 'nothing'"),
        ("vit", {"lora": LoRA(rank=10**9)}, "the rank of the widest layer"),
        ("vit", {"lora": LoRA(dropout=0.1)}, "lora.dropout = 0.1 does not fit"),
        ("vit", {"lora": LoRA(rank=10**9)}, r"lora.rank = 1,000,000,000 is above \d+, the rank"),
        ("vit", {"lora": LoRA(targets=("out_proj",))}, "is called 'out_proj'"),
    ],
)
def test_an_option_without_effect_on_a_model_is_an_error(name, config, message, tmp_path_factory):
    with pytest.raises(ValueError, match=message):
        tune(any_model(name, tmp_path_factory), Tuning(**config), seed=0)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("lock_image_unlocked_groups", 1),
        ("lock_image_freeze_bn_stats", True),
        ("lock_text_unlocked_layers", 1),
        ("lock_text_freeze_layer_norm", True),
    ],
)
def test_an_option_of_a_lock_needs_the_lock(option, value):
    with pytest.raises(ValueError, match=f"tuning.{option} = {value} has no effect without"):
        Tuning(**{option: value})


@pytest.mark.parametrize(
    "options", [{"rank": 0}, {"alpha": 0.0}, {"dropout": 1.0}, {"dropout": -0.1}]
)
def test_settings_of_adapters_are_checked(options):
    with pytest.raises(ValueError, match=f"lora.{next(iter(options))}"):
        LoRA(**options)


@pytest.mark.parametrize("name", ["vit", "resnet", "small", "hugging_face"])
def test_adapters_merge_into_the_model_without_them(name, tmp_path_factory):
    plain = any_model(name, tmp_path_factory)
    model = any_model(name, tmp_path_factory)
    model.module.load_state_dict(plain.module.state_dict())
    tune(model, Tuning(lora=LoRA(rank=2, alpha=8.0)), seed=0)
    images = torch.randn(2, 3, *sample_inputs(plain)[0].shape[2:])
    for either in (plain, model):
        either.module.eval()
    for one, other in zip(embedded(model, images), embedded(plain, images), strict=True):
        assert_close(one, other, rtol=1e-5, atol=1e-5)  # B begins at zero
    assert trained(model.module) == {n for n in trained(model.module) if ".lora_" in n} != set()
    for parameter_name, parameter in model.module.named_parameters():
        if ".lora_B" in parameter_name:
            nn.init.normal_(parameter)
    adapted = embedded(model, images)
    weights = merged_weights(model.module, model.module.state_dict())
    assert weights.keys() == plain.module.state_dict().keys()
    before = embedded(plain, images)
    plain.module.load_state_dict(weights)
    for one, other in zip(adapted, embedded(plain, images), strict=True):
        assert_close(one, other, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(adapted[1], before[1], atol=1e-2)


def test_every_adapter_has_a_gradient_and_the_base_none(tmp_path_factory):
    model = any_model("vit", tmp_path_factory)
    before = copy.deepcopy(model.module.state_dict())
    tune(model, Tuning(lora=LoRA(rank=2)), seed=0)
    images, tokens = sample_inputs(model)
    for _ in range(2):
        sum(
            it.sum() for it in (model.module.encode_image(images), model.module.encode_text(tokens))
        ).backward()
    assert all((p.grad is not None) == (".lora_" in n) for n, p in model.module.named_parameters())
    after = model.module.state_dict()
    after = {n.replace("base_layer.", ""): value for n, value in after.items()}
    assert all(torch.equal(value, after[name]) for name, value in before.items())


def test_only_named_layers_of_the_trained_tower_get_adapters(tmp_path_factory):
    model = any_model("vit", tmp_path_factory)
    tune(model, Tuning(lock_image=True, lora=LoRA(targets=("c_fc",))), seed=0)
    names = {name.partition(".lora_")[0] for name in trained(model.module)}
    assert names == {f"transformer.resblocks.{n}.mlp.c_fc" for n in range(2)}
