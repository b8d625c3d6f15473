"""Validation of `drrho probe` on DRRho-CLIP; both plans are in docs/results/probe.md.

    python experiments/probe/scenes.py                  # 12 references, 2 replicates
    python experiments/probe/scenes.py --plan second    # 4 replicates, a smaller learning rate

Finished runs are kept.
"""

import argparse
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent))
from scoring import Probe, report

from drrho.contrastive.objectives.global_risk import DRRhoCLIP, FastCLIP
from drrho.data.indexing import index_shards, open_manifest
from drrho.data.loading import Loading
from drrho.data.manifest import Manifest
from drrho.data.scenes import ScenesConfig, write_scenes
from drrho.evaluation.evaluate import evaluate_model
from drrho.evaluation.sets import EvaluationSet, open_evaluation_set
from drrho.models.build import Model, load_model, save_model
from drrho.models.small import SmallConfig
from drrho.recipe.recipe import Recipe
from drrho.recipe.train import train_recipe
from drrho.reference.build import PrecomputeConfig, precompute_reference
from drrho.studies.probe.pairs import (
    PairsProbe,
    Seen,
    Trained,
    common_pairs,
    embed,
    probe_pairs,
    train_pilots,
    training_subset,
    with_distinct_texts,
)
from drrho.training.config import Training
from drrho.training.optimizer import Optimizer

BATCH, TEMPERATURE = 128, 0.07
PAIRS, HELD_OUT = 2000, 500
MODEL = SmallConfig(embed_dim=64, image_width=8, text_width=64, text_layers=1, text_heads=2)
QUARTER = SmallConfig(embed_dim=16, image_width=2, text_width=16, text_layers=1, text_heads=2)
LARGER = SmallConfig(embed_dim=96, image_width=12, text_width=96, text_layers=1, text_heads=3)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What was fixed before a validation was run.

    Attributes:
        runs, results: folders.
        first_seed: of the scenes; others follow from it.
        steps, reference_steps, pilot_steps, memorised_steps: of the target, a reference, a pilot,
            and the reference that is trained on the target's pairs.
        short_steps: of a short run with each reference, judged on the held-out pairs as its users
            would; None for none.
    """

    runs: Path
    results: Path
    first_seed: int
    learning_rate: float
    replicates: int
    steps: int
    reference_steps: int
    pilot_steps: int
    memorised_steps: int
    short_steps: int | None

    def scenes(self, name: str, config: ScenesConfig) -> str:
        folder = self.runs / "scenes" / name
        write_scenes(folder, config)
        if not (folder / "manifest.json").exists():
            index_shards(folder).save(folder / "manifest.json")
        return str(folder / "manifest.json")

    def recipe(
        self, name: str, data: str, *, steps: int, seed: int, small: SmallConfig = MODEL
    ) -> Recipe:
        warmup_steps = min(20, steps // 4)
        return Recipe(
            output=str(self.runs / name),
            data=data,
            loading=Loading(batch_size=BATCH),
            model=Model(name="small", small=small),
            objective=FastCLIP(),
            training=Training(
                steps=steps,
                optimizer=Optimizer(
                    learning_rate=self.learning_rate, warmup_steps=warmup_steps, weight_decay=0.1
                ),
                log_every=20,
                checkpoint_every=steps,
            ),
            seed=seed,
            device="cpu",
        )

    def references(self) -> dict[str, Recipe]:
        """All that do not depend on the target's pairs and are trained."""
        config = ScenesConfig(num_samples=4000, seed=self.first_seed)
        clean = self.scenes("clean", config)

        def of(name: str, data: str, **fields) -> Recipe:
            given = {"steps": self.reference_steps, "seed": 900} | fields
            return self.recipe(f"reference-{name.replace(' ', '-')}", data, **given)

        def drawn(name: str, **fields) -> str:
            return self.scenes(name, replace(config, **fields))

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


PLANS = {
    "first": Plan(
        runs=Path("runs/probe-scenes"),
        results=Path("docs/results/probe/scenes"),
        first_seed=50,
        learning_rate=2e-3,
        replicates=2,
        steps=100,
        reference_steps=200,
        pilot_steps=50,
        memorised_steps=400,
        short_steps=None,
    ),
    "second": Plan(
        runs=Path("runs/probe-scenes-second"),
        results=Path("docs/results/probe/scenes-second"),
        first_seed=150,
        learning_rate=1e-3,
        replicates=4,
        steps=200,
        reference_steps=400,
        pilot_steps=100,
        memorised_steps=600,
        short_steps=50,
    ),
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


def mrr(run: str, evaluated: EvaluationSet) -> float:
    model = load_model(Path(run.removeprefix("run:")) / "model")
    model.module.eval()
    device = torch.device("cpu")
    return evaluate_model(model, evaluated, device=device, batch_size=250).metrics["mrr"]


def probe(
    plan: Plan, plain: Recipe, models: dict[str, str], held_out: Manifest, replicate: int
) -> PairsProbe:
    """What `drrho probe` does, with references that are embedded once."""
    train = open_manifest(plain.data)
    pilots = train_pilots(
        plain, train, output=plan.runs / f"pilots-{replicate}", steps=plan.pilot_steps
    )
    generator, device = torch.Generator().manual_seed(replicate), torch.device("cpu")
    subset = training_subset(train, HELD_OUT, generator=generator)
    embedded = {name: embed(source, held_out, device=device) for name, source in models.items()}
    pairs = common_pairs(
        {pilot: embed(pilot, held_out, device=device) for pilot in pilots} | embedded
    )
    return probe_pairs(
        [pairs[pilot] for pilot in pilots],
        {name: pairs[name] for name in models},
        trained=Trained(temperature=TEMPERATURE),
        seen=Seen(
            {
                name: with_distinct_texts(embed(source, subset, device=device))
                for name, source in models.items()
            }
        ),
        generator=generator,
    )


def steer(plan: Plan, plain: Recipe, source: str, *, name: str) -> tuple[str, str | None]:
    """The run with a reference, and the short one if the plan has it."""
    store = str(plan.runs / f"embeddings-{name}")
    precompute_reference(
        PrecomputeConfig(data=plain.data, model=source, output=store, device="cpu")
    )

    def trained(prefix: str, steps: int) -> str:
        made = plan.recipe(f"{prefix}-{name}", plain.data, steps=steps, seed=plain.seed)
        objective = DRRhoCLIP()
        train_recipe(replace(made, objective=objective, reference=store))
        return made.output

    short = None if plan.short_steps is None else trained("short", plan.short_steps)
    return trained("steered", plan.steps), short


def scores_of(
    found: PairsProbe, names: list[str], *, sizes: list[float], own: dict[str, list[float]]
) -> dict[str, list[float]]:
    return {
        "S": [found.ranked[n].steerability.value for n in names],
        "S, scaled": [found.ranked[n].scaled.value for n in names],
        "S, anchors": [found.by_anchor[n].steerability.value for n in names],
        "S, anchors, scaled": [found.by_anchor[n].scaled.value for n in names],
        "held-out loss": [-found.held_out_losses[n] for n in names],
        "size": sizes,
        "variance ratio": [-found.ranked[n].variance_ratio for n in names],
    } | own


def size(source: str, name: str) -> float:
    """Millions of parameters; the number of training pairs breaks ties."""
    module = load_model(Path(source.removeprefix("run:")) / "model").module
    pairs = {"1000 pairs": 1000, "250 pairs": 250, "memorised": PAIRS}.get(name, 4000)
    return sum(p.numel() for p in module.parameters()) / 1e6 + pairs / 1e9


def replicated(
    plan: Plan, named: dict[str, str], test: EvaluationSet, replicate: int
) -> tuple[Probe, dict]:
    """One probe and the gains that it should have foretold."""
    noisy = ScenesConfig(
        num_samples=PAIRS, seed=plan.first_seed + 20 + replicate, mismatch_rate=0.3
    )
    data = plan.scenes(f"train-{replicate}", noisy)
    noisy = replace(noisy, num_samples=HELD_OUT, seed=plan.first_seed + 30 + replicate)
    held = plan.scenes(f"held-{replicate}", noisy)
    memorised = plan.recipe(
        f"memorised-{replicate}", data, steps=plan.memorised_steps, seed=990 + replicate
    )
    plain = plan.recipe(f"plain-{replicate}", data, steps=plan.steps, seed=replicate)
    train_recipe(memorised)
    train_recipe(plain)
    models = named | {"memorised": f"run:{memorised.output}"}
    found = probe(plan, plain, models, open_manifest(held), replicate)
    validation, base = open_evaluation_set(held), mrr(plain.output, test)
    gains, own = [], {}
    for name, source in models.items():
        run, short = steer(plan, plain, source, name=f"{replicate}-{name.replace(' ', '-')}")
        gains.append(mrr(run, test) - base)
        if short is not None:
            own.setdefault("held-out MRR", []).append(mrr(source, validation))
            own.setdefault("short run", []).append(mrr(short, validation))
        print(f"replicate {replicate}, {name}: {base:.3f} + {gains[-1]:.3f}", file=sys.stderr)
    names = list(models)
    sizes = [size(source, name) for name, source in models.items()]
    alarms = {n for n in names if (c := found.contamination[n]) is not None and c.alarm}
    probed = Probe(
        scores=scores_of(found, names, sizes=sizes, own=own),
        flagged=alarms,
        revised=alarms | {n for n in names if found.ranked[n].too_close},
    )
    return probed, {"gain": gains, "plain": base}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--plan", choices=PLANS, default="first")
    plan = PLANS[parser.parse_args().plan]
    torch.set_num_threads(1)
    named = {}
    for name, made in plan.references().items():
        train_recipe(made)
        named[name] = f"run:{made.output}"
    source = plan.runs / "reference-4000-pairs"
    named["corrupted"] = corrupted(source, plan.runs / "reference-corrupted")
    tested = ScenesConfig(num_samples=HELD_OUT, seed=plan.first_seed + 10)
    test = open_evaluation_set(plan.scenes("test", tested))
    found = [replicated(plan, named, test, k) for k in range(plan.replicates)]
    probes, rows = ([each[part] for each in found] for part in (0, 1))
    names = [*named, "memorised"]
    report(plan.results, names, probes, rows, title="Captioned scenes: MRR gained")


if __name__ == "__main__":
    main()
