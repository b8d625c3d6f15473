"""Kills every command at random moments, runs it again, and compares what it wrote.

    python benchmarks/kill_commands.py > benchmarks/kill_commands.md

Each command runs once without interruption. Then it runs in another folder, gets SIGKILL at a
random moment of its time, and is run again, until it was killed often enough; the last run may
finish. Its files have to be those of the uninterrupted run: the same bytes, except for times, and
pictures and pages, which only have to be there. `kill.py` does the same to training with several
processes.
"""

import argparse
import hashlib
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from measuring import machine

RECIPE = """
import drrho
recipe = drrho.Recipe(
    output="out", data="train.json", reference={reference},
    loading=drrho.Loading(batch_size=16),
    model={model},
    objective={objective},
    training=drrho.Training(
        steps={steps}, optimizer=drrho.Optimizer(learning_rate=1e-3), log_every=5,
        checkpoint_every=5,
    ),
    evaluation=drrho.Evaluation(data="test.json"{held_out}), device="cpu",
)
"""
COMPARISON = """
import drrho
from pathlib import Path
exec(Path("steered.py").read_text())
recipe = drrho.Comparison(
    output="out", methods=["openclip", "drrho_clip"], recipe=recipe, test="test2.json"
)
"""
# A model of open_clip that can be exported, and embeddings as DataCompDR stores them.
PROGRAM = """
import io, json, tarfile
from pathlib import Path
import numpy as np, torch
from safetensors.torch import save_file
from drrho.models.open_clip import import_open_clip
torch.manual_seed(0)
text = dict(context_length=16, vocab_size=49408, width=16, heads=2, layers=1)
vision = dict(image_size=32, layers=1, width=32, head_width=16, patch_size=16)
config = dict(embed_dim=16, vision_cfg=vision, text_cfg=text)
Path("tiny").mkdir()
Path("tiny/open_clip_config.json").write_text(json.dumps(dict(model_cfg=config)))
save_file(import_open_clip().CLIP(**config).state_dict(), "tiny/model.safetensors")
draws = np.random.default_rng(0)
for shard in sorted(Path("train").glob("*.tar")):
    Path("members").mkdir(exist_ok=True)
    keys = {Path(name).stem for name in tarfile.open(shard).getnames()}
    with tarfile.open(Path("members", shard.name), "w") as tar:
        for key in sorted(keys):
            file = io.BytesIO()
            np.savez(file, **{n: draws.normal(size=(1, 8)) for n in ("image_emb", "text_emb")})
            info = tarfile.TarInfo(f"{key}.npz")
            info.size = file.tell()
            file.seek(0)
            tar.addfile(info, file)
columns = np.random.default_rng(1).normal(size=(400, 4)) ** 2
np.savetxt("losses.csv", columns, delimiter=",", header="one,two,good,bad", comments="")
"""
# What is made once for all, by name of the command that makes it.
INPUTS = (
    "scenes train --scenes.num-samples 200 --scenes.seed 0 --scenes.samples-per-shard 50",
    "scenes test --scenes.num-samples 60 --scenes.seed 1",
    "scenes test2 --scenes.num-samples 60 --scenes.seed 2",
    "index train --output train.json",
    "index test --output test.json",
    "index test2 --output test2.json",
    "train plain.py --output reference-run",
    "reference precompute --data train.json --model run:reference-run --output reference",
    "reference precompute --data test.json --model run:reference-run --output reference-test",
    "train steered.py --output run",
    "train tiny.py --output exportable",
)
FIRST_OF_SHARDS = 3  # from which on they are there, for `PROGRAM`
COMMANDS = (
    "scenes out --scenes.num-samples 2000 --scenes.seed 3 --scenes.samples-per-shard 100",
    "index train --output out/train.json",
    "mix train.json test.json --output out/mixed.json",
    "reference precompute --data train.json --model run:reference-run --output out",
    "reference verify reference --data train.json",
    "reference import members members --data train.json --model tiny --output out",
    "probe losses losses.csv --pilots one two --output out",
    "export exportable --format open-clip --output out/weights.safetensors",
    "export exportable --format hugging-face --output out",
    "train steered.py --output out",
    "compare compare.py",
    "probe steered.py --reference run:reference-run --output out --pilot-steps 20",
    "advise steered.py --reference run:reference-run --output out --budget 1 --uses filter distil",
    "evaluate run --data test2.json --output out/scores.json",
    "variance run --output out/variance.png",
    "curate run --output out --drop redundant",
    "report run --output out/report.html --gallery.pairs 32",
    "steer train --reference run:reference-run --output out --epochs 3 --batch-size 16",
)
# Keys whose values are times or the machine's, and checksums over them.
VOLATILE = ("seconds", "time", "memory", "modified", "changed")
CHECKSUMS = ("checksum", "sha256", "files", "of")
ONLY_THERE = {".png", ".html", ".md", ".lock"}


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """A command, how often it was killed, and the files that came out otherwise."""

    command: str
    seconds: float
    kills: int
    different: list[str]


def drrho(folder: Path, command: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", "drrho", *command.split()],
        cwd=folder,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )


def finish(process: subprocess.Popen) -> None:
    _, errors = process.communicate()
    assert process.returncode == 0, errors.decode()[-2000:]


def interrupted(inputs: Path, command: str, *, kills: int, draw: random.Random) -> Outcome:
    whole, cut = (Path(tempfile.mkdtemp(dir=inputs.parent)) / "work" for _ in range(2))
    for folder in (whole, cut):
        shutil.copytree(inputs, folder)
    started = time.monotonic()
    finish(drrho(whole, command))
    seconds = time.monotonic() - started
    for done in range(kills):
        process = drrho(cut, command)
        try:
            process.communicate(timeout=draw.uniform(0.2, 1.0) * seconds)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
        say(f"{command}: kill {done + 1}")
    finish(drrho(cut, command))
    different = compared(whole, cut)
    for folder in (whole, cut):
        shutil.rmtree(folder.parent)
    return Outcome(command=command, seconds=seconds, kills=kills, different=different)


def compared(whole: Path, cut: Path) -> list[str]:
    """The files under `out` that only one of them has, or whose contents differ."""
    ours, theirs = ({p.relative_to(f): p for p in files_of(f)} for f in (whole, cut))
    different = sorted(ours.keys() ^ theirs.keys())
    both = [name for name in ours if name in theirs]
    different += [n for n in both if content(ours[n], whole) != content(theirs[n], cut)]
    return [str(name) for name in different]


def files_of(folder: Path) -> list[Path]:
    found = [path for path in (folder / "out").rglob("*") if path.is_file()]
    # Locks and logs of every start are no result, nor is what an interrupted write left behind, nor
    # the caches of images and token ids, which hold what was read until then.
    left = {"claims", "tensorboard", ".drrho-cache"}
    return [p for p in found if not left & set(p.parts) and not p.name.startswith(".")]


def content(path: Path, folder: Path) -> Any:
    """What has to be the same of a file, wherever the folder of the work is."""
    if path.suffix in ONLY_THERE:
        return None
    if path.suffix in {".json", ".jsonl"}:
        text = path.read_text().replace(str(folder), "FOLDER")
        lines = text.splitlines() if path.suffix == ".jsonl" else [text]
        return [stable(json.loads(line)) for line in lines]
    return hashlib.sha256(path.read_bytes()).hexdigest()


def stable(value: Any) -> Any:
    if isinstance(value, dict):
        return {
            name: stable(inner)
            for name, inner in value.items()
            if name not in CHECKSUMS and not any(word in name for word in VOLATILE)
        }
    return [stable(inner) for inner in value] if isinstance(value, list) else value


def write_inputs(folder: Path) -> None:
    folder.mkdir()
    small = 'drrho.Model("small", small=drrho.SmallConfig(image_width=4, text_width=16))'
    plain = {
        "model": small,
        "reference": "None",
        "objective": "drrho.CLIP()",
        "steps": 40,
        "held_out": "",
    }
    tiny = plain | {"model": 'drrho.Model("local-dir:tiny")', "steps": 5}
    steered = {
        "model": small,
        "reference": '"reference"',
        "objective": "drrho.DRRhoCLIP()",
        "steps": 60,
        "held_out": ', references=("reference-test",)',
    }
    (folder / "plain.py").write_text(RECIPE.format(**plain))
    (folder / "tiny.py").write_text(RECIPE.format(**tiny))
    (folder / "steered.py").write_text(RECIPE.format(**steered))
    (folder / "compare.py").write_text(COMPARISON)
    (folder / "inputs.py").write_text(PROGRAM)
    for number, command in enumerate(INPUTS):
        if number == FIRST_OF_SHARDS:
            subprocess.run([sys.executable, "inputs.py"], cwd=folder, check=True)
        say(command)
        finish(drrho(folder, command))


def table(outcomes: list[Outcome]) -> list[str]:
    lines = ["| command | seconds | kills | files that differ |", "|---|---:|---:|---|"]
    for o in outcomes:
        different = ", ".join(o.different) or "none"
        lines.append(f"| `drrho {o.command}` | {o.seconds:.1f} | {o.kills} | {different} |")
    kills = sum(outcome.kills for outcome in outcomes)
    same = sum(not outcome.different for outcome in outcomes)
    return [
        *lines,
        "",
        f"{kills} kills; {same} of {len(outcomes)} commands ended where they should.",
    ]


def say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=5, help="of each command")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="commands that begin so, or so: A,B")
    options = parser.parse_args()
    draw = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as folder:
        inputs = Path(folder) / "inputs"
        write_inputs(inputs)
        outcomes = [
            interrupted(inputs, command, kills=options.kills, draw=draw)
            for command in COMMANDS
            if command.startswith(tuple(options.only.split(",")))
        ]
    command = f"`python benchmarks/kill_commands.py --kills {options.kills}`"
    print("\n".join(["# kill -9 of every command", "", f"{command}. {machine()}", ""]))
    print("\n".join(table(outcomes)))
    sys.exit(0 if all(not outcome.different for outcome in outcomes) else 1)


if __name__ == "__main__":
    main()
