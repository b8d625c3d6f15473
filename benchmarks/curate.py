"""Precision and recall of `drrho curate` on scenes with known wrong captions.

    make demo && .venv/bin/python benchmarks/curate.py

The demonstration's reference and its DRRho-CLIP run judge new scenes, which neither has seen. A
share of their captions belongs to another image, and `curate` is not told which share. Writes
results.json and results.md into docs/results/curation.
"""

import csv
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import tyro

from drrho.data.index import IndexConfig, write_manifest
from drrho.data.reading.cache import OpenShards
from drrho.data.reading.shards import decode_metadata
from drrho.data.scenes import ScenesConfig, write_scenes
from drrho.evaluation.metrics.bootstrap import bootstrap_interval
from drrho.plotting.table import markdown_table
from drrho.reference.build import PrecomputeConfig, precompute_reference
from drrho.runtime.files import write_atomically, write_json
from drrho.runtime.provenance import versions
from drrho.studies.curate.curate import CurateConfig, curate


@dataclass(frozen=True, kw_only=True)
class Config:
    """What is measured.

    Attributes:
        demo: folder of the demonstration.
        output: folder to write.
        rates: shares of wrong captions.
        seeds: of the scenes; the demonstration's own are 0 to 3.
        pairs: scenes of each rate and seed.
    """

    demo: str = "runs/demo"
    output: str = "docs/results/curation"
    rates: tuple[float, ...] = (0.0, 0.1, 0.3, 0.5)
    seeds: tuple[int, ...] = (101, 102, 103)
    pairs: int = 1000


def measured(config: Config, *, rate: float, seed: int) -> dict[str, object]:
    """The estimated share, and for each pair whether it is wrong and whether it was called so."""
    with tempfile.TemporaryDirectory() as folder:
        scenes = ScenesConfig(num_samples=config.pairs, seed=seed, mismatch_rate=rate)
        write_scenes(Path(folder) / "scenes", scenes)
        manifest, path = write_manifest(IndexConfig(data=f"{folder}/scenes"))
        precompute_reference(
            PrecomputeConfig(
                model=f"run:{config.demo}/reference", data=str(path), output=f"{folder}/reference"
            )
        )
        found = curate(
            CurateConfig(
                run=f"{config.demo}/drrho_clip-seed0",
                data=str(path),
                reference=f"{folder}/reference",
                output=f"{folder}/curated",
                negatives=512,
            )
        )
        samples = OpenShards(manifest).read(list(range(config.pairs)))
        wrong = [decode_metadata(s)["caption_of"] != row for row, s in enumerate(samples)]
        with found.table.open() as file:
            called = [row["label"] == "mismatched" for row in csv.DictReader(file)]
    return {
        "rate": rate,
        "seed": seed,
        "estimated": found.summary.mismatched_share,
        "wrong": wrong,
        "called": called,
    }


def row_of(rate: float, runs: list[dict]) -> dict[str, object]:
    """Of all seeds together; intervals by bootstrap over the pairs."""
    wrong = torch.tensor([w for run in runs for w in run["wrong"]])
    called = torch.tensor([c for run in runs for c in run["called"]])
    row: dict[str, object] = {
        "rate": rate,
        "estimated": [run["estimated"] for run in runs],
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

    estimated = ", ".join(f"{share:.3f}" for share in row["estimated"])
    counts = [f"{row['called']:,}", f"{row['wrong']:,}"]
    return [f"{row['rate']:.1f}", estimated, *counts, number("precision"), number("recall")]


def main(config: Config) -> None:
    rows = [
        row_of(rate, [measured(config, rate=rate, seed=seed) for seed in config.seeds])
        for rate in config.rates
    ]
    header = ["wrong captions", "estimated share, by seed", "called wrong", "wrong"]
    table = markdown_table([*header, "precision", "recall"], [in_print(row) for row in rows])
    folder = Path(config.output)
    results = {"config": asdict(config), "rows": rows, "versions": versions()}
    write_json(folder / "results.json", results)
    write_atomically(folder / "results.md", f"{table}\n".encode())
    print(table)


if __name__ == "__main__":
    main(tyro.cli(Config))
