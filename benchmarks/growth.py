"""Time and memory of what grows with the data, at ten and a hundred times the size of today.

    python benchmarks/growth.py > benchmarks/growth.md

Each part runs at three sizes, each ten times the one before, in a process of its own; the first is
the largest that a committed table has. Contents are simulated where disk is short: shards are
links to one tar file, embeddings have eight dimensions. A part whose time for one more shard or
sample grows with their number would show in the last column. Progress goes to standard error.
"""

import argparse
import json
import os
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

import torch
from measuring import machine

from drrho.contrastive.objectives.global_risk import AnchorAverages
from drrho.data.indexing import index_shards
from drrho.data.manifest import Manifest, Shard
from drrho.data.order import epoch_order
from drrho.data.rows import Members, Spans
from drrho.reference.shard_files import MAX_OPEN, entries_of
from drrho.reference.store import (
    REFERENCE_CARDS,
    ReferenceCard,
    ReferenceStore,
    ShardEmbeddings,
    save_shard,
)
from drrho.studies.compare.results import read_results, write_results
from drrho.studies.compare.tables import comparison_table
from drrho.studies.report.write import ReportConfig, write_report

BASELINE = Path(__file__).parents[1] / "tests" / "fixtures" / "baseline"
RUN, COMPARED = BASELINE / "trained" / "steered", BASELINE / "compare" / "results.json"
DIM = 8
BATCH = 32_768


class Measured(NamedTuple):
    """Processor seconds of a step by its name, and bytes that it left in memory."""

    name: str
    seconds: float
    num_bytes: float


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@contextmanager
def measured(found: list[Measured], name: str) -> Iterator[None]:
    before, start = resident(), time.process_time()
    yield
    found.append(Measured(name, time.process_time() - start, max(0, resident() - before)))


def simulated(num_shards: int, rows: int, folder: Path) -> Manifest:
    """Shards that differ in their hashes; those of embeddings are looked up by them."""
    size = torch.full((rows,), 4096, dtype=torch.int32)
    start = 4096 * torch.arange(rows)
    spans = Spans(start=start, size=size, checksum=size)
    members = Members.collect([{"jpg": 2000, "txt": 40}] * rows)
    return Manifest(
        shards=tuple(
            Shard(
                url=str(folder / f"{number:07d}.tar"),
                num_samples=rows,
                keys_sha256=f"{number:064x}",
                content_sha256=f"{number:064x}",
                unusable={},
                spans=spans,
                members=members,
            )
            for number in range(num_shards)
        )
    )


def index(num_shards: int, folder: Path) -> list[Measured]:
    """Shards of ten small samples, all links to one."""
    shard = folder / "one.tar.source"
    with tarfile.open(shard, "w") as tar:
        for number in range(10):
            for extension, content in (("jpg", b"\xff\xd8" + bytes(1500)), ("txt", b"a caption")):
                member = tarfile.TarInfo(f"{number:05d}.{extension}")
                member.size = len(content)
                tar.addfile(member, BytesIO(content))
    for number in range(num_shards):
        (folder / f"{number:07d}.tar").symlink_to(shard)
    found: list[Measured] = []
    with measured(found, "index"):
        manifest = index_shards(str(folder))
    path = folder / "manifest.json"
    with measured(found, "write it"):
        manifest.save(path)
    known = Manifest.load(path)
    with measured(found, "index again, unchanged"):
        index_shards(str(folder), known=known)
    return found


def manifest(num_shards: int, folder: Path) -> list[Measured]:
    made, path, found = simulated(num_shards, 100, folder), folder / "manifest.json", []
    with measured(found, "save"):
        made.save(path)
    del made
    with measured(found, "open"):
        opened = Manifest.load(path)
    with measured(found, "hash of the contents"):
        _ = opened.contents_sha256
    return found


def store(num_shards: int, folder: Path, *, rows: int = 100) -> list[Measured]:
    made, found = simulated(num_shards, rows, folder), []
    card = ReferenceCard(model={}, embedding_dim=DIM, shards=entries_of(made.shards))
    files = REFERENCE_CARDS.files(card, folder)
    block = torch.zeros(rows, DIM, dtype=torch.float16)
    block[:, 0] = 1
    embeddings = ShardEmbeddings(
        image=block, text=block.clone(), present=torch.ones(rows, dtype=torch.bool), absent={}
    )
    with measured(found, "write"):
        REFERENCE_CARDS.save(card, folder)
        for entry in card.shards:
            save_shard(files, entry, embeddings)
    with measured(found, "open"):
        opened = ReferenceStore.open(folder, made)
    ids = torch.randint(made.num_samples, (1024,), generator=torch.Generator().manual_seed(0))
    with measured(found, "look 1,024 pairs up"):
        opened.gather(ids)
    mapped = Path("/proc/self/maps").read_text(encoding="utf-8").count(str(folder))
    print(f"{num_shards:,} shards, {mapped:,} files mapped into memory", file=sys.stderr)
    assert mapped <= MAX_OPEN
    return found


def state(num_samples: int, _: Path) -> list[Measured]:
    found: list[Measured] = []
    with measured(found, "make"):
        averages = AnchorAverages(num_samples)
    ids = torch.randint(num_samples, (BATCH,), generator=torch.Generator().manual_seed(0))
    averages.update(ids, torch.zeros(2, BATCH), 0.5)
    with measured(found, f"a step of {BATCH:,} pairs"):
        averages.update(ids, torch.zeros(2, BATCH), 0.5)
    return found


def order(num_samples: int, folder: Path) -> list[Measured]:
    made, found = simulated(num_samples // 10_000, 10_000, folder), []
    with measured(found, "order of an epoch"):
        epoch_order(made, seed=0, epoch=0, shuffle_window=100)
    return found


def report(num_runs: int, folder: Path) -> list[Measured]:
    """Copies of a small run with 200 logged steps."""
    for number in range(num_runs):
        run = folder / f"run-{number:05d}"
        run.mkdir()
        for name in ("recipe.json", "results.json"):
            (run / name).write_text((RUN / name).read_text(encoding="utf-8"), encoding="utf-8")
        row = json.loads((RUN / "metrics.jsonl").read_text(encoding="utf-8").splitlines()[0])
        rows = (json.dumps(row | {"step": step, "samples": 4 * step}) for step in range(1, 201))
        (run / "metrics.jsonl").write_text("\n".join(rows) + "\n", encoding="utf-8")
    found: list[Measured] = []
    with measured(found, "report"):
        write_report(
            ReportConfig(runs=(str(folder),), output=str(folder / "report.html"), galleries=False)
        )
    return found


def comparison(num_runs: int, folder: Path) -> list[Measured]:
    """Results of two methods with so many seeds together."""
    results = read_results(COMPARED)
    methods = {}
    for name, method in results.methods.items():
        seeds = [replace(method.runs[0], seed=seed) for seed in range(num_runs // 2)]
        methods[name] = replace(method, runs=tuple(seeds))
    results = replace(results, methods=methods)
    path, found = folder / "results.json", []
    with measured(found, "write results"):
        write_results(path, results)
    with measured(found, "read results"):
        results = read_results(path)
    with measured(found, "tables"):
        comparison_table(results)
    return found


class Part(NamedTuple):
    """What is measured, and its smallest size in a unit."""

    measure: Callable[[int, Path], list[Measured]]
    smallest: int
    unit: str


PARTS = {
    "index": Part(index, 2_000, "shards of 10 samples"),
    "manifest": Part(manifest, 2_000, "shards of 100 samples"),
    "reference store": Part(store, 200, "shards of 100 samples"),
    # The most are beyond the 65,530 mappings that Linux allows a process.
    "store of many shards": Part(partial(store, rows=1), 700, "shards of 1 sample"),
    "per-sample state": Part(state, 2_000_000, "samples"),
    "order": Part(order, 1_000_000, "samples"),
    "report": Part(report, 4, "runs"),
    "comparison": Part(comparison, 20, "runs"),
}
TIMES = (1, 10, 100)


def one(name: str, size: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps(PARTS[name].measure(size, Path(folder))))


def in_a_process(name: str, size: int) -> list[Measured]:
    command = [sys.executable, __file__, "--one", name, "--size", str(size)]
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    return [Measured(*values) for values in json.loads(output.splitlines()[-1])]


def rows_of(name: str, times: tuple[int, ...]) -> Iterator[str]:
    part = PARTS[name]
    before: dict[str, float] = {}
    for factor in times:
        size = part.smallest * factor
        for step, seconds, num_bytes in in_a_process(name, size):
            growth = f"{seconds / before[step]:.1f}" if step in before else ""
            before[step] = seconds
            each = f"{1e6 * seconds / size:.3g} | {num_bytes / size:,.0f}"
            cells = [name, step, f"{size:,} {part.unit}", f"{seconds:.3g}", each, growth]
            yield "| " + " | ".join(cells) + " |"
        print(f"{time.strftime('%H:%M:%S')} {name}: {size:,}", file=sys.stderr, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--parts", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--times", nargs="+", type=int, default=TIMES)
    parser.add_argument("--one", choices=list(PARTS), help=argparse.SUPPRESS)
    parser.add_argument("--size", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        one(options.one, options.size)
        return
    lines = [
        "# What grows with the data",
        "",
        f"`python benchmarks/growth.py`. {machine()}",
        "",
        "Seconds are the processor's, which other work on the machine changes least. Memory is",
        "what a step leaves resident. The last column is the time beside that of a tenth of the",
        "size: 10 is linear, 100 would be quadratic.",
        "",
        "| | step | of | seconds | us each | bytes each | times a tenth's |",
        "|---|---|---:|---:|---:|---:|---:|",
    ]
    print("\n".join(lines), flush=True)
    for name in options.parts:
        for line in rows_of(name, tuple(options.times)):
            print(line, flush=True)


if __name__ == "__main__":
    main()
