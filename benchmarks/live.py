"""What a live reference costs: a training step beside one with stored embeddings.

    python benchmarks/live.py > benchmarks/live.md

References of several sizes steer the same target: stored, live on their own images, and live on
the target's augmented images. Stored and live take turns, and the ratios are taken within a turn.
Processor time is measured, which other load changes less, as the difference of a run of many steps
and one of few. The weights are random: only the time of a step counts here.
"""

import argparse
import json
import tempfile
import time
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

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

SIZE = 64  # pixels
PAIRS = 256
WIDTHS = {"small": 96, "as the target": 192, "large": 384}  # of the reference's towers
TARGET = WIDTHS["as the target"]


def write_model(folder: Path, width: int) -> Model:
    """Write a dual encoder of transformers with random weights, as open_clip reads it."""
    heads = {"heads": width // 32}
    config = {
        "embed_dim": 128,
        "vision_cfg": {
            "image_size": SIZE,
            "patch_size": 8,
            "layers": 4,
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


def seconds_of(recipe: drrho.Recipe, *, few: int, many: int, **changes: Any) -> float:
    """Return the processor's seconds of a step."""
    spent = []
    for steps in (few, many):
        with tempfile.TemporaryDirectory() as folder:
            training = replace(recipe.training, steps=steps)
            timed = replace(recipe, **changes, training=training, output=f"{folder}/run")
            started = time.process_time()
            train_recipe(timed)
            spent.append(time.process_time() - started)
    return (spent[1] - spent[0]) / (many - few)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--steps", type=int, nargs=2, default=(2, 12), help="few, many")
    parser.add_argument("--batch-size", type=int, default=16)
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
            training=drrho.Training(steps=2, optimizer=drrho.Optimizer(warmup_steps=1)),
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
            few, many = options.steps
            found = np.array(
                [
                    [seconds_of(recipe, few=few, many=many, **kind) for kind in kinds]
                    for _ in range(options.turns)
                ]
            )
            ratios = found[:, 1:] / found[:, :1]
            size = flops_of(model) / target
            own, augmented = (
                f"{np.median(r):.2f} ({r.min():.2f} to {r.max():.2f})" for r in ratios.T
            )
            rows.append(
                f"| {name} | {size:.2f} | {np.median(found[:, 0]):.2f} | {own} | {augmented} | "
                f"{1 + size / 3:.2f} |"
            )
    sizes = (
        f"Transformers at {SIZE} px, batch size {options.batch_size}; median of {options.turns} "
        "turns, lowest to highest in brackets. Seconds are the processor's."
    )
    header = (
        "| reference | its forward pass beside the target's | a step, stored, s | live, own "
        "images, times that | live, the target's images, times that | 1 + size / 3 |"
    )
    meaning = (
        "A step is a forward and a backward pass of the target, about three forward passes; a live "
        "reference adds one of its own, so the last column is what is to be expected where images "
        "are read in time."
    )
    few, many = options.steps
    command = f"`python benchmarks/live.py --turns {options.turns} --steps {few} {many}`."
    lines = ["# Live references: the cost of a step", "", f"{command} {described}", sizes, ""]
    lines += [header, "|---|---:|---:|---:|---:|---:|", *rows, "", meaning]
    print("\n".join(lines))


if __name__ == "__main__":
    main()
