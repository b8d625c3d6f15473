"""Precision and recall of `drrho curate` where captions were exchanged on purpose.

    make demo && .venv/bin/python benchmarks/curate.py
    DRRHO_DATA=... .venv/bin/python benchmarks/curate.py --sets emoji-pictograms openstax-figures

On scenes the demonstration's reference and its DRRho-CLIP run judge new scenes, which neither has
seen. On a real set a small reference is trained on some training shards and judges others; still
others are held out. A share of the captions belongs to another image, and `curate` is told neither
which nor how many: it has held-out pairs and its defaults. Writes results.json and results.md into
docs/results/curation.
"""

import csv
import os
import tarfile
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import tyro

import drrho
from drrho.data.index import IndexConfig, write_manifest
from drrho.data.indexing import open_manifest
from drrho.data.reading.cache import OpenShards
from drrho.data.reading.shards import decode_caption, decode_metadata, write_sample
from drrho.data.scenes import ScenesConfig, write_scenes
from drrho.evaluation.metrics.bootstrap import bootstrap_interval
from drrho.plotting.table import markdown_table
from drrho.reference.build import PrecomputeConfig, precompute_reference
from drrho.runtime.files import write_atomically, write_json
from drrho.runtime.provenance import versions
from drrho.studies.curate.curate import CurateConfig, Curation, curate

# The shards that the reference is trained on, that it judges, and that are held out.
SHARDS = {
    "emoji-pictograms": ("{0000..0007}", "0008", "0009"),
    "openstax-figures": ("{0000..0002}", "0003", "0004"),
}


@dataclass(frozen=True, kw_only=True)
class Config:
    """What is measured.

    Attributes:
        sets: "scenes", "emoji-pictograms" or "openstax-figures".
        demo: folder of the demonstration.
        runs: folder of the references of real sets; finished ones are kept.
        output: folder to write.
        rates: shares of wrong captions.
        seeds: seeds of the scenes and of the exchange; the demonstration's own are 0 to 3.
        pairs: scenes of each rate and seed.
        steps: optimiser steps of a reference.
    """

    sets: tuple[str, ...] = ("scenes",)
    demo: str = "runs/demo"
    runs: str = "runs/curation"
    output: str = "docs/results/curation"
    rates: tuple[float, ...] = (0.0, 0.1, 0.3, 0.5)
    seeds: tuple[int, ...] = (101, 102, 103)
    pairs: int = 1000
    steps: int = 420


def stored(model: str, data: str, output: str) -> str:
    precompute_reference(PrecomputeConfig(model=f"run:{model}", data=data, output=output))
    return output


def on_scenes(config: Config, folder: str, *, rate: float, seed: int) -> dict[str, object]:
    """The pairs of new scenes, by the models of the demonstration."""
    scenes = ScenesConfig(num_samples=config.pairs, seed=seed, mismatch_rate=rate)
    write_scenes(Path(folder) / "scenes", scenes)
    manifest, path = write_manifest(IndexConfig(data=f"{folder}/scenes"))
    reference = f"{config.demo}/references/reference/run"
    held_out = f"{config.demo}/scenes/validation/manifest.json"
    found = curate(
        CurateConfig(
            run=f"{config.demo}/drrho_clip-seed0",
            data=str(path),
            reference=stored(reference, str(path), f"{folder}/reference"),
            held_out=held_out,
            held_out_reference=(stored(reference, held_out, f"{folder}/held-out"),),
            output=f"{folder}/curated",
        )
    )
    samples = OpenShards(manifest).read(list(range(config.pairs)))
    wrong = [decode_metadata(s)["caption_of"] != row for row, s in enumerate(samples)]
    return described(found, dict(enumerate(wrong)))


def on_real_pairs(
    config: Config, name: str, folder: str, *, rate: float, seed: int
) -> dict[str, object]:
    """Some shards of a real set, with captions exchanged within a share of the pairs."""
    data = f"{os.environ.get('DRRHO_DATA', '../shared/data')}/{name}"
    own, judged, held_out = (f"{data}/train-{shards}.tar" for shards in SHARDS[name])
    reference = trained_reference(config, name, own, f"{data}/val-0000.tar")
    wrong = write_exchanged(judged, Path(folder) / "data", rate=rate, seed=seed)
    _, path = write_manifest(IndexConfig(data=f"{folder}/data"))
    embeddings = stored(reference, str(path), f"{folder}/reference")
    evaluation = drrho.Evaluation(
        data=held_out, references=(stored(reference, held_out, f"{folder}/held-out"),)
    )
    recipe = drrho.Recipe(  # the judgement asks the reference alone, so few steps are enough
        output=f"{folder}/run",
        data=str(path),
        reference=embeddings,
        loading=drrho.Loading(batch_size=64),
        model=drrho.Model(name="small"),
        objective=drrho.DRRhoCLIP(),
        training=drrho.Training(steps=10, optimizer=drrho.Optimizer(learning_rate=1e-3)),
        evaluation=evaluation,
    )
    drrho.train(recipe)
    found = curate(CurateConfig(run=recipe.output, output=f"{folder}/curated"))
    return described(found, wrong)


def trained_reference(config: Config, name: str, data: str, validation: str) -> str:
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
        evaluation=drrho.Evaluation(data=validation),
        seed=100,
    )
    drrho.train(recipe)
    return recipe.output


def write_exchanged(source: str, folder: Path, *, rate: float, seed: int) -> dict[int, bool]:
    """Writes the pairs with captions exchanged in a share; id -> whether the caption is wrong."""
    manifest = open_manifest(source)
    ids = manifest.usable_ids()
    generator = torch.Generator().manual_seed(seed)
    chosen = ids[torch.randperm(len(ids), generator=generator)[: round(rate * len(ids))]].tolist()
    samples = dict(zip(ids.tolist(), OpenShards(manifest).read(ids.tolist()), strict=True))
    captions = {sample_id: decode_caption(sample) for sample_id, sample in samples.items()}
    given = captions | {
        one: captions[other] for one, other in zip(chosen, chosen[1:] + chosen[:1], strict=True)
    }
    folder.mkdir(parents=True)
    with tarfile.open(folder / "exchanged.tar", "w") as shard:
        for sample_id, sample in samples.items():
            image = sample.fields["jpg"]
            texts = {"jpg": image, "txt": given[sample_id].encode()}
            write_sample(shard, {"__key__": sample.key, **texts})
    return {row: given[i] != captions[i] for row, i in enumerate(samples)}


def described(found: Curation, wrong: dict[int, bool]) -> dict[str, object]:
    with found.table.open() as file:
        rows = list(csv.DictReader(file))
    judgement = found.summary.judgement
    assert judgement is not None
    return {
        "wrong": [wrong[int(row["sample_id"])] for row in rows],
        "called": [row["label"] == "mismatched" for row in rows],
        "expected_recall": judgement.recall,
        "separation": judgement.separation,
        "held_out": judgement.held_out,
        "too_weak": judgement.too_weak,
    }


def row_of(name: str, rate: float, runs: list[dict]) -> dict[str, object]:
    """All seeds together; intervals by bootstrap over the pairs."""
    wrong = torch.tensor([w for run in runs for w in run["wrong"]])
    called = torch.tensor([c for run in runs for c in run["called"]])
    row: dict[str, object] = {
        "set": name,
        "rate": rate,
        "held_out": runs[0]["held_out"],
        "separation": [run["separation"] for run in runs],
        "expected_recall": [run["expected_recall"] for run in runs],
        "too_weak": sum(run["too_weak"] for run in runs),
        "called": int(called.sum()),
        "wrong": int(wrong.sum()),
        "right": int((called & wrong).sum()),
    }
    for name, hits in (("precision", wrong[called]), ("recall", called[wrong])):
        if len(hits):
            generator = torch.Generator().manual_seed(0)
            interval = bootstrap_interval(hits.float(), generator=generator)
            row[name] = {"value": float(hits.float().mean()), "interval": list(interval)}
    return row


def in_print(row: dict) -> list[str]:
    def number(name: str) -> str:
        if name not in row:
            return ""
        low, high = row[name]["interval"]
        return f"{row[name]['value']:.3f} ({low:.3f}-{high:.3f})"

    expected = ", ".join(f"{share:.3f}" for share in row["expected_recall"])
    separation = f"{sum(row['separation']) / len(row['separation']):.3f}"
    counts = [f"{row['wrong']:,}", f"{row['called']:,}"]
    numbers = [number("precision"), number("recall"), expected]
    return [row["set"], f"{row['rate']:.2f}", separation, *counts, *numbers]


def main(config: Config) -> None:
    rows = []
    for name in config.sets:
        for rate in config.rates:
            runs = []
            for seed in config.seeds:
                with tempfile.TemporaryDirectory() as folder:
                    if name == "scenes":
                        runs.append(on_scenes(config, folder, rate=rate, seed=seed))
                    else:
                        runs.append(on_real_pairs(config, name, folder, rate=rate, seed=seed))
            rows.append(row_of(name, rate, runs))
    header = ["set", "exchanged", "separation", "wrong", "called wrong"]
    header += ["precision", "recall", "recall foretold, by seed"]
    table = markdown_table(header, [in_print(row) for row in rows])
    folder = Path(config.output)
    results = {"config": asdict(config), "rows": rows, "versions": versions()}
    write_json(folder / "results.json", results)
    write_atomically(folder / "results.md", f"{table}\n".encode())
    print(table)


if __name__ == "__main__":
    main(tyro.cli(Config))
