"""The recipe of `drrho steer` by the sizes and its file; its commands and sentences."""

import shlex
from pathlib import Path

import pytest
import tyro

from drrho.cli import COMMANDS
from drrho.data.index import IndexConfig
from drrho.data.splits import SplitConfig
from drrho.evaluation.evaluate import EvaluateConfig
from drrho.evaluation.metrics.interval import Interval
from drrho.recipe.arguments.recipe_text import write_recipe_text
from drrho.recipe.recipe import Recipe, load_recipe
from drrho.reference.build import PrecomputeConfig
from drrho.studies.report.write import ReportConfig
from drrho.studies.steer.choices import choose_recipe, plain_recipe
from drrho.studies.steer.commands import command_of
from drrho.studies.steer.config import SteerConfig, SteerFiles
from drrho.studies.steer.results import sentences_of

OWN = {"data": "photos", "reference": "run:runs/other", "device": "cpu"}


def chosen(num_pairs, *, parameters=7_000_000, **options):
    config = SteerConfig(**OWN | options)
    return choose_recipe(
        config, SteerFiles(Path(config.output)), num_pairs=num_pairs, parameters=parameters
    )


@pytest.mark.parametrize(
    ("num_pairs", "options", "batch", "passes", "rate"),
    [
        (450, {}, 64, 60, 1e-3),
        (9_000, {}, 256, 20, 1e-3),
        (36_000, {}, 256, 10, 1e-3),
        (10_000_000, {}, 256, 10, 1e-3),
        (10_000_000, {"model": "ViT-B-16", "parameters": 150_000_000}, 256, 10, 1e-4),
        (450, {"model": "ViT-B-32@laion2b"}, 64, 20, 1e-5),
        (36_000, {"model": "local-dir:tuned"}, 256, 5, 1e-5),
        (450, {"batch_size": 10, "epochs": 2.0}, 10, 2, 1e-3),
    ],
)
def test_the_recipe_follows_from_the_sizes(num_pairs, options, batch, passes, rate):
    recipe, notes = chosen(num_pairs, **options)
    assert recipe.loading.batch_size == batch
    assert recipe.training.steps == passes * (num_pairs // batch)
    assert recipe.training.optimizer.learning_rate == rate
    assert len(notes) == 5
    assert recipe.objective.temperature.initial == (0.01 if recipe.model.names_weights else 0.07)


def test_too_few_pairs_and_options_without_effect_are_errors():
    with pytest.raises(ValueError, match="7 training pairs are too few"):
        chosen(7)
    with pytest.raises(ValueError, match="batch_size = 8 has no effect on a recipe that is given"):
        SteerConfig(**OWN, recipe="mine.py", batch_size=8)
    with pytest.raises(ValueError, match="without pretrained has random weights"):
        SteerConfig(data="photos", reference="ViT-B-32")


@pytest.mark.parametrize("output", ["runs/steered", 'a "quoted" \\ folder, é'])
def test_the_file_of_a_recipe_is_the_recipe(tmp_path, output):
    recipe, notes = chosen(450, model="ViT-B-32@laion2b", output=output, workers=2, seed=3)
    for one in (recipe, plain_recipe(recipe, Path(output) / "plain")):
        path = tmp_path / "recipe.py"
        path.write_text(
            write_recipe_text(one, made_by="drrho steer", notes=notes, command="drrho"),
            encoding="utf-8",
        )
        assert load_recipe(path, Recipe) == one
    assert one.reference is None
    assert one.training == recipe.training


CONFIGS = {
    "index": IndexConfig(data="my photos", output="o.json", caption_column="", workers=2),
    "split": SplitConfig(data="a.json", output="t.json", held_out="v.json", seed=3),
    "reference precompute": PrecomputeConfig(
        data="a.json", model="ViT-B-32", pretrained="tag", output="r", trust=True
    ),
    "evaluate": EvaluateConfig(run="run:a b", data=("v.json", "w.json"), output="s.json"),
    "report": ReportConfig(runs=("a", "b"), output="r.html", galleries=False),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_a_command_is_its_configuration(name):
    words = shlex.split(command_of(name, CONFIGS[name]))
    assert name in COMMANDS
    given = words[1 + len(name.split()) :]
    assert tyro.cli(type(CONFIGS[name]), args=given) == CONFIGS[name]


def around(mean, width=0.02):
    return Interval(mean=mean, low=mean - width, high=mean + width)


def test_what_is_unwelcome_is_said():
    mrr = {"reference": around(0.03), "start": around(0.02), "target": around(0.03)}
    differences = {"reference": around(0.0), "start": around(-0.1)}
    said = " ".join(sentences_of(mrr, differences, guessing=0.02))
    assert "the reference is near guessing" in said
    assert "the target is near guessing" in said
    assert "below its own start: the difference of the MRR is -0.100" in said
    assert "cannot be told from the reference" in said
    assert "no plain run was made" in said
    mrr = {name: around(0.5) for name in ("reference", "start", "target", "plain")}
    for plain, words in ((0.1, "ahead of"), (-0.1, "behind"), (0.0, "not told apart from")):
        differences = {"reference": around(0.1), "start": around(0.1), "plain": around(plain)}
        said = " ".join(sentences_of(mrr, differences, guessing=0.02))
        assert f"the target is {words} a plain run of as many steps" in said
        assert "near guessing" not in said
        assert "no plain run" not in said
