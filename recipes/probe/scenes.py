"""Validation of `drrho probe` on DRRho-CLIP; the plan is in docs/results/probe.md.

python recipes/probe/scenes.py        # 12 references, 2 replicates; finished runs are kept
"""

import sys
from dataclasses import replace
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent))
from scoring import Probe, report

from drrho.contrastive.config import ObjectiveConfig
from drrho.data.indexing import index_shards, open_manifest
from drrho.data.loading import LoadingConfig
from drrho.data.scenes import ScenesConfig, write_scenes
from drrho.models.build import ModelConfig, load_model, save_model
from drrho.models.small import SmallConfig
from drrho.run.evaluation import evaluate_model, open_evaluation_set
from drrho.run.probe_pairs import (
    Trained,
    common_pairs,
    embed,
    probe_pairs,
    train_pilots,
    training_subset,
    with_distinct_texts,
)
from drrho.run.recipe import Recipe
from drrho.run.reference import PrecomputeConfig, precompute_reference
from drrho.run.training import train_recipe
from drrho.training.config import TrainingConfig
from drrho.training.optimizer import OptimizerConfig

RUNS, OUTPUT = Path("runs/probe-scenes"), Path("docs/results/probe/scenes")
REPLICATES, BATCH, STEPS, REFERENCE_STEPS, PILOT_STEPS = 2, 128, 100, 200, 50
TEMPERATURE = 0.07
PAIRS, HELD_OUT, MEMORISED_STEPS = 2000, 500, 400
MODEL = SmallConfig(embed_dim=64, image_width=8, text_width=64, text_layers=1, text_heads=2)
QUARTER = SmallConfig(embed_dim=16, image_width=2, text_width=16, text_layers=1, text_heads=2)
LARGER = SmallConfig(embed_dim=96, image_width=12, text_width=96, text_layers=1, text_heads=3)
CLEAN = ScenesConfig(num_samples=4000, seed=50)


def scenes(name: str, config: ScenesConfig) -> str:
    folder = RUNS / "scenes" / name
    write_scenes(folder, config)
    if not (folder / "manifest.json").exists():
        index_shards(folder).save(folder / "manifest.json")
    return str(folder / "manifest.json")


def recipe(name: str, data: str, *, steps: int, seed: int, small: SmallConfig = MODEL) -> Recipe:
    return Recipe(
        output=str(RUNS / name),
        data=data,
        loading=LoadingConfig(batch_size=BATCH),
        model=ModelConfig(name="small", small=small),
        objective=ObjectiveConfig(method="fastclip"),
        training=TrainingConfig(
            steps=steps,
            optimizer=OptimizerConfig(
                learning_rate=2e-3, warmup_steps=min(20, steps // 4), weight_decay=0.1
            ),
            log_every=20,
            checkpoint_every=steps,
        ),
        seed=seed,
        device="cpu",
    )


def references() -> dict[str, Recipe]:
    """All that do not depend on the target's pairs and are trained."""
    clean = scenes("clean", CLEAN)

    def of(name: str, data: str, **fields) -> Recipe:
        given = {"steps": REFERENCE_STEPS, "seed": 900} | fields
        return recipe(f"reference-{name.replace(' ', '-')}", data, **given)

    def drawn(name: str, **fields) -> str:
        return scenes(name, replace(CLEAN, **fields))

    return {
        "4000 pairs": of("4000 pairs", clean),
        "25 steps": of("25 steps", clean, steps=25),
        "1000 pairs": of("1000 pairs", drawn("clean-1000", num_samples=1000)),
        "250 pairs": of("250 pairs", drawn("clean-250", num_samples=250)),
        "30 mismatched": of("30 mismatched", drawn("mismatched-30", mismatch_rate=0.3)),
        "80 mismatched": of("80 mismatched", drawn("mismatched-80", mismatch_rate=0.8)),
        "quarter": of("quarter", clean, small=QUARTER),
        "larger": of("larger", clean, small=LARGER),
        "short captions": of("short captions", drawn("short", omission_rate=0.6)),
        "sensor noise": of("sensor noise", drawn("noisy", noise=60.0)),
    }


def corrupted(source: Path, folder: Path) -> str:
    """The model of a run, noise of a half of their spread added to all weights."""
    model = load_model(source / "model")
    generator = torch.Generator().manual_seed(7)
    for parameter in model.module.parameters():
        if parameter.numel() > 1:
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.data += 0.5 * parameter.data.std() * noise
    save_model(model, folder / "model")
    return f"run:{folder}"


def mrr(run: str, test) -> float:
    model = load_model(Path(run) / "model")
    model.module.eval()
    scored = evaluate_model(model, test, device=torch.device("cpu"), batch_size=250)
    return scored.metrics["mrr"]


def main() -> None:
    torch.set_num_threads(1)
    named, sizes = {}, {}
    for name, made in references().items():
        train_recipe(made)
        named[name] = f"run:{made.output}"
    named["corrupted"] = corrupted(RUNS / "reference-4000-pairs", RUNS / "reference-corrupted")
    test = open_evaluation_set(scenes("test", ScenesConfig(num_samples=HELD_OUT, seed=60)))
    names = [*named, "memorised"]
    probes, rows = [], []
    for replicate in range(REPLICATES):
        noisy = {"mismatch_rate": 0.3}
        data = scenes(
            f"train-{replicate}", ScenesConfig(num_samples=PAIRS, seed=70 + replicate, **noisy)
        )
        held = scenes(
            f"held-{replicate}", ScenesConfig(num_samples=HELD_OUT, seed=80 + replicate, **noisy)
        )
        memorised = recipe(
            f"memorised-{replicate}", data, steps=MEMORISED_STEPS, seed=990 + replicate
        )
        train_recipe(memorised)
        models = named | {"memorised": f"run:{memorised.output}"}
        plain = recipe(f"plain-{replicate}", data, steps=STEPS, seed=replicate)
        train_recipe(plain)
        pilots = train_pilots(
            plain, open_manifest(data), output=RUNS / f"pilots-{replicate}", steps=PILOT_STEPS
        )
        generator = torch.Generator().manual_seed(replicate)
        device, held_out = torch.device("cpu"), open_manifest(held)
        subset = training_subset(open_manifest(data), HELD_OUT, generator=generator)
        pairs = common_pairs(
            {pilot: embed(pilot, held_out, device=device) for pilot in pilots}
            | {name: embed(models[name], held_out, device=device) for name in names}
        )
        found = probe_pairs(
            [pairs[pilot] for pilot in pilots],
            {name: pairs[name] for name in names},
            trained=Trained(temperature=TEMPERATURE),
            seen={
                name: with_distinct_texts(embed(models[name], subset, device=device))
                for name in names
            },
            generator=generator,
        )
        base = mrr(plain.output, test)
        gains = []
        for name in names:
            slug = name.replace(" ", "-")
            store = str(RUNS / f"embeddings-{replicate}-{slug}")
            precompute_reference(
                PrecomputeConfig(data=data, model=models[name], output=store, device="cpu")
            )
            steered = replace(
                plain,
                output=str(RUNS / f"steered-{replicate}-{slug}"),
                objective=ObjectiveConfig(method="drrho_clip"),
                reference=store,
            )
            train_recipe(steered)
            gains.append(mrr(steered.output, test) - base)
            print(f"replicate {replicate}, {name}: {base:.3f} + {gains[-1]:.3f}", file=sys.stderr)
        rows.append({"gain": gains, "plain": base})
        for name in names:
            parameters = load_model(Path(models[name].removeprefix("run:")) / "model").module
            pairs = {"1000 pairs": 1000, "250 pairs": 250, "memorised": PAIRS}.get(name, 4000)
            sizes[name] = sum(p.numel() for p in parameters.parameters()) / 1e6 + pairs / 1e9
        alarms = {n for n in names if (c := found.contamination[n]) is not None and c.alarm}
        probes.append(
            Probe(
                scores={
                    "S": [found.ranked[n].steerability.value for n in names],
                    "S, scaled": [found.ranked[n].scaled.value for n in names],
                    "S, anchors": [found.by_anchor[n].steerability.value for n in names],
                    "S, anchors, scaled": [found.by_anchor[n].scaled.value for n in names],
                    "held-out loss": [-found.held_out_losses[n] for n in names],
                    "size": [sizes[n] for n in names],
                    "variance ratio": [-found.ranked[n].variance_ratio for n in names],
                },
                flagged=alarms,
                revised=alarms | {n for n in names if found.ranked[n].too_close},
            )
        )
    report(OUTPUT, names, probes, rows, title="Captioned scenes: MRR gained")


if __name__ == "__main__":
    main()
