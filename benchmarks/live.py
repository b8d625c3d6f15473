"""What a live reference costs: a training step beside one with stored embeddings.

    python benchmarks/live.py > benchmarks/live.md

References of several sizes steer the same target: stored, live on their own images, and live on
the target's augmented images. Stored and live take turns, and the ratios are taken within a turn.
The weights are random: only the time of a step counts here.
"""

import argparse
import json
import tempfile
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from measuring import machine

import drrho
from drrho.data.index import IndexConfig, write_manifest
from drrho.data.scenes import ScenesConfig, write_scenes
from drrho.models.build import Model, build_model
from drrho.models.flops import forward_flops
from drrho.models.open_clip import import_open_clip
from drrho.recipe.train import train_recipe
from drrho.reference.build import PrecomputeConfig, precompute_reference
from drrho.training.log import read_metrics

SIZE = 64  # pixels
PAIRS = 256
WIDTHS = {"small": 96, "as the target": 192, "large": 448}  # of the reference's towers
TARGET = WIDTHS["as the target"]


def write_model(folder: Path, width: int) -> Model:
    """Write a dual encoder of transformers with random weights, as open_clip reads it."""
    heads = {"heads": width // 32}
    config = {
        "embed_dim": 128,
        "vision_cfg": {
            "image_size": SIZE,
            "patch_size": 8,
            "layers": 6,
            "width": width,
            "head_width": 32,
        },
        "text_cfg": {
            "context_length": 32,
            "vocab_size": 49408,
            "width": width,
            "layers": 4,
            **heads,
        },
    }
    folder.mkdir()
    torch.manual_seed(width)
    module = import_open_clip().CLIP(**config)
    torch.save(module.state_dict(), folder / "open_clip_pytorch_model.bin")
    content = {"model_cfg": config, "preprocess_cfg": {"size": SIZE}}
    (folder / "open_clip_config.json").write_text(json.dumps(content))
    return Model(f"local-dir:{folder}")


def flops_of(model: Model) -> float:
    towers = build_model(model, seed=0)
    return forward_flops(towers, torch.zeros(1, 3, SIZE, SIZE), ["a red circle"]).total


def seconds_of(recipe: drrho.Recipe, **changes: object) -> tuple[float, float]:
    """Return the seconds of a step after the first two, and the live models' share of the time."""
    with tempfile.TemporaryDirectory() as folder:
        train_recipe(replace(recipe, **changes, output=f"{folder}/run"))
        rows = read_metrics(Path(folder) / "run")
    steps = np.diff([row["seconds"] for row in rows][1:])
    shares = [row.get("time/live_models_share") or 0.0 for row in rows[2:]]
    return float(np.median(steps)), float(np.median(shares))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--batch-size", type=int, default=32)
    options = parser.parse_args()
    described, rows = machine(), []
    warnings.simplefilter("ignore")  # of a run so short
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_scenes(folder / "data", ScenesConfig(num_samples=PAIRS, seed=0))
        write_manifest(IndexConfig(data=str(folder / "data")))
        data = str(folder / "data" / "manifest.json")
        models = {name: write_model(folder / str(w), w) for name, w in WIDTHS.items()}
        recipe = drrho.Recipe(
            output="",
            data=data,
            model=models["as the target"],
            objective=drrho.DRRhoCLIP(),
            reference=f"live:{models['as the target'].name}",
            loading=drrho.Loading(batch_size=options.batch_size),
            training=drrho.Training(
                steps=options.steps, log_every=1, optimizer=drrho.Optimizer(warmup_steps=1)
            ),
            device="cpu",
        )
        target = flops_of(recipe.model)
        for name, model in models.items():
            stored = str(folder / f"stored-{WIDTHS[name]}")
            precompute_reference(PrecomputeConfig(data=data, model=model.name, output=stored))
            live = f"live:{model.name}"
            kinds = (
                {"reference": stored},
                {"reference": live},
                {"reference": live, "live": drrho.Live(images="target")},
            )
            found = np.array(
                [[seconds_of(recipe, **kind) for kind in kinds] for _ in range(options.turns)]
            )
            ratios = found[:, 1:, 0] / found[:, :1, 0]
            size = flops_of(model) / target
            own, augmented = (
                f"{np.median(r):.2f} ({r.min():.2f} to {r.max():.2f})" for r in ratios.T
            )
            rows.append(
                f"| {name} | {size:.2f} | {np.median(found[:, 0, 0]):.2f} | {own} | {augmented} | "
                f"{np.median(found[:, 1, 1]):.0%} | {1 + size / 3:.2f} |"
            )
    sizes = (
        f"Transformers at {SIZE} px, batch size {options.batch_size}; median of {options.turns} "
        "turns, lowest to highest in brackets."
    )
    header = (
        "| reference | its forward pass beside the target's | a step, stored, s | live, own "
        "images, times that | live, the target's images, times that | share of the time | "
        "1 + size / 3 |"
    )
    meaning = (
        "A step is a forward and a backward pass of the target, about three forward passes; a live "
        "reference adds one of its own, so the last column is what is to be expected where images "
        "are read in time."
    )
    command = f"`python benchmarks/live.py --turns {options.turns} --steps {options.steps}`."
    lines = ["# Live references: the cost of a step", "", f"{command} {described}", sizes, ""]
    lines += [header, "|---|---:|---:|---:|---:|---:|---:|", *rows, "", meaning]
    print("\n".join(lines))


if __name__ == "__main__":
    main()
