"""Live references: a model that embeds in training steers as its stored embeddings do."""

import importlib
import json
import pickle
import shutil
from dataclasses import replace

import pytest
import torch
from PIL import Image
from tests.processes import by_torchrun, finish, start_drrho
from torch.testing import assert_close

from drrho.contrastive.objectives.clip import CLIP
from drrho.contrastive.objectives.distillation import Distillation
from drrho.data.caching.transforms import behind_augmentation, split_transform
from drrho.data.loading import Loading
from drrho.data.views import Views
from drrho.models.build import Model, build_model
from drrho.models.open_clip import import_open_clip
from drrho.recipe.arguments.command import recipe_of
from drrho.recipe.document import read_run_results
from drrho.recipe.filtering import Filtering
from drrho.recipe.folder import read_run
from drrho.recipe.plan import plan_run
from drrho.recipe.recipe import Evaluation, Recipe
from drrho.recipe.selection import Selection
from drrho.recipe.train import train_recipe
from drrho.reference.build import PrecomputeConfig, precompute_reference
from drrho.reference.live import Live, model_named
from drrho.runtime.torchvision import import_torchvision
from drrho.training.checkpoint import list_checkpoints
from drrho.training.log import read_metrics

import_torchvision()
transforms = importlib.import_module("torchvision.transforms")
TINY_CLIP = {
    "embed_dim": 8,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 16, "patch_size": 16, "head_width": 8},
    "text_cfg": {"context_length": 32, "vocab_size": 49408, "width": 8, "heads": 1, "layers": 1},
}


def compared(run):
    """What must not depend on where the embeddings come from, nor on interruptions."""
    rows = [
        {k: v for k, v in row.items() if k not in ("seconds", "live_pairs") and "time/" not in k}
        for row in read_metrics(run)
    ]
    return rows, (run / "model" / "open_clip_model.safetensors").read_bytes()


@pytest.fixture(scope="module")
def name(reference):
    return f"live:run:{reference.parent / 'run'}"


@pytest.fixture(scope="module")
def live_recipe(steered_recipe, name):
    return replace(steered_recipe, reference=name)


@pytest.fixture(scope="module")
def augmented(live_recipe, tmp_path_factory):
    """The recipe with a target whose training transform draws crops."""
    folder = tmp_path_factory.mktemp("transformer")
    open_clip = import_open_clip()
    torch.manual_seed(0)
    torch.save(open_clip.CLIP(**TINY_CLIP).state_dict(), folder / "open_clip_pytorch_model.bin")
    config = {"model_cfg": TINY_CLIP, "preprocess_cfg": {"size": 32}}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    model = Model(name=f"local-dir:{folder}")
    return replace(live_recipe, model=model, live=Live(images="target"))


def stored_and_live(recipe, store, name, folder, **live):
    train_recipe(replace(recipe, **store, output=str(folder / "stored")))
    train_recipe(replace(recipe, **name, **live, output=str(folder / "live")))
    return compared(folder / "stored"), compared(folder / "live")


@pytest.mark.parametrize("batch_size", [3, 256])
def test_it_steers_as_what_is_stored_of_it_to_the_bits(
    steered_recipe, reference, name, tmp_path, batch_size
):
    store, live = {"reference": str(reference)}, {"reference": name}
    stored, computed = stored_and_live(
        steered_recipe, store, live, tmp_path, live=Live(batch_size=batch_size)
    )
    assert stored == computed
    rows = read_metrics(tmp_path / "live")
    assert all(row["live_pairs"] == 8 and row["time/live_models"] > 0 for row in rows)
    assert all(0 < row["time/live_models_share"] < 1 for row in rows[1:])
    results = read_run_results(tmp_path / "live")
    assert results.live.pairs == 48
    assert results.live.seconds == pytest.approx(sum(r["time/live_models"] for r in rows))
    assert results.live.seconds < results.seconds
    assert read_run_results(tmp_path / "stored").live is None


def test_it_selects_and_teaches_as_what_is_stored_of_it(plain_recipe, reference, name, tmp_path):
    """The reference embeds the super-batch, and as a teacher nothing twice."""
    selection = Selection(batch_size=4, num_chunks=2, reference_temperature=0.1)
    store = {"reference": str(reference), "teachers": (str(reference),)}
    objective = Distillation(teacher_temperatures=(0.1,))
    recipe = replace(plain_recipe, objective=objective, selection=selection, **store)
    stored, computed = stored_and_live(
        recipe, store, {"reference": name, "teachers": (name,)}, tmp_path
    )
    assert stored == computed
    assert {row["live_pairs"] for row in read_metrics(tmp_path / "live")} == {8.0}
    assert read_run_results(tmp_path / "live").live.pairs == 48
    # A teacher alone embeds what was selected.
    alone = replace(recipe, reference=str(reference), teachers=(name,))
    train_recipe(replace(alone, output=str(tmp_path / "teacher")))
    assert compared(tmp_path / "teacher") == stored
    assert {row["live_pairs"] for row in read_metrics(tmp_path / "teacher")} == {4.0}


def test_of_views_it_steers_as_what_is_stored_of_them(steered_recipe, name, tmp_path):
    views = Views(count=2, scale=(0.5, 1.0))
    stored = str(tmp_path / "views")
    precompute_reference(
        PrecomputeConfig(
            data=steered_recipe.data,
            model=name.removeprefix("live:"),
            output=stored,
            views=2,
            views_scale=(0.5, 1.0),
            device="cpu",
        )
    )
    recipe = replace(steered_recipe, loading=replace(steered_recipe.loading, views=views))
    one, other = stored_and_live(recipe, {"reference": stored}, {"reference": name}, tmp_path)
    assert one == other


def test_both_models_get_the_same_crop():
    """Behind the target's augmentation a model that only makes a tensor has the target's pixels."""
    pixels = torch.randint(0, 256, (50, 70, 3), dtype=torch.uint8).numpy()
    image = Image.fromarray(pixels)
    mean = (0.5, 0.4, 0.3)
    target = transforms.Compose(
        [
            transforms.RandomResizedCrop(24, scale=(0.3, 1.0)),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize(mean, (1.0, 1.0, 1.0)),
        ]
    )
    own = behind_augmentation(transforms.Compose([transforms.ToTensor()]), target)
    assert split_transform(own).draws
    torch.manual_seed(3)
    seen_by_target = target(image) + torch.tensor(mean).view(3, 1, 1)
    torch.manual_seed(3)
    assert_close(own(image), seen_by_target, rtol=0, atol=1e-6)
    with pytest.raises(ValueError, match="cannot be taken out of it"):
        behind_augmentation(target, transforms.ToTensor())


def test_it_embeds_the_targets_augmented_images_on_request(augmented, tmp_path):
    for images in ("own", "target"):
        recipe = replace(augmented, output=str(tmp_path / images), live=Live(images=images))
        loading = replace(recipe.loading, resize="torch")  # of the target's crops
        train_recipe(replace(recipe, loading=loading))
    own, target = (read_metrics(tmp_path / images)[0] for images in ("own", "target"))
    assert own["loss_variance"] == target["loss_variance"], "the target's crops are the same"
    assert own["loss"] != target["loss"]


def test_killed_and_continued_is_uninterrupted(augmented, tmp_path):
    recipe = replace(augmented, training=replace(augmented.training, keep_checkpoints=9))
    recipe = replace(recipe, loading=replace(recipe.loading, captions="random", workers=1))
    train_recipe(replace(recipe, output=str(tmp_path / "whole")))
    cut = replace(recipe, output=str(tmp_path / "cut"))
    train_recipe(cut)
    (tmp_path / "cut" / "results.json").unlink()
    for checkpoint in list_checkpoints(tmp_path / "cut" / "checkpoints")[1:]:
        shutil.rmtree(checkpoint)
    train_recipe(cut)
    assert compared(tmp_path / "cut") == compared(tmp_path / "whole")
    with pytest.raises(ValueError, match="contents.reference.live: target before, own now"):
        train_recipe(replace(cut, live=Live(images="own")))


def test_two_processes_train_what_one_trains(augmented, tmp_path):
    train_recipe(replace(augmented, output=str(tmp_path / "one")))
    recipe = replace(augmented, output=str(tmp_path / "two"))
    (tmp_path / "recipe.py").write_text(
        f"import pickle; recipe = pickle.loads({pickle.dumps(recipe)})"
    )
    statuses, outputs, errors = finish(
        start_drrho(["train", str(tmp_path / "recipe.py")], by_torchrun(2))
    )
    assert statuses == [0, 0], errors
    assert "live models: 48 pairs embedded in" in outputs[0]
    for ours, theirs in zip(*(read_metrics(tmp_path / n) for n in ("two", "one")), strict=True):
        assert_close(ours["loss"], theirs["loss"], rtol=1e-4, atol=1e-5)
        assert (ours["live_pairs"], theirs["live_pairs"]) == (4, 8)


def test_the_command_line_names_it_and_the_plan_says_what_it_is(live_recipe, name, tmp_path):
    options = ["--reference", name, "--live.images", "target", "--live.precision", "bfloat16"]
    recipe = recipe_of("drrho_clip", [*options, "--data", "data", "--output", "runs/x"])
    assert (recipe.reference, recipe.live) == (name, Live(images="target", precision="bfloat16"))
    plan = plan_run(replace(live_recipe, output=str(tmp_path / "run")))
    assert f"reference    {name}: 8 dimensions, computed for every batch in float32 on" in plan
    assert "trained on all of the 2 shards" in plan or "trained on 2 of the 2 shards" in plan
    with pytest.raises(ValueError, match="random weights"):
        model_named("live:ViT-B-32")
    assert model_named("live:ViT-B-32@openai") == Model("ViT-B-32", pretrained="openai")


def test_a_run_without_a_store_says_so_to_those_who_read_it(live_recipe, tmp_path):
    train_recipe(replace(live_recipe, output=str(tmp_path)))
    run = read_run(tmp_path)
    with pytest.raises(ValueError, match="steered by a live model, of which nothing is stored"):
        run.open_reference(run.open_data())


def test_embeddings_that_are_not_finite_are_an_error(live_recipe, reference, tmp_path):
    (tmp_path / "nan.py").write_text(
        "import torch\n"
        "from drrho.models.build import Model, build_model\n"
        "def build():\n"
        f"    model = build_model(Model('run:{reference.parent / 'run'}'), seed=0)\n"
        "    next(model.module.parameters()).data.fill_(torch.nan)\n"
        "    return model\n"
    )
    recipe = replace(live_recipe, reference=f"live:python:{tmp_path / 'nan.py'}")
    with pytest.raises(ValueError, match="gives embeddings that are not finite"):
        train_recipe(replace(recipe, output=str(tmp_path / "run")))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"reference": ("live:a", "b")}, "several references steer as one only from stored"),
        ({"missing_reference": "plain"}, "no effect on a live reference"),
        ({"filtering": Filtering(kept_fraction=0.5)}, "similarities of all pairs before the first"),
        (
            {"filtering": Filtering(kept_fraction=0.5, reference="live:a")},
            "similarities of all pairs before the first",
        ),
        (
            {"live": Live(images="target"), "loading": Loading(views=Views(count=2))},
            "no effect beside loading.views",
        ),
        (
            {"live": Live(images="target"), "loading": Loading(draft=True)},
            "does not fit loading.draft",
        ),
        (
            {"evaluation": Evaluation(data="x", references=("live:a",))},
            "must be a folder of stored embeddings of the validation set",
        ),
        (
            {"reference": None, "objective": CLIP(), "live": Live(images="target")},
            "neither reference nor teachers name a model",
        ),
        ({"reference": "stored", "live": Live(precision="bfloat16")}, "has no effect: neither"),
    ],
)
def test_what_makes_no_sense_is_refused(live_recipe: Recipe, changes, message):
    with pytest.raises(ValueError, match=message):
        replace(live_recipe, **changes)


def test_a_target_without_known_steps_has_no_augmented_image(live_recipe, tmp_path):
    (tmp_path / "own.py").write_text(
        "from dataclasses import replace\n"
        "from drrho.models.build import Model, build_model\n"
        "def build():\n"
        "    model = build_model(Model('small'), seed=0)\n"
        "    inner = model.train_transform\n"
        "    return replace(model, train_transform=lambda image: inner(image))\n"
    )
    recipe = replace(
        live_recipe, model=Model(f"python:{tmp_path / 'own.py'}"), live=Live(images="target")
    )
    with pytest.raises(ValueError, match=r"live\.images = 'target': .* use 'own'"):
        train_recipe(replace(recipe, output=str(tmp_path / "run")))
    assert build_model(recipe.model, seed=0).identity["architecture"]
