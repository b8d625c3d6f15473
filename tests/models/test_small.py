"""The small model: trimming captions is exact, positions are seen, widths are checked."""

import json
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from PIL import Image
from torch.testing import assert_close

from drrho.cli import main
from drrho.models.build import Model, build_model
from drrho.models.export import export_open_clip
from drrho.models.open_clip import import_open_clip
from drrho.models.small import WIDEST, SmallConfig, SmallTwoTower, open_clip_form
from drrho.models.tuning import Tuning
from drrho.recipe.recipe import Evaluation
from drrho.recipe.train import train_recipe

NARROW = SmallConfig(embed_dim=8, image_width=2, text_width=8, text_heads=2, context_length=12)


@pytest.fixture
def model():
    return SmallTwoTower(NARROW, vocabulary_size=50).eval()


def test_padding_and_longer_captions_beside_it_do_not_change_an_embedding(model):
    short = torch.tensor([[48, 5, 6, 49, 0, 0, 0, 0, 0, 0, 0, 0]])
    long = torch.tensor([[48, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 49]])
    alone = model.encode_text(short)
    assert_close(model.encode_text(torch.cat([short, long]))[:1], alone, atol=1e-6, rtol=1e-5)
    assert_close(model.encode_text(short[:, :4]), alone, atol=1e-6, rtol=1e-5)
    assert not torch.allclose(model.encode_text(long), alone, atol=1e-3)


def test_the_order_of_words_matters(model):
    orders = torch.tensor([[48, 5, 6, 49], [48, 6, 5, 49]])
    first, second = model.encode_text(orders)
    assert not torch.allclose(first, second, atol=1e-4)


def test_the_place_of_things_matters(model):
    images = torch.zeros(2, 3, 64, 64)
    images[0, :, :16, :16] = 1
    images[1, :, -16:, -16:] = 1
    first, second = model.encode_image(images)
    assert not torch.allclose(first, second, atol=1e-4)


def test_normalize_gives_unit_length(model):
    images = torch.randn(3, 3, 64, 64)
    tokens = torch.tensor([[48, 5, 6, 49]])
    for embeddings in (
        model.encode_image(images, normalize=True),
        model.encode_text(tokens, normalize=True),
    ):
        assert_close(embeddings.norm(dim=-1), torch.ones(len(embeddings)))


@pytest.mark.parametrize("options", [{"image_width": 0}, {"text_width": 9, "text_heads": 2}])
def test_widths_are_checked(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        SmallConfig(**options)


@pytest.fixture
def wide(tmp_path):
    """A model with statistics and weights of its own, as training leaves it."""
    config = SmallConfig(embed_dim=8, image_width=3, text_width=8, text_heads=2, text_layers=2)
    model = build_model(Model("small", small=config), seed=0)
    for name, value in model.module.state_dict().items():
        if value.is_floating_point():
            value.copy_(torch.rand_like(value) * (1 if "var" in name else 0.5))
    return model


def test_open_clip_loads_what_is_exported_with_the_same_embeddings(wide, tmp_path):
    folder = tmp_path / "exported"
    export_open_clip(wide, folder)
    open_clip = import_open_clip()
    theirs, _, transform = open_clip.create_model_and_transforms(f"local-dir:{folder}")
    tokenizer = open_clip.get_tokenizer(f"local-dir:{folder}")
    picture = Image.effect_noise((90, 70), 50).convert("RGB")
    captions = ["a large red circle, at the top left", "two"]
    assert_close(transform(picture), wide.eval_transform(picture), rtol=0, atol=0)
    assert torch.equal(tokenizer(captions), wide.tokenizer(captions))
    images = torch.stack([transform(picture), torch.randn(3, 64, 64)])
    for module in (wide.module.eval(), theirs.eval()):
        module.requires_grad_(False)
    for ours, other in (
        (wide.module.encode_image(images), theirs.encode_image(images)),
        (wide.module.encode_text(tokenizer(captions)), theirs.encode_text(tokenizer(captions))),
    ):
        assert_close(other, ours, rtol=1e-4, atol=1e-5)
    loaded = build_model(Model(f"local-dir:{folder}"), seed=0).module.eval()
    assert torch.equal(loaded.encode_image(images), theirs.encode_image(images))


def test_a_run_of_the_small_model_is_exported_in_a_folder(plain_recipe, tmp_path, capsys):
    run = str(tmp_path / "run")
    train_recipe(replace(plain_recipe, output=run))
    arguments = ["export", run, "--format", "open-clip", "--output"]
    assert main([*arguments, str(tmp_path / "model")]) == 0
    assert "drrho.models.small.register()" in capsys.readouterr().out
    train_recipe(
        replace(
            plain_recipe,
            model=Model(f"local-dir:{tmp_path / 'model'}"),
            output=str(tmp_path / "next"),
            tuning=Tuning(lock_image=True),
        )
    )
    assert main([*arguments, str(tmp_path / "model.pt")]) == 1
    assert "is written as a folder" in capsys.readouterr().err


def test_another_program_loads_it_once_the_towers_are_registered(wide, tmp_path):
    export_open_clip(wide, tmp_path / "exported")
    program = (
        "from drrho.models.small import register; register(); register(); import open_clip; "
        f"print(len(open_clip.create_model_and_transforms('local-dir:{tmp_path / 'exported'}')))"
    )
    found = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert found.stdout.strip() == "3", found.stderr


@pytest.mark.parametrize(
    ("name", "form"),
    [("small", "open-clip"), ("small-vit", "open-clip"), ("small-vit", "hugging-face")],
)
def test_the_lines_of_an_exports_card_run_as_they_are_printed(plain_recipe, tmp_path, name, form):
    """A program that knows open_clip or transformers alone has the embeddings of the run."""
    pytest.importorskip("transformers")
    training = replace(plain_recipe.training, steps=2, evaluate_every=None)
    recipe = replace(plain_recipe, model=Model(name), training=training, evaluation=Evaluation())
    train_recipe(replace(recipe, output=str(tmp_path / "run")))
    arguments = ["export", str(tmp_path / "run"), "--format", form, "--output"]
    assert main([*arguments, str(tmp_path / "exported")]) == 0
    card = (tmp_path / "exported" / "README.md").read_text()
    lines = card.partition("```python\n")[2].partition("```")[0]
    assert ("drrho" in lines) == (name == "small")
    # PyPI's torchvision cannot be imported beside a torch for processors but with drrho's help.
    program = f"import drrho.integrations\n{lines}\n"
    if form == "open-clip":
        program += (
            "tokens = tokenizer(['a red circle'])\nfound = model.eval().encode_text(tokens)\n"
        )
    else:
        program += (
            "tokens = processor(text=['a red circle'], return_tensors='pt')\n"
            "found = model.text_projection(model.text_model(**tokens).pooler_output)\n"
        )
    program += "print(found.detach().flatten().tolist())"
    found = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert found.returncode == 0, found.stderr
    model = build_model(Model(f"run:{tmp_path / 'run'}"), seed=0)
    ours = model.module.eval().encode_text(model.tokenizer(["a red circle"]))
    theirs = torch.tensor(json.loads(found.stdout.splitlines()[-1]))
    assert_close(theirs, ours.detach().flatten(), rtol=1e-4, atol=1e-5)


def test_a_file_without_a_configuration_would_be_a_dead_end(tmp_path):
    model = build_model(Model("small-vit"), seed=0)
    with pytest.raises(ValueError, match="is written as a folder"):
        export_open_clip(model, tmp_path / "model.pt")


def test_a_tower_too_wide_to_be_registered_is_not_exported():
    config = SmallConfig(image_width=WIDEST + 1)
    with pytest.raises(ValueError, match="image_width = 257 cannot be written"):
        open_clip_form(config, {}, vocabulary_size=8)
