"""Every `drrho` command of every page runs, on stand-ins: without a network, in seconds.

Each page gets a folder with what its commands name: shards, manifests, stores, runs, recipes. They
are tiny, and so are the architectures behind open_clip's names and their weights. What a command
writes for the first time is taken away before it runs. Of several processes one is started here.
"""

import json
import re
import shlex
import shutil
import socket
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import drrho
from drrho.cli import main
from drrho.data.scenes import ScenesConfig, write_scenes
from drrho.models.open_clip import import_open_clip
from tests.data.tar_files import pair, write_shard
from tests.integrations.test_sentence_transformers import pairs as text_pairs
from tests.integrations.test_sentence_transformers import sentence_transformer
from tests.models.test_hugging_face import siglip, tokenizer, transformers
from tests.reference.test_importing import COUNT, UIDS, write_datacomp, write_members
from tests.small_runs import TINY, draw_no_pictures
from tests.studies.scaling.test_scaling import results

open_clip = import_open_clip()
ROOT = Path(__file__).parents[1]
TINY_CLIP = {
    "embed_dim": 8,
    "vision_cfg": {"image_size": 16, "layers": 1, "width": 16, "patch_size": 8, "head_width": 8},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 8, "heads": 1, "layers": 1},
}
# Sizes of a machine with GPUs are taken away, and small ones are given.
SIZES = {
    *("--batch-size", "--workers", "--loading.batch-size", "--scale.batch-size"),
    *("--scale.samples-seen", "--training.steps", "--training.optimizer.warmup-steps"),
    "--training.optimizer.moment-warmup-steps",
}
OF_RECIPE = ("--steps", "2", "--batch-size", "4")
OF_NAME = ("--scale.samples-seen", "8", "--scale.batch-size", "4")
SMALLER = {
    "train": ("--workers", "0", "--device", "cpu"),
    "index": ("--workers", "0"),
    "reference precompute": ("--batch-size", "50", "--device", "cpu"),
    "advise": ("--uses", "steer", "--strengths", "1", "--budget", "2"),
    "evaluate": ("--device", "cpu"),
    "steer": ("--batch-size", "4", "--epochs", "0.1", "--device", "cpu"),
    "scaling fit": ("--resamples", "100"),
    "scaling efficiency": ("--resamples", "100"),
}
STAND_INS = {
    "{00000..00099}": "{00000..00009}",
    "step-00001000": "step-00000002",
    "MODEL_OF_THE_REFERENCE": "run:runs/other",
    "timm:resnet50": "run:runs/other",
    "sentence-transformers:all-MiniLM-L6-v2": "run:runs/other",
}


def pages():
    return sorted(
        page
        for page in [*(ROOT / "docs").rglob("*.md"), ROOT / "README.md"]
        # Tutorials run from top to bottom, in their own test.
        if page.parent.name != "tutorials" and any(True for _ in commands(page))
    )


def commands(page):
    """Argument lists of a page's `drrho` lines."""
    text = page.read_text("utf-8")
    for block in re.findall(r"```(?:sh|bash)\n(.*?)```", text, flags=re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            found = re.match(r"(?:torchrun .*?-m |srun .*?)?(drrho .*)$", line.strip())
            if found:
                command = found[1]
                for name, stand_in in STAND_INS.items():
                    command = command.replace(name, stand_in)
                yield shlex.split(command, comments=True)


def own_shards(folder, *, pairs):
    """Ten shards, with the fields that imports join by."""
    for shard, numbers in enumerate(np.arange(pairs).reshape(10, -1).tolist()):
        rows = [
            pair(n) | {"json": json.dumps({"uid": UIDS[n % len(UIDS)], "key": f"{n}"}).encode()}
            for n in numbers
        ]
        write_shard(folder / f"{shard:05d}.tar", rows, first_key=numbers[0])


def write_eurosat(folder):
    """Zero-shot classification in clip_benchmark's layout."""
    rows = [{"jpg": pair(n)["jpg"], "cls": str(n % 2).encode()} for n in range(4)]
    write_shard(folder / "test" / "0.tar", rows)
    (folder / "test" / "nshards.txt").write_text("1")
    (folder / "classnames.txt").write_text("even\nodd\n")
    (folder / "zeroshot_classification_templates.txt").write_text("a photo of {c}\n")


RECIPE = """
import drrho

recipe = drrho.Recipe(
    output="runs/yours",
    data="train.json",
    loading=drrho.Loading(batch_size=4),
    model=drrho.Model(name="ViT-B-32"),
    objective=drrho.DRRhoCLIP(),
    training=drrho.Training(steps=2, optimizer=drrho.Optimizer(warmup_steps=1)),
    reference="reference",
    device="cpu",
)
"""


COMPARISON = (
    RECIPE
    + """
plain = dataclasses.replace(
    recipe,
    output="runs/mine",
    model=drrho.Model(name="small", small=drrho.SmallConfig(embed_dim=8, image_width=2)),
    objective=drrho.CLIP(),
    reference=None,
)
recipe = drrho.Comparison(
    output="runs/NAME", methods={"clip": plain}, references={}, test="TEST", seeds=(0,)
)
"""
).replace("import drrho", "import dataclasses\n\nimport drrho")


@pytest.fixture(scope="module")
def stand_ins(tmp_path_factory):
    """Tiny architectures and weights behind open_clip's names; no network."""
    folder = tmp_path_factory.mktemp("weights")
    patch = pytest.MonkeyPatch()
    for name in ("ViT-B-32", "ViT-B-16", "ViT-B-32-quickgelu"):
        config = TINY_CLIP | ({"quick_gelu": True} if name.endswith("quickgelu") else {})
        patch.setitem(open_clip.factory._MODEL_CONFIGS, name, config)
    torch.manual_seed(0)
    weights = folder / "tiny.pt"
    torch.save(open_clip.CLIP(**TINY_CLIP).state_dict(), weights)
    patch.setattr(open_clip.factory, "download_pretrained", lambda *_, **__: str(weights))

    def refuse(*_, **__):
        raise OSError("the network is off")

    patch.setattr(socket.socket, "connect", refuse)
    draw_no_pictures(patch)  # of comparisons, whose tests draw them
    yield
    patch.undo()


@pytest.fixture(scope="module")
def workspace(stand_ins, tmp_path_factory):
    """All that the pages name, in one folder."""
    folder = tmp_path_factory.mktemp("workspace")
    patch = pytest.MonkeyPatch()
    patch.chdir(folder)
    own_shards(Path("data"), pairs=100)  # the fewest that a join is fitted on
    own_shards(Path("DATA"), pairs=60)
    write_scenes(Path("TEST"), ScenesConfig(num_samples=12, seed=1))
    write_eurosat(Path("EUROSAT"))
    write_eurosat(Path("EVALSETS/vtab-eurosat"))
    shutil.copytree("DATA", "extra")
    shutil.copytree("TEST", "VALIDATION")
    for data, manifest in (
        ("data", "train.json"),
        ("extra", "extra.json"),
        ("VALIDATION", "val.json"),
        ("VALIDATION", "validation.json"),
        ("TEST", "held_out.json"),
    ):
        drrho.index(data, output=manifest)
    exec(RECIPE, names := {})
    recipe = names["recipe"]
    for name in ("your_data.py", "RECIPE.py"):
        Path(name).write_text(RECIPE)
    Path("recipes").mkdir()
    for name in ("scaling_ladder", "data_efficiency_scenes"):
        Path(f"recipes/{name}.py").write_text(COMPARISON.replace("NAME", name))
    Path("recipe.py").write_text(RECIPE.replace('drrho.Model(name="ViT-B-32")', TINY_MODEL))
    plain = replace(recipe, objective=drrho.CLIP(), reference=None, model=TINY)
    for run in ("other", "weak"):
        drrho.train(replace(plain, seed=3, output=f"runs/{run}"))
    shutil.copytree("runs/other", "runs/reference")
    for data, store in (
        ("train.json", "reference"),
        ("val.json", "reference-val"),
        ("held_out.json", "stored_embeddings"),
    ):
        drrho.precompute_reference(data=data, model="run:runs/other", output=store, device="cpu")
    held_out = drrho.Evaluation(data="val.json", references=("reference-val",))
    drrho.train(replace(recipe, output="runs/mine", evaluation=held_out))
    drrho.compare(
        drrho.Comparison(
            output="runs/demo",
            methods={"clip": plain},
            references={},
            test="TEST",
            seeds=(0,),
        )
    )
    for name, settings in (
        ("scaling-ladder", ("s", "m", "l", "xl")),
        ("data-efficiency-scenes", (1000, 2000, 4000)),
    ):
        Path(f"runs/{name}").mkdir()
        Path(f"runs/{name}/results.json").write_text(json.dumps(results(settings)))
    for name in ("scaling-openclip", "scaling-scenes"):
        shutil.copytree(ROOT / "docs/results" / name, f"docs/results/{name}")
    losses = {
        name: np.random.default_rng(number).exponential(size=60)
        for number, name in enumerate(("pilot-1", "pilot-2", "large", "small"))
    }
    for name in ("held_out.npz", "train.npz"):
        np.savez(name, **losses)
    for name, write in (("METADATA", write_datacomp), ("DATACOMPDR_SHARDS", write_members)):
        Path(name).mkdir()
        write(Path(name), list(range(COUNT)))
    siglip().save_pretrained("siglip")
    transformers.CLIPImageProcessor(size=40, crop_size=32).save_pretrained("siglip")
    tokenizer(pad="<pad>").save_pretrained("siglip")
    sentence_transformer("texts").save("MINILM", create_model_card=False)
    rows = (dict(zip(("query", "passage"), row.values(), strict=True)) for row in text_pairs())
    Path("questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    patch.undo()
    return folder


TINY_MODEL = (
    'drrho.Model(name="small", small=drrho.SmallConfig(embed_dim=8, image_width=2, text_width=8, '
    "text_layers=1, text_heads=1))"
)


def with_small_sizes(arguments):
    kept = list(arguments[1:])
    for name in SIZES & set(kept):
        place = kept.index(name)
        del kept[place : place + 2]
    if kept[0] == "train":
        kept += OF_RECIPE if kept[1].endswith(".py") else OF_NAME
    for command, options in SMALLER.items():
        if " ".join(kept[:2]) == command or kept[0] == command:
            kept += options
    return kept


# Tiny stand-ins of listed tasks have other numbers of samples.
@pytest.mark.filterwarnings("ignore:.*the result is not comparable")
@pytest.mark.parametrize("page", pages(), ids=lambda page: page.name)
def test_commands_of_a_page_run(page, workspace, tmp_path, monkeypatch, capsys):
    folder = tmp_path / "here"
    shutil.copytree(workspace, folder)
    monkeypatch.chdir(folder)
    written, failed = set(), []
    for arguments in commands(page):
        outputs = [
            arguments[place + 1] for place, it in enumerate(arguments) if it in ("--output", "-o")
        ]
        for output in set(outputs) - written:
            if any(it.startswith(f"{output}/") for it in arguments):
                continue  # it is read too
            if Path(output).is_dir():
                shutil.rmtree(output)
            Path(output).unlink(missing_ok=True)
        written |= set(outputs)
        try:
            status = main(with_small_sizes(arguments))
        except SystemExit as stopped:
            status = stopped.code
        if status:
            failed.append(f"{shlex.join(arguments)}: {status}\n{capsys.readouterr().err[-400:]}")
    assert not failed, "\n\n".join(failed)
