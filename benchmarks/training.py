"""Samples per second of `drrho train` beside open_clip's own loop.

    python -m venv OTHER
    OTHER/bin/pip install open_clip_torch==3.3.0 webdataset==0.2.86 'numpy<2.4' 'pandas<3'
    python benchmarks/training.py --open-clip OTHER/bin/python > benchmarks/training.md

The same architecture, shards, batch size, number of workers and loss on one machine, in turn.
open_clip's trainer does not run on current webdataset and NumPy, so it gets an environment of its
own, with the same PyTorch. Progress goes to standard error.
"""

import argparse
import json
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from measuring import machine
from small_clip import write_small_clip

import drrho
from drrho.data.index import IndexConfig, write_manifest
from drrho.data.scenes import ScenesConfig, write_scenes
from drrho.reference.build import PrecomputeConfig, precompute_reference

MODEL = {
    "embed_dim": 128,
    "vision_cfg": {"image_size": 64, "layers": 4, "width": 192, "patch_size": 16},
    "text_cfg": {
        "context_length": 32,
        "vocab_size": 49408,
        "width": 128,
        "heads": 2,
        "layers": 4,
    },
}
BATCH, STEPS, WORKERS, LOG_EVERY = 64, 60, 1, 10
SAMPLES = 4_096
RECIPE = """
from drrho.contrastive.memory.temperature import Learned
from drrho.contrastive.objectives.clip import CLIP
from drrho.contrastive.objectives.global_risk import DRRhoCLIP, FastCLIP
from drrho.data.loading import Loading
from drrho.models.build import Model
from drrho.recipe.recipe import Recipe
from drrho.training.config import Training
from drrho.training.optimizer import Optimizer

recipe = Recipe(
    output="{output}",
    data="{folder}/data/manifest.json",
    loading=Loading(batch_size={batch}, workers={workers}),
    model=Model(name="local-dir:{folder}/model"),
    objective={objective},
    training=Training(
        steps={steps},
        optimizer=Optimizer(learning_rate=1e-3, warmup_steps=10),
        log_every={log_every},
        checkpoint_every=100_000,
    ),
    reference={reference},
    device="cpu",
)
"""
# Where torchvision was built for another PyTorch, open_clip can be imported in this way alone.
START = f"""
import runpy, sys
sys.path.append({str(Path(drrho.__file__).parents[1])!r})
from drrho.runtime.torchvision import import_torchvision
import_torchvision()
runpy.run_module("open_clip_train.main", run_name="__main__", alter_sys=True)
"""
OBJECTIVES = {
    "drrho, CLIP": (
        "CLIP(temperature=Learned())",
        False,
    ),
    "drrho, FastCLIP": ("FastCLIP()", False),
    "drrho, DRRho-CLIP": ("DRRhoCLIP()", True),
}


def write_inputs(folder: Path) -> None:
    write_scenes(folder / "data", ScenesConfig(num_samples=SAMPLES, seed=0, samples_per_shard=512))
    write_manifest(IndexConfig(data=str(folder / "data")))
    write_small_clip(folder / "model", MODEL)
    precompute_reference(
        PrecomputeConfig(
            data=str(folder / "data" / "manifest.json"),
            model=f"local-dir:{folder}/model",
            output=str(folder / "reference"),
            device="cpu",
        )
    )


def of_drrho(name: str, folder: Path, turn: int) -> float:
    """Samples per second from the second logged step on."""
    objective, steered = OBJECTIVES[name]
    output = folder / f"{name.replace(', ', '-')}-{turn}"
    path = folder / "recipe.py"
    path.write_text(
        RECIPE.format(
            output=output,
            folder=folder,
            batch=BATCH,
            workers=WORKERS,
            steps=STEPS,
            log_every=LOG_EVERY,
            objective=objective,
            reference=repr(str(folder / "reference")) if steered else None,
        )
    )
    run([sys.executable, "-m", "drrho", "train", str(path)], cwd=folder)
    rows = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    first, last = rows[1], rows[-1]
    return (last["samples"] - first["samples"]) / (last["seconds"] - first["seconds"])


def of_open_clip(python: str, folder: Path, turn: int) -> float:
    """Samples per second from the second logged step on."""
    shards = f"{folder}/data/scenes-{{0000..{SAMPLES // 512 - 1:04d}}}.tar"
    options = {
        "--train-data": shards,
        "--dataset-type": "webdataset",
        "--train-num-samples": STEPS * BATCH,
        "--batch-size": BATCH,
        "--workers": WORKERS,
        "--epochs": 1,
        "--precision": "fp32",
        "--model": f"local-dir:{folder}/model",
        "--lr": 1e-3,
        "--warmup": 10,
        "--log-every-n-steps": LOG_EVERY,
        "--device": "cpu",
        "--logs": folder / "open-clip",
        "--name": f"run-{turn}",
    }
    command = [python, "-c", START]
    run([*command, *(str(part) for pair in options.items() for part in pair)], cwd=folder)
    log = (folder / "open-clip" / f"run-{turn}" / "out.log").read_text()
    # Each is the mean of the steps since the one before.
    seconds = [float(found) for found in re.findall(r"Batch \(t\): ([\d.]+)", log)]
    return BATCH / float(np.mean(seconds[2:]))


def run(command: list[str], *, cwd: Path) -> None:
    done = subprocess.run(command, check=False, cwd=cwd, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr[-3000:]}")


def measured(folder: Path, python: str | None, *, turns: int) -> dict[str, list[float]]:
    rates: dict[str, list[float]] = {}
    for turn in range(turns):
        if python is not None:
            rates.setdefault("open_clip", []).append(of_open_clip(python, folder, turn))
        for name in OBJECTIVES:
            rates.setdefault(name, []).append(of_drrho(name, folder, turn))
        latest = ", ".join(f"{name} {values[-1]:.1f}" for name, values in rates.items())
        print(f"{time.strftime('%H:%M:%S')} turn {turn}: {latest}", file=sys.stderr, flush=True)
    return rates


def table(rates: dict[str, list[float]]) -> list[str]:
    """Ratios are taken within a turn."""
    lines = [
        "| | samples/s, median | of the first row | lowest to highest |",
        "|---|---:|---:|---|",
    ]
    base = np.array(next(iter(rates.values())))
    for name, values in rates.items():
        ratios = np.array(values) / base
        numbers = f"{np.median(values):.1f} | {np.median(ratios):.2f}"
        lines.append(f"| {name} | {numbers} | {ratios.min():.2f} to {ratios.max():.2f} |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--open-clip", help="Python of the environment with open_clip's trainer")
    parser.add_argument("--turns", type=int, default=5)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        write_inputs(Path(folder))
        rates = measured(Path(folder), options.open_clip, turns=options.turns)
    head = [
        "# Training: samples per second",
        "",
        f"`python benchmarks/training.py --turns {options.turns}`. {machine()}",
        f"A vision transformer of 4 x 192 on 64-pixel scenes, text 4 x 128, batch {BATCH},",
        f"{WORKERS} worker process, {STEPS} steps in each of {options.turns} turns.",
        "",
    ]
    print("\n".join([*head, *table(rates)]))


if __name__ == "__main__":
    main()
