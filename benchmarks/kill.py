"""Kills a run of two processes again and again, and asks whether it ends where it should.

    python benchmarks/kill.py > benchmarks/kill.md

A run is trained without interruption. Then it is trained again under `torchrun --max-restarts`, and
at random moments, start-up and checkpoints included, one of its processes or both get SIGKILL;
torchrun ends what is left and starts them again. The last checkpoint has to be that of the
uninterrupted run, bit for bit. Progress goes to standard error.
"""

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch
from measuring import machine
from small_clip import write_small_clip

from drrho.data.index import IndexConfig, write_manifest
from drrho.data.scenes import ScenesConfig, write_scenes
from drrho.training.checkpoint import list_checkpoints, read_values
from drrho.training.tensor_files import read_tensors

SIZE = 2
STEPS = 600
MODEL = {
    "embed_dim": 8,
    "vision_cfg": {"image_size": 64, "layers": 2, "width": 16, "patch_size": 32, "head_width": 8},
    "text_cfg": {"context_length": 32, "vocab_size": 49408, "width": 8, "heads": 1, "layers": 2},
}
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
    loading=Loading(batch_size=8),
    model=Model(name="local-dir:{folder}/model"),
    objective=FastCLIP(temperature=Learned(), rho=1.0),
    training=Training(
        steps={steps}, optimizer=Optimizer(learning_rate=1e-3), log_every=50,
        checkpoint_every=10,
    ),
    seed={seed},
    device="cpu",
)
"""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """One run: how often it was killed, when, and whether it came out right."""

    seed: int
    kills: int
    of_both: int
    before_the_first_checkpoint: int
    equal: bool


def write_inputs(folder: Path) -> None:
    write_scenes(folder / "data", ScenesConfig(num_samples=200, seed=0, samples_per_shard=50))
    write_manifest(IndexConfig(data=str(folder / "data")))
    write_small_clip(folder / "model", MODEL)


def start(recipe: Path) -> subprocess.Popen:
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(SIZE)]
    command += ["--max-restarts", "1000", "--monitor-interval", "0.2"]
    return subprocess.Popen(
        [*command, "-m", "drrho", "train", str(recipe)],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def workers_of(torchrun: subprocess.Popen) -> list[psutil.Process]:
    children = psutil.Process(torchrun.pid).children()
    return [child for child in children if child.status() != psutil.STATUS_ZOMBIE]


def write_recipe(folder: Path, name: str, *, seed: int) -> Path:
    path = folder / f"{name}.py"
    text = RECIPE.format(output=folder / name, folder=folder, steps=STEPS, seed=seed)
    path.write_text(text)
    return path


def saved_step(run: Path) -> int:
    found = list_checkpoints(run / "checkpoints")
    return read_values(found[-1])["step"] if found else 0


def result_of(run: Path) -> dict[str, torch.Tensor]:
    return read_tensors(list_checkpoints(run / "checkpoints")[-1])


def interrupted(folder: Path, *, seed: int, draw: random.Random, longest: float) -> Outcome:
    whole, killed = (write_recipe(folder, f"{kind}-{seed}", seed=seed) for kind in ("whole", "cut"))
    assert start(whole).wait() == 0
    run = folder / f"cut-{seed}"
    kills = early = both = 0
    torchrun = start(killed)
    while True:
        try:
            assert torchrun.wait(timeout=draw.uniform(0, longest)) == 0
            break
        except subprocess.TimeoutExpired:
            pass
        workers = workers_of(torchrun)
        if not workers:
            continue  # between two starts
        victims = draw.choice([workers[:1], workers[1:], workers])
        for victim in victims:
            victim.send_signal(signal.SIGKILL)
        kills += len(victims) > 0
        both += len(victims) == SIZE
        early += saved_step(run) == 0
        say(f"seed {seed}: kill {kills}, saved up to step {saved_step(run)} of {STEPS}")
    ours, theirs = result_of(run), result_of(folder / f"whole-{seed}")
    equal = ours.keys() == theirs.keys() and all(torch.equal(ours[n], theirs[n]) for n in ours)
    return Outcome(
        seed=seed, kills=kills, of_both=both, before_the_first_checkpoint=early, equal=equal
    )


def table(outcomes: list[Outcome]) -> list[str]:
    lines = [
        "| run | kills | of both processes | before the first checkpoint | equal |",
        "|---:|---:|---:|---:|---|",
    ]
    for o in outcomes:
        numbers = f"{o.seed} | {o.kills} | {o.of_both} | {o.before_the_first_checkpoint}"
        lines.append(f"| {numbers} | {'yes' if o.equal else 'NO'} |")
    kills = sum(outcome.kills for outcome in outcomes)
    equal = sum(outcome.equal for outcome in outcomes)
    lines += ["", f"{kills} kills; {equal} of {len(outcomes)} runs ended bit for bit"]
    lines += ["where the uninterrupted run ends: weights, moments, temperature, averages."]
    return lines


def say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--longest", type=float, default=30.0, help="seconds from start to kill")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    draw = random.Random(options.seed)
    outcomes: list[Outcome] = []
    with tempfile.TemporaryDirectory() as folder:
        write_inputs(Path(folder))
        while sum(outcome.kills for outcome in outcomes) < options.kills:
            seed = len(outcomes)
            outcomes.append(
                interrupted(Path(folder), seed=seed, draw=draw, longest=options.longest)
            )
    command = (
        f"`python benchmarks/kill.py --kills {options.kills} --longest {options.longest:g}`, "
        f"{SIZE} processes under torchrun"
    )
    lines = ["# kill -9", "", f"{command}, {STEPS:,} steps, a checkpoint every 10. {machine()}", ""]
    print("\n".join([*lines, *table(outcomes)]))
    sys.exit(0 if all(outcome.equal for outcome in outcomes) else 1)


if __name__ == "__main__":
    main()
