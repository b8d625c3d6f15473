"""What a user types, what is printed, and what is said when something is wrong."""

import json
import os
import re
import subprocess
import sys
import tarfile
import warnings
from dataclasses import replace
from html import unescape
from pathlib import Path

import pytest
import torch
from PIL import Image
from tests.small_runs import draw_no_pictures

from drrho.cli import COMMANDS, main
from drrho.data.items import manifest_of_items
from drrho.recipe.arguments import command
from drrho.recipe.recipe import Recipe, load_recipe
from drrho.reference.losses.writer import LossWriter
from drrho.studies.compare.replicates import Replicates
from drrho.studies.compare.results import (
    Difference,
    MethodResults,
    ReferenceResults,
    Results,
    read_results,
)
from drrho.studies.compare.spec import Comparison
from drrho.studies.demo import MODEL, UNION, DemoConfig, conclusion, demo, demo_comparison

ROOT = Path(__file__).parents[2]
DATA = Path(os.environ.get("DRRHO_DATA", ROOT.parent / "shared" / "data"))

RECIPE = """
from drrho.contrastive.objectives.global_risk import DRRhoCLIP
from drrho.data.loading import Loading
from drrho.models.build import Model
from drrho.models.small import SmallConfig
from drrho.recipe.recipe import Recipe
from drrho.training.config import Training
from drrho.training.optimizer import Optimizer

recipe = Recipe(
    output="run", data="train.json", reference="reference",
    loading=Loading(batch_size=8),
    model=Model(name="small", small=SmallConfig(image_width=2, text_width=8, text_heads=1)),
    objective=DRRhoCLIP(),
    training=Training(steps=100, optimizer=Optimizer(learning_rate=1e-3)),
)
"""


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipe.py").write_text(RECIPE)
    (tmp_path / "broken.py").write_text("steps = 0\nrecipe = 1 / steps\n")
    return tmp_path


def test_the_commands_of_the_readme(workplace, reference, scenes, capsys):
    """scenes, index, reference precompute, train with an override, evaluate."""
    model = f"run:{reference.parent / 'run'}"
    assert main(["scenes", "data", "--scenes.num-samples", "24", "--scenes.seed", "3"]) == 0
    assert main(["index", "data", "--output", "train.json"]) == 0
    assert "24 samples in 1 shards, 0 unusable" in capsys.readouterr().out
    precompute = ["reference", "precompute", "--data", "train.json", "--model", model]
    assert main([*precompute, "--output", "reference"]) == 0
    assert "embeddings of 24 of 24 samples; 0 shards were there" in capsys.readouterr().out
    assert main([*precompute, "--output", "reference"]) == 0
    assert "1 shards were there already" in capsys.readouterr().out
    held_out = ["--evaluation.data", str(scenes / "test")]
    assert main(["train", "recipe.py", "--training.steps", "2", *held_out]) == 0
    printed = capsys.readouterr().out
    assert "16 samples" in printed
    assert "chance" in printed.splitlines()[0]
    assert main(["evaluate", "run", "--data", str(scenes / "test"), "--output", "out.json"]) == 0
    printed = capsys.readouterr().out
    assert "mrr" in printed
    assert "zero_shot/colour/top1" in printed
    assert 0 < json.loads((workplace / "out.json").read_text())["test"]["mrr"] <= 1


def test_what_a_recipe_selects_and_distils_can_be_overridden(workplace, reference, plain_recipe):
    text = Path("recipe.py").read_text()
    text += f"""
from dataclasses import replace
from drrho.contrastive.objectives.clip import CLIP
from drrho.contrastive.objectives.distillation import DistillationTerm
from drrho.recipe.selection import Selection
recipe = replace(
    recipe,
    reference={str(reference)!r},
    teachers=({str(reference)!r},),
    objective=CLIP(distillation=DistillationTerm(teacher_temperatures=(0.07,))),
    selection=Selection(batch_size=4, num_chunks=2, reference_temperature=0.07),
)
"""
    Path("jest.py").write_text(text)
    arguments = ["--training.steps", "2", "--output", "jest", "--data", plain_recipe.data]
    arguments += ["--selection.batch-size", "6", "--objective.distillation.weight", "0.5"]
    assert main(["train", "jest.py", *arguments]) == 0
    results = json.loads(Path("jest/results.json").read_text())
    assert results["samples_seen"] == 2 * 6
    assert results["recipe"]["objective"]["distillation"]["weight"] == 0.5


def test_stored_losses_are_summarised(workplace, capsys):
    manifest = manifest_of_items([b"a", b"b", b"c", b"d"], name="letters")
    with LossWriter.open("losses", manifest, reference="small", identity="small v1") as writer:
        writer.write(torch.arange(3), torch.tensor([1.0, 2.0, float("inf")]))
    assert main(["reference", "losses", "losses"]) == 0
    header, _, row = capsys.readouterr().out.strip().splitlines()
    found = dict(zip(cells(header), cells(row), strict=True))
    assert found["reference"] == "small"
    assert found["identity"] == "small v1"
    assert (found["samples"], found["missing"], found["not finite"]) == ("4", "1", "1")
    assert (found["mean"], found["standard deviation"]) == ("1.5000", "0.5000")
    with LossWriter.open("losses", manifest, reference="large", identity="large v1") as writer:
        writer.write(torch.arange(4), torch.tensor([5.0, 3.0, 0.0, 0.0]))
    assert main(["reference", "losses", "losses"]) == 0
    last = capsys.readouterr().out.strip().splitlines()[-1]
    assert cells(last) == ["large and small", "2", "-1.0000"]


def cells(line):
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_evaluation_reads_the_layout_of_clip_benchmark(workplace, reference, scenes, capsys):
    folder = workplace / "shapes"
    (folder / "test").mkdir(parents=True)
    (folder / "classnames.txt").write_text("circle\nsquare\n")
    (folder / "zeroshot_classification_templates.txt").write_text("a {c}\n")
    image = workplace / "000.jpg"
    Image.new("RGB", (64, 64), "red").save(image)
    (workplace / "000.cls").write_text("1")
    with tarfile.open(folder / "test" / "0.tar", "w") as tar:
        for member in ("000.jpg", "000.cls"):
            tar.add(workplace / member, arcname=member)
    run = str(reference.parent / "run")
    assert main(["evaluate", run, "--data", str(folder)]) == 0
    assert "zero_shot/shapes/top1" in capsys.readouterr().out


@pytest.mark.skipif(not (DATA / "classification").is_dir(), reason=f"no data sets at {DATA}")
def test_evaluation_on_a_real_classification_set(reference, capsys):
    run = str(reference.parent / "run")
    assert main(["evaluate", run, "--data", str(DATA / "classification" / "eurosat")]) == 0
    assert "zero_shot/eurosat/mean_per_class_recall" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "recipies.py"], "near it: ['recipe.py']"),
        (["train", "recipe.py"], "manifest train.json does not exist; run `drrho index`"),
        (["compare", "recipe.py"], "that is for `drrho train`"),
        (
            ["train", "recipies"],
            "neither a Python file nor a published recipe. `drrho recipes`",
        ),
        (
            ["index", "nowhere"],
            "found at nowhere, which does not exist; expected",
        ),
        (["evaluate", "run", "--data", "x"], "'run' is no folder of a run"),
        (["evaluate", "ViT-B-99", "--pretrained", "x", "--data", "x"], "nor an architecture"),
        (["train", "broken.py"], "recipe broken.py, line 2: ZeroDivisionError"),
        (["train", "recipe.py", "--loading.batch-size", "1"], "at least 2"),
        (
            ["reference", "precompute", "--data", "x", "--model", "ViT-B-32", "--output", "y"],
            "random weights",
        ),
        (["train", "recipe.py", "--model.name", "ViT-B-99"], "model.small has no effect"),
        (["train", "recipe.py", "--reference", "None"], "needs a reference"),
        (["train", "recipe.py", "--selection.batch-size", "4"], "recipe.py has selection = None"),
        (["train", "recipe.py", "--loading.views.count=4"], "recipe.py has loading.views = None"),
        (["reference", "losses", "nowhere"], "nowhere holds no losses"),
        (["reference", "imports"], "is no command; did you mean 'reference import'?"),
        (
            ["evaluate", "x", "--data", "y", "--output", "."],
            "output = '.' is a folder; name a file",
        ),
        (["report", "run", "-o", "."], "output = '.' is a folder; name a file"),
        (["scaling"], "'scaling' is no command; there are scaling fit Fit error against"),
    ],
)
def test_errors_name_the_thing_and_the_remedy(workplace, capsys, arguments, message):
    try:
        status = main(arguments)
    except SystemExit as stop:  # tyro reports what it could not build, and exits
        status = stop.code
    printed = capsys.readouterr()
    assert status != 0
    flat = " ".join((printed.err + printed.out).replace("│", " ").split())
    assert message in flat
    assert "Traceback" not in flat


def test_the_traceback_of_an_error_is_shown_where_it_is_asked_for(monkeypatch, capsys):
    monkeypatch.setenv("DRRHO_TRACEBACK", "1")
    assert main(["reference", "losses", "nowhere"]) == 1
    printed = capsys.readouterr().err
    assert printed.startswith("Traceback")
    assert printed.splitlines()[-1].startswith("drrho: error: nowhere holds no losses")


def test_what_is_not_installed_is_named_with_its_remedy(monkeypatch):
    monkeypatch.setitem(sys.modules, "tyro", None)
    with pytest.raises(SystemExit, match=r"needs: pip install .*\[clip,report\]"):
        main(["index", "data"])
    assert main(["--help"]) == 0


def test_of_several_processes_the_first_prints(monkeypatch, capsys):
    launched = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1"}
    for name, value in (launched | {"MASTER_ADDR": "localhost", "MASTER_PORT": "1"}).items():
        monkeypatch.setenv(name, value)
    assert main(["recipes"]) == 0
    assert capsys.readouterr().out == ""
    monkeypatch.setenv("RANK", "0")
    assert main(["recipes"]) == 0
    assert "drrho_clip" in capsys.readouterr().out


def test_a_warning_is_one_line(monkeypatch, capsys):
    monkeypatch.setattr(warnings, "formatwarning", warnings.formatwarning)  # restored afterwards
    main(["--help"])
    assert warnings.formatwarning("123 passes", UserWarning, "x.py", 7) == (
        "drrho: warning: 123 passes\n"
    )


def test_unknown_commands_and_help(workplace, capsys):
    assert main(["trian"]) == 2
    assert "'trian' is no command; did you mean 'train'?" in capsys.readouterr().err
    assert main([]) == 0
    assert "reference precompute" in capsys.readouterr().out
    with pytest.raises(SystemExit) as stop:
        main(["train", "recipe.py", "--help"])
    assert stop.value.code == 0
    assert "--training.optimizer.learning-rate" in capsys.readouterr().out


@pytest.mark.parametrize(("command", "option"), [("compare", "--seeds"), ("probe", "--held-out")])
def test_options_of_a_command_are_listed_without_its_recipe(command, option, capsys):
    with pytest.raises(SystemExit) as stop:
        main([command, "--help"])
    assert stop.value.code == 0
    assert option in capsys.readouterr().out
    with pytest.raises(SystemExit) as stop:
        main([command])
    assert stop.value.code == 2
    assert "Python file that defines" in capsys.readouterr().err


def cost(code):
    """Seconds of processor time of a fresh Python, and what it printed."""
    start = os.times()
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    end = os.times()
    seconds = end.children_user + end.children_system
    return seconds - start.children_user - start.children_system, done.stdout


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["trian"], ["reference", "-h"]])
def test_the_list_of_commands_costs_little(arguments):
    code = f"import sys; from drrho.cli import main; main({arguments}); print(*sys.modules)"
    seconds, printed = cost(code)
    assert not {"torch", "numpy", "matplotlib"} & set(printed.split())
    assert seconds < 0.5 * cost("import torch")[0]


def test_every_command_is_listed_in_one_line(capsys):
    main(["--help"])
    lines = capsys.readouterr().out.splitlines()
    for name in COMMANDS:
        (line,) = (it for it in lines if re.match(rf"  {name}  ", it))
        assert len(line) <= 100
        assert re.search(r"  [A-Z][^ ]+ .*[^.]$", line), f"{name} needs a docstring"
    for group in ("reference", "scaling"):
        assert main([group, "--help"]) == 0
        assert capsys.readouterr().out.count(f"\n  {group} ") == sum(
            name.startswith(f"{group} ") for name in COMMANDS
        )


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        (["trian", "recipe.py"], "train"),
        (["refrence", "import", "x"], "reference import"),
        (["refrence"], "reference"),
        (["scaling", "efficency"], "scaling efficiency"),
    ],
)
def test_a_misspelt_command_is_recognised(typed, meant, capsys):
    assert main(typed) == 2
    assert f"did you mean {meant!r}?" in capsys.readouterr().err


def test_a_misspelt_option_is_recognised(workplace, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["train", "recipe.py", "--training.step", "3"])
    assert stop.value.code == 2
    assert "--training.steps" in capsys.readouterr().err


def test_short_names_are_those_of_a_recipes_fields(workplace, monkeypatch, capsys):
    found = []
    monkeypatch.setattr(command, "plan_run", lambda recipe: found.append(recipe) or "planned")
    short = ["--batch-size", "4", "--lr=0.5", "--steps", "7", "--workers", "2"]
    short += ["--precision", "bf16", "--seed", "3", "-o", "out"]
    full = ["--loading.batch-size", "4", "--training.optimizer.learning-rate=0.5", "--seed", "3"]
    full += ["--training.steps", "7", "--loading.workers", "2", "--output", "out"]
    full += ["--training.precision", "bfloat16"]
    for options in (short, full):
        assert main(["train", "recipe.py", *options, "--dry-run"]) == 0
    assert found[0] == found[1]
    assert found[0].training.precision == "bfloat16"
    published = ["train", "openclip", "--dry-run"]
    for option in ("--batch-size", "--scale.batch-size"):
        assert main([*published, option, "1024", "--scale.samples-seen", "1_024_000"]) == 0
    assert found[2] == found[3]
    assert (found[2].loading.batch_size, found[2].training.steps) == (1024, 1000)
    capsys.readouterr()
    with pytest.raises(SystemExit):
        main(["train", "recipe.py", "--help"])
    assert "--lr = --training.optimizer.learning-rate" in capsys.readouterr().out


@pytest.mark.parametrize(
    "options",
    [
        ["--lr", "0.1", "--training.optimizer.learning-rate", "0.1"],
        ["--training.optimizer.learning-rate=0.1", "--lr=0.2"],
        ["--lr", "0.1", "--lr", "0.2"],
    ],
)
def test_an_option_is_given_once(workplace, options, capsys):
    assert main(["train", "recipe.py", *options]) == 2
    assert "both set --training.optimizer.learning-rate" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "status"),
    [
        (["trian"], 2),
        (["train", "recipies"], 2),
        (["train", "recipe.py", "--bach-size", "8"], 2),
        (["train", "recipe.py", "--selection.batch-size", "4"], 2),
        (["train", "recipe.py", "--objective.method", "clip"], 2),
        (["train", "recipe.py", "--training.steps", "many"], 2),
        (["curate", "run", "--output", "out", "--keep", "2"], 2),
        (["train", "nowhere.py"], 1),
        (["train", "recipe.py", "--data", "nowhere"], 1),
        (["report", "nowhere"], 1),
    ],
)
def test_2_says_that_the_command_line_is_wrong_and_1_that_the_command_failed(
    workplace, arguments, status
):
    try:
        found = main(arguments)
    except SystemExit as stop:  # tyro's own
        found = stop.code
    assert found == status


@pytest.mark.parametrize(
    ("typed", "meant"),
    [("--bach-size", "--batch-size"), ("--worker", "--workers"), ("--ouput=x", "--output")],
)
def test_a_misspelt_option_is_told_its_name(workplace, capsys, typed, meant):
    assert main(["train", "recipe.py", typed, "8"]) == 2
    name = typed.partition("=")[0]
    assert f"{name} is no option; did you mean {meant}?" in capsys.readouterr().err


def test_a_recipe_s_reference_can_be_left_out_where_the_method_reads_none(
    workplace, plain_recipe, capsys
):
    arguments = ["train", "recipe.py", "--objective.method", "clip", "--dry-run"]
    arguments += ["--data", plain_recipe.data]
    with pytest.raises(SystemExit) as stop:  # tyro reports what it could not build, and exits
        main(arguments)
    assert stop.value.code == 2
    flat = " ".join(capsys.readouterr().err.replace("│", " ").split())
    assert "leave it out (on the command line: --reference None)" in flat
    assert main([*arguments, "--reference", "None"]) == 0


def test_a_folder_as_a_model_is_told_its_prefix(workplace, plain_recipe, capsys):
    Path("a-run").mkdir()
    arguments = [
        "--data",
        plain_recipe.data,
        "--model",
        "a-run",
        "--pretrained",
        "y",
        "--output",
        "out",
    ]
    assert main(["reference", "precompute", *arguments, "--output", "out"]) == 1
    assert "'run:a-run'" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["recipes"], ["--help"], ["train", "--help"]])
def test_nobody_who_stops_reading_gets_a_traceback(arguments):
    command = [sys.executable, "-m", "drrho", *arguments]
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writer)
    assert done.returncode == 0
    assert done.stderr == ""


def test_every_recipe_of_the_repository_loads():
    paths = sorted((ROOT / "recipes").glob("*.py"))
    assert paths
    for path in paths:
        assert isinstance(load_recipe(path, object), Recipe | Comparison | Replicates)


@pytest.mark.usefixtures("few_resamples")
def test_the_demonstration_in_small(tmp_path, capsys, monkeypatch):
    thin = replace(MODEL, small=replace(MODEL.small, image_width=2, text_layers=1))
    monkeypatch.setattr("drrho.studies.demo.MODEL", thin)
    arguments = ["--output", str(tmp_path), "--train-pairs", "48", "--test-pairs", "16"]
    arguments += ["--steps", "2", "--batch-size", "16"]
    assert main(["demo", *arguments]) == 0
    printed = capsys.readouterr().out
    assert "| DRRho-CLIP" in printed
    assert "mean reciprocal rank" in printed
    assert (tmp_path / "results.md").read_text() in printed
    results = json.loads((tmp_path / "results.json").read_text())
    assert set(results) >= {"setup", "references", "methods", "versions"}
    assert list(results["methods"]) == ["clip", "fastclip", "drrho_clip", "fastclip_union"]
    for method in results["methods"].values():
        scores = method["tests"]["test"]
        assert method["cost"]["samples_seen"] == 32
        assert method["cost"]["forward_only"] == 0
        assert scores["mrr_interval"][0] <= scores["mrr"] <= scores["mrr_interval"][1]
        assert [run["seed"] for run in method["runs"]] == [0]
        assert {"image_to_text/R@1", "text_to_image/R@10"} <= set(scores)
        assert {f"zero_shot/{t}/top1" for t in ("shape", "colour", "position")} <= set(scores)
    extra = results["methods"]["drrho_clip"]["reference_cost"]["reference"]
    assert extra["precompute"]["samples"] == 48
    assert extra["training"]["samples_seen"] == 32
    assert results["methods"]["clip"]["reference_cost"] == {}
    page = tmp_path / "report.html"
    assert printed.rstrip().endswith(page.as_uri())  # the last line printed
    html = page.read_text()
    assert "DRRho-CLIP: training pairs" in html
    said = printed.rstrip().splitlines()[-2]
    assert said.startswith("A reference of MRR ")
    assert said in unescape(html)
    with Image.open(tmp_path / "curves.png") as curves:
        assert curves.size[0] > 500
    draw_no_pictures(monkeypatch)
    again = demo(
        DemoConfig(output=str(tmp_path), train_pairs=48, test_pairs=16, steps=2, batch_size=16)
    )
    assert again == read_results(tmp_path / "results.json")


@pytest.mark.parametrize(
    ("steering", "union", "said"),
    [
        ((0.2, 0.3), (0.1, 0.2), ["lifts CLIP from 0.30 to 0.55 on", "train on all data where"]),
        ((0.2, 0.3), (-0.2, -0.1), ["lifts CLIP", "the model was worth more than the data"]),
        ((0.2, 0.3), (-0.1, 0.1), ["lifts CLIP", "these two cannot be told apart"]),
        ((-0.1, 0.6), (0.1, 0.2), ["takes CLIP from 0.30 to 0.55", "which is no clear difference"]),
        ((-0.3, -0.2), (0.1, 0.2), ["lowers CLIP from 0.30 to 0.55 on the same pairs;"]),
    ],
)
def test_the_demonstration_claims_only_differences_that_are_clear(steering, union, said):
    def difference(method, minus, interval):
        return Difference(
            test="test",
            method=method,
            minus=minus,
            mrr=sum(interval) / 2,
            interval=interval,
            won=1,
            seeds=(0,),
        )

    def scored(kind, mrr):
        return replace(kind, tests={"test": {"mrr": mrr}})

    method = MethodResults(runs=())
    scores = {"clip": 0.3, "fastclip": 0.35, "drrho_clip": 0.55, UNION: 0.6}
    results = Results(
        methods={name: scored(method, mrr) for name, mrr in scores.items()},
        references={"reference": scored(ReferenceResults(tests={}), 0.7)},
        differences=(
            difference("drrho_clip", "clip", steering),
            difference(UNION, "drrho_clip", union),
        ),
    )
    found = conclusion(results)
    assert found.startswith("A reference of MRR 0.70 ")
    assert all(part in found for part in said)
    assert "lifts" not in found or steering[0] > 0
    failed = replace(results, methods=results.methods | {"clip": method})
    assert conclusion(failed) == ""


def test_the_reference_and_the_target_never_share_scenes(tmp_path):
    comparison = demo_comparison(DemoConfig(output=str(tmp_path)))
    target = comparison.methods["clip"]
    sources = [comparison.references["reference"].data, target.data, comparison.test]
    sources.append(target.evaluation.data)
    assert len(set(sources)) == 4


def test_a_reference_is_verified(reference, scenes, capsys):
    arguments = ["reference", "verify", str(reference), "--data", str(scenes / "train")]
    assert main(arguments) == 0
    assert "embeddings of 40 of 40 samples" in capsys.readouterr().out
    model = ["--model", f"run:{reference.parent / 'run'}", "--device", "cpu", "--samples", "5"]
    assert main([*arguments, *model]) == 0
    assert "cosine of 5" in capsys.readouterr().out
    assert main(["reference", "verify", str(reference), "--data", str(scenes / "test")]) == 1
    assert "is not in order" in capsys.readouterr().err
