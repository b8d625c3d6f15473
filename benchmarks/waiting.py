"""What waiting costs, before and after: steps of the demonstration, and `drrho index`.

    git worktree add /tmp/before e6ee0ff
    python benchmarks/waiting.py --before /tmp/before > benchmarks/waiting.md

Each turn runs both versions, one after the other, in processes of their own; the ratios are taken
within a turn.
"""

import argparse
import io
import json
import os
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path

import numpy as np
from measuring import machine

STEPS = 30
SHARDS, SAMPLES = 2000, 100
# The method of the demonstration that needs no reference. Prints the share of time spent waiting
# for data, and the seconds of the steps.
TRAIN = """
import json, shutil, sys
from dataclasses import replace
from pathlib import Path
from drrho.recipe.train import train_recipe
from drrho.studies.demo import DemoConfig, demo_comparison, draw_demo_scenes
folder, steps = Path(sys.argv[1]), int(sys.argv[2])
config = DemoConfig(output=str(folder))
draw_demo_scenes(config)
recipe = demo_comparison(config).methods["clip"]
training = recipe.training
training = replace(training, steps=steps, log_every=5, checkpoint_every=steps, evaluate_every=None)
output = folder / "timed"
shutil.rmtree(output, ignore_errors=True)
without = type(recipe.evaluation)()
recipe = replace(recipe, output=str(output), training=training, evaluation=without)
train_recipe(recipe)
rows = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
seconds = [row["seconds"] for row in rows]
lasted = [now - before for before, now in zip([seconds[0], *seconds], seconds)][1:]
waited = sum(row["time/data_wait"] * length for row, length in zip(rows[1:], lasted))
steps = rows[-1]["step"] - rows[0]["step"]
print(json.dumps([waited / sum(lasted), sum(lasted) / steps]))
"""
INDEX = """
import json, sys, time
from drrho.data.index import IndexConfig, write_manifest
start = time.perf_counter()
write_manifest(IndexConfig(data=sys.argv[1], output=sys.argv[2]))
print(json.dumps(time.perf_counter() - start))
"""


def run(tree: Path, program: str, *arguments: object) -> list[float] | float:
    command = [sys.executable, "-c", program, *map(str, arguments)]
    environment = os.environ | {"PYTHONPATH": str(tree / "src")}
    done = subprocess.run(command, check=False, capture_output=True, text=True, env=environment)
    if done.returncode:
        raise SystemExit(f"{tree}: {done.stderr[-3000:]}")
    found = json.loads(done.stdout)
    print(f"{time.strftime('%H:%M:%S')} {tree.name} {found}", file=sys.stderr)
    return found


def write_small_samples(folder: Path) -> None:
    """Write shards of images of a kilobyte, which nothing decodes, and captions."""
    if folder.exists():  # of an earlier run in the same --folder
        return
    generator = np.random.default_rng(0)
    folder.mkdir()
    for shard in range(SHARDS):
        with tarfile.open(folder / f"{shard:05d}.tar", "w") as archive:
            for row in range(SAMPLES):
                for extension, content in (
                    ("jpg", generator.bytes(1100)),
                    ("txt", f"a scene with the number {row}".encode()),
                ):
                    member = tarfile.TarInfo(f"{shard:05d}{row:05d}.{extension}")
                    member.size = len(content)
                    archive.addfile(member, io.BytesIO(content))


def training_rows(trees: list[Path], folder: Path, *, turns: int) -> list[str]:
    """Measure steps whose images are cached, and first ones whose are not."""
    for tree in trees:  # draws the scenes, and fills the cache of the version that has one
        run(tree, TRAIN, folder / tree.name, STEPS)
    found = np.array(
        [[run(tree, TRAIN, folder / tree.name, STEPS) for tree in trees] for _ in range(turns)]
    )
    waits, seconds = found[..., 0], found[..., 1]
    ratios = seconds[:, 0] / seconds[:, 1]
    wait, step = np.median(waits, axis=0), np.median(seconds, axis=0)
    of_steps = (
        f"| a step, s | {step[0]:.3f} | {step[1]:.3f} | {np.median(ratios):.2f} | "
        f"{ratios.min():.2f} to {ratios.max():.2f} |"
    )
    return [of_steps, f"| of it waiting for data | {wait[0]:.1%} | {wait[1]:.1%} | | |"]


def index_row(trees: list[Path], folder: Path, *, turns: int) -> str:
    write_small_samples(folder / "small")
    found = []
    for turn in range(turns):
        outputs = [folder / f"{tree.name}-{turn}-{os.getpid()}.json" for tree in trees]
        pairs = zip(trees, outputs, strict=True)
        found.append([run(tree, INDEX, folder / "small", output) for tree, output in pairs])
    seconds = np.array(found)
    ratios = seconds[:, 0] / seconds[:, 1]
    before, after = np.median(seconds, axis=0)
    return (
        f"| index of {SHARDS:,} shards of {SAMPLES}, s | {before:.1f} | {after:.1f} | "
        f"{np.median(ratios):.2f} | {ratios.min():.2f} to {ratios.max():.2f} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--before", type=Path, required=True, help="worktree of the version before")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--parts", nargs="*", default=["demo", "index"])
    parser.add_argument("--folder", type=Path, help="where to work; by default a temporary folder")
    options = parser.parse_args()
    described = machine()
    trees = [options.before, Path(__file__).parents[1]]
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        rows = training_rows(trees, folder, turns=options.turns) if "demo" in options.parts else []
        if "index" in options.parts:
            rows.append(index_row(trees, folder, turns=options.turns))
    lines = [
        "# Waiting: before and after",
        "",
        f"`python benchmarks/waiting.py --turns {options.turns}`. {described}",
        f"The steps are {STEPS} of the demonstration's CLIP, without evaluations.",
        "",
        "| | before | now | ratio, median | lowest to highest |",
        "|---|---:|---:|---:|---|",
        *rows,
    ]
    print("\n".join(lines))


if __name__ == "__main__":
    main()
