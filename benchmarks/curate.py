"""Precision and recall of `drrho curate` where captions were exchanged on purpose.

    make demo && .venv/bin/python benchmarks/curate.py
    DRRHO_DATA=... .venv/bin/python benchmarks/curate.py --sets emoji-pictograms openstax-figures
    ... --image timm:tf_efficientnet_lite0@lite0.safetensors --text sentence-transformers:MINILM

On scenes the demonstration's reference and its DRRho-CLIP run judge new scenes, which neither has
seen. On a real set a reference of some training shards judges others: a small one that is trained
from scratch or, with --image and --text, one that joins two pretrained models. Still others are
held out. A share of the captions belongs to another image, and `curate` is told neither which nor
how many: it has held-out pairs and its defaults. Writes results.json and results.md into
docs/results/curation; rows of other sets, references and shares stay.
"""

import csv
import json
import os
import re
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
import tyro
from torch import Tensor

import drrho
from drrho.contrastive.pairs import PairEmbeddings
from drrho.data.index import IndexConfig, write_manifest
from drrho.data.indexing import open_manifest
from drrho.data.manifest import Manifest
from drrho.data.reading.cache import OpenShards
from drrho.data.reading.shards import decode_caption, decode_metadata
from drrho.data.scenes import ScenesConfig, write_scenes
from drrho.evaluation.metrics.bootstrap import bootstrap_interval
from drrho.models.towers.joined import JOINED_FILE
from drrho.plotting.table import markdown_table
from drrho.reference.build import PrecomputeConfig, precompute_reference
from drrho.reference.joining.join import JoinConfig, join_reference
from drrho.reference.store import ReferenceStore
from drrho.runtime.files import write_atomically, write_json
from drrho.runtime.provenance import versions
from drrho.studies.curate.curate import CurateConfig, curate
from drrho.studies.curate.pair_quality import pair_scores
from drrho.studies.curate.threshold import Judgement, held_out_ranks, judge

Judged = dict[float, dict[str, Any]]  # stated precision -> what was called
NEGATIVES = 1024
IMAGE_SIZE = 160  # of the vision model of a joined reference
SCRATCH, JOINED, DEMO = "small, from scratch", "joined", "the demonstration's"


class Shards(NamedTuple):
    """Shards of a reference, those that it judges, one for each seed in turn, held-out ones."""

    own: str
    judged: tuple[str, ...]
    held_out: str


SHARDS = {
    (SCRATCH, "emoji-pictograms"): Shards("{0000..0007}", ("0008",), "0009"),
    (SCRATCH, "openstax-figures"): Shards("{0000..0002}", ("0003",), "0004"),
    (JOINED, "emoji-pictograms"): Shards("0000", ("0005",), "0009"),
    (JOINED, "openstax-figures"): Shards("{0000..0001}", ("0002",), "0004"),
}


@dataclass(frozen=True, kw_only=True)
class Config:
    """What is measured.

    Attributes:
        sets: "scenes", "emoji-pictograms" or "openstax-figures".
        image, text: models that a reference of a real set joins; None trains a small one.
        demo: folder of the demonstration.
        runs: folder of the references of real sets; finished ones are kept.
        output: folder to write.
        rates: shares of wrong captions.
        seeds: seeds of the scenes and of the exchange; the demonstration's own are 0 to 3.
        precisions: stated ones; the first is the default of `curate`.
        pairs: scenes of each rate and seed.
        steps: optimiser steps of a reference.
    """

    sets: tuple[str, ...] = ("scenes",)
    image: str | None = None
    text: str | None = None
    demo: str = "runs/demo"
    runs: str = "runs/curation"
    output: str = "docs/results/curation"
    rates: tuple[float, ...] = (0.0, 0.1, 0.3, 0.5)
    seeds: tuple[int, ...] = (101, 102, 103)
    precisions: tuple[float, ...] = (0.95,)
    pairs: int = 1000
    steps: int = 420

    @property
    def kind(self) -> str:
        """What the references of real sets are."""
        return SCRATCH if self.image is None else JOINED


def stored(model: str, data: str, output: str) -> str:
    precompute_reference(PrecomputeConfig(model=model, data=data, output=output))
    return output


def on_scenes(config: Config, folder: str, *, rate: float, seed: int) -> Judged:
    """The pairs of new scenes, by the models of the demonstration and `drrho curate`."""
    scenes = ScenesConfig(num_samples=config.pairs, seed=seed, mismatch_rate=rate)
    write_scenes(Path(folder) / "scenes", scenes)
    manifest, path = write_manifest(IndexConfig(data=f"{folder}/scenes"))
    reference = f"run:{config.demo}/references/reference/run"
    held_out = f"{config.demo}/scenes/validation/manifest.json"
    embeddings = stored(reference, str(path), f"{folder}/reference")
    of_held_out = stored(reference, held_out, f"{folder}/held-out")
    samples = OpenShards(manifest).read(list(range(config.pairs)))
    wrong = [decode_metadata(s)["caption_of"] != row for row, s in enumerate(samples)]
    found = {}
    for precision in config.precisions:
        curation = curate(
            CurateConfig(
                run=f"{config.demo}/drrho_clip-seed0",
                data=str(path),
                reference=embeddings,
                held_out=held_out,
                held_out_reference=(of_held_out,),
                output=f"{folder}/curated-{precision}",
                precision=precision,
            )
        )
        judgement = curation.summary.judgement
        assert judgement is not None
        with curation.table.open() as file:
            rows = list(csv.DictReader(file))
        called = [row["label"] == "mismatched" for row in rows]
        found[precision] = described(
            judgement, [wrong[int(row["sample_id"])] for row in rows], called
        )
    return found


def on_real_pairs(config: Config, name: str, *, rate: float, seed: int) -> Judged:
    """A shard of a real set, with captions exchanged within a share of the pairs.

    `curate` asks the reference alone, so there is no run here, but its parts.
    """
    shards = SHARDS[config.kind, name]
    prefix = f"{os.environ.get('DRRHO_DATA', '../shared/data')}/{name}/train-"
    reference = reference_of(config, name, f"{prefix}{shards.own}.tar")
    judged = shards.judged[config.seeds.index(seed) % len(shards.judged)]
    manifests, stores = {}, {}
    for number in (judged, shards.held_out):
        data = f"{prefix}{number}.tar"
        manifests[number] = open_manifest(data)
        folder = stored(reference, data, f"{config.runs}/{name}/{config.kind}-{number}")
        stores[number] = ReferenceStore.open(folder, manifests[number])
    own, apart = (manifests[it].usable_ids() for it in (judged, shards.held_out))
    caption_of = exchanged(own, rate=rate, seed=seed)
    ids, given = (torch.tensor(list(side)) for side in (caption_of, caption_of.values()))
    pairs = PairEmbeddings(stores[judged].gather(ids).image, stores[judged].gather(given).text)
    captions = captions_of(manifests[judged], ids.tolist())
    wrong = [captions[one] != captions[other] for one, other in caption_of.items()]
    drawn = torch.randperm(len(ids), generator=torch.Generator().manual_seed(seed))[:NEGATIVES]
    negatives = pairs.take(drawn)
    ranks = pair_scores(
        pairs,
        pairs,
        negatives=(negatives, negatives),
        same=torch.arange(len(ids))[:, None] == drawn,
        temperature=0.05,  # of the losses, which are not looked at
    ).rank
    held_out = stores[shards.held_out].gather(apart).pairs
    known = held_out_ranks(held_out, negatives, generator=torch.Generator().manual_seed(seed))
    found = {}
    for precision in config.precisions:
        judgement = judge(ranks, known, precision=precision)
        threshold = torch.inf if judgement.threshold is None else judgement.threshold
        found[precision] = described(judgement, wrong, (ranks >= threshold).tolist())
    return found


def reference_of(config: Config, name: str, data: str) -> str:
    """The model of a reference that has seen these shards; it is kept."""
    if config.image is None or config.text is None:
        return f"run:{trained_reference(config, name, data)}"
    output = f"{config.runs}/{name}/joined"
    if not (Path(output) / JOINED_FILE).is_file():
        towers = {"image": config.image, "text": config.text, "image_size": IMAGE_SIZE}
        join_reference(JoinConfig(**towers, data=data, output=output))
    return output


def trained_reference(config: Config, name: str, data: str) -> str:
    training = drrho.Training(
        steps=config.steps,
        optimizer=drrho.Optimizer(learning_rate=1e-3, warmup_steps=40, weight_decay=0.1),
        log_every=20,
        evaluate_every=105,
        checkpoint_every=105,
    )
    recipe = drrho.Recipe(
        output=f"{config.runs}/{name}/reference-run",
        data=data,
        loading=drrho.Loading(batch_size=256),
        model=drrho.Model(name="small"),
        objective=drrho.CLIP(),
        training=training,
        evaluation=drrho.Evaluation(data=re.sub(r"train-.*", "val-0000.tar", data)),
        seed=100,
    )
    drrho.train(recipe)
    return recipe.output


def exchanged(ids: Tensor, *, rate: float, seed: int) -> dict[int, int]:
    """The sample whose caption each sample is given: another's in a share of them."""
    generator = torch.Generator().manual_seed(seed)
    chosen = ids[torch.randperm(len(ids), generator=generator)[: round(rate * len(ids))]].tolist()
    own = {sample_id: sample_id for sample_id in ids.tolist()}
    return own | dict(zip(chosen, chosen[1:] + chosen[:1], strict=True))


def captions_of(manifest: Manifest, ids: list[int]) -> dict[int, str]:
    samples = zip(ids, OpenShards(manifest).read(ids), strict=True)
    return {sample_id: decode_caption(sample) for sample_id, sample in samples}


def described(judgement: Judgement, wrong: list[bool], called: list[bool]) -> dict[str, Any]:
    return {
        "wrong": wrong,
        "called": called,
        "expected_recall": judgement.recall,
        "separation": judgement.separation,
        "held_out": judgement.held_out,
        "too_weak": judgement.too_weak,
    }


def row_of(
    config: Config, name: str, runs: list[dict], *, rate: float, precision: float
) -> dict[str, object]:
    """All seeds together; intervals by bootstrap over the pairs."""
    wrong, called = (
        torch.tensor([value for run in runs for value in run[key]]) for key in ("wrong", "called")
    )
    row: dict[str, object] = {
        "set": name,
        "reference": DEMO if name == "scenes" else config.kind,
        "rate": rate,
        "stated": precision,
        "seeds": config.seeds,
        "held_out": runs[0]["held_out"],
        "separation": [run["separation"] for run in runs],
        "expected_recall": [run["expected_recall"] for run in runs],
        "too_weak": sum(run["too_weak"] for run in runs),
        "called": int(called.sum()),
        "wrong": int(wrong.sum()),
        "right": int((called & wrong).sum()),
        "precision_by_seed": [
            float(torch.tensor(run["wrong"])[torch.tensor(run["called"])].float().mean())
            for run in runs
            if any(run["called"])
        ],
    }
    for score, hits in (("precision", wrong[called]), ("recall", called[wrong])):
        if len(hits):
            generator = torch.Generator().manual_seed(0)
            interval = bootstrap_interval(hits.float(), generator=generator)
            row[score] = {"value": float(hits.float().mean()), "interval": list(interval)}
    return row


def in_print(row: dict) -> list[str]:
    def number(name: str) -> str:
        if name not in row:
            return ""
        low, high = row[name]["interval"]
        return f"{row[name]['value']:.3f} ({low:.3f}-{high:.3f})"

    expected = ", ".join(f"{share:.3f}" for share in row["expected_recall"])
    by_seed = ", ".join(f"{share:.3f}" for share in row.get("precision_by_seed", ()))
    separation = f"{sum(row['separation']) / len(row['separation']):.3f}"
    counts = [f"{row['wrong']:,}", f"{row['called']:,}"]
    numbers = [number("precision"), by_seed, number("recall"), expected]
    stated = f"{row['stated']:.2f}"
    shown = [row["set"], row["reference"], f"{row['rate']:.2f}", separation, stated]
    return [*shown, *counts, *numbers]


def write_results(folder: Path, rows: list[dict]) -> str:
    """Puts the rows in the place of earlier ones of the same set, reference, precision, share."""

    def place(row: dict) -> tuple[str, str, float, float]:
        return row["set"], row["reference"], -row["stated"], row["rate"]

    kept = {}
    if (folder / "results.json").is_file():
        earlier = json.loads((folder / "results.json").read_text(encoding="utf-8"))
        kept = {place(row): row for row in earlier["rows"]}
    kept |= {place(row): row for row in rows}
    header = ["set", "reference", "exchanged", "separation", "stated", "wrong", "called wrong"]
    header += ["precision", "by seed", "recall", "recall foretold, by seed"]
    ordered = [kept[name] for name in sorted(kept)]
    table = markdown_table(header, [in_print(row) for row in ordered])
    write_json(folder / "results.json", {"rows": ordered, "versions": versions()})
    write_atomically(folder / "results.md", f"{table}\n".encode())
    return table


def main(config: Config) -> None:
    table = ""
    for name in config.sets:
        for rate in config.rates:
            runs = []
            for seed in config.seeds:
                if name == "scenes":
                    with tempfile.TemporaryDirectory() as folder:
                        runs.append(on_scenes(config, folder, rate=rate, seed=seed))
                else:
                    runs.append(on_real_pairs(config, name, rate=rate, seed=seed))
            rows = [
                row_of(config, name, [run[stated] for run in runs], rate=rate, precision=stated)
                for stated in config.precisions
            ]
            table = write_results(Path(config.output), rows)
            print(table, flush=True)


if __name__ == "__main__":
    main(tyro.cli(Config))
