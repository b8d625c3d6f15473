r"""Weak-to-strong on captioned scenes, in replicates: is it the steering, or what else would do it?

    OMP_NUM_THREADS=1 drrho compare recipes/weak_to_strong.py

The plan, with hypotheses and primaries, is docs/results/plan.md ("R2"). A target learns from 2,000
pairs of which 30 % have the caption of another; its reference, of the same architecture, has
learned from 1,000 right pairs. Every replicate draws all scenes, the reference and the targets
anew. Replicate 1000 chooses the settings of every method, nine each, by its validation set, whose
captions are as wrong as the target's; it is not reported.

The primaries need five arms; to run these first:

    for ARM in plain drrho union_equal_compute union_drrho union_distillation; do
        drrho compare recipes/weak_to_strong.py --only $ARM:{0..7}
    done
"""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import drrho

OUTPUT = "runs/weak-to-strong"
PAIRS, REFERENCE_PAIRS, WRONG = 2000, 1000, 0.3
BATCH_SIZE, STEPS, REFERENCE_STEPS = 128, 200, 400
# As many steps as target, reference and its forward passes (a third of a step's) together.
TOTAL_STEPS = STEPS + REFERENCE_STEPS + round(PAIRS / 3 / BATCH_SIZE)
TEMPERATURE = 0.07
RATES = (5e-4, 1.2e-3, 3e-3)
# Nine, for methods that have no strength of their own: the same effort, the grid twice as wide.
MORE_RATES = (2.5e-4, 3.5e-4, 5e-4, 7e-4, 1e-3, 1.4e-3, 2e-3, 2.8e-3, 4e-3)
STRENGTHS = (0.2, 0.5, 1.0)  # of the reference
WEIGHTS = (0.3, 1.0, 3.0)  # of the distillation
KEPT = (0.9, 0.7, 0.5)  # by the filter
LOADED = (160, 192, 256)  # by JEST, which trains on as many as the others
MODEL = drrho.SmallConfig(embed_dim=64, image_width=8, text_width=64, text_layers=1, text_heads=2)


def scenes(replicate: int, name: str) -> str:
    return f"{OUTPUT}/replicate-{replicate}/scenes/{name}.json"


def prepare(replicate: int) -> None:
    """Draws the sets of a replicate, with seeds of its own, and indexes them and the union."""
    first = 10_000 + 10 * replicate
    sets = {  # pairs, share with the caption of another, seed
        "reference": (REFERENCE_PAIRS, 0, first),
        "placebo": (REFERENCE_PAIRS, 0.99, first),
        "train": (PAIRS, WRONG, first + 1),
        "validation": (500, WRONG, first + 2),
        "test": (1000, 0, first + 3),
    }
    folder = Path(scenes(replicate, "test")).parent
    for name, values in sets.items():
        options = zip(("num-samples", "mismatch-rate", "seed"), values, strict=True)
        draw = [word for option, value in options for word in (f"--scenes.{option}", str(value))]
        subprocess.run(
            [sys.executable, "-m", "drrho", "scenes", str(folder / name), *draw], check=True
        )
        drrho.index(str(folder / name), output=scenes(replicate, name))
    union = f"{folder}/{{reference/scenes-0000,train/scenes-0000,train/scenes-0001}}.tar"
    drrho.index(union, output=scenes(replicate, "union"))


def training(learning_rate: float, steps: int) -> drrho.Training:
    return drrho.Training(
        steps=steps,
        optimizer=drrho.Optimizer(
            learning_rate=learning_rate, warmup_steps=steps // 10, weight_decay=0.1
        ),
        log_every=20,
        evaluate_every=steps,
        checkpoint_every=steps,
    )


def at_rates(recipe: drrho.Recipe) -> tuple[drrho.Recipe, ...]:
    """Nine settings of a method without a strength."""
    return tuple(replace(recipe, training=training(it, recipe.training.steps)) for it in MORE_RATES)


def at_strengths(recipes: list[drrho.Recipe]) -> tuple[drrho.Recipe, ...]:
    """Nine settings of a method that has three strengths."""
    return tuple(
        replace(recipe, training=training(rate, recipe.training.steps))
        for rate in RATES
        for recipe in recipes
    )


def comparison(replicate: int) -> drrho.Comparison:
    plain = drrho.Recipe(
        output="",
        data=scenes(replicate, "train"),
        loading=drrho.Loading(batch_size=BATCH_SIZE),
        model=drrho.Model(name="small", small=MODEL),
        objective=drrho.FastCLIP(temperature=TEMPERATURE),
        training=training(1e-3, STEPS),
        evaluation=drrho.Evaluation(data=scenes(replicate, "validation")),
    )
    reference = replace(
        plain,
        data=scenes(replicate, "reference"),
        training=training(1e-3, REFERENCE_STEPS),
        seed=20_000 + replicate,
    )
    union = replace(plain, data=scenes(replicate, "union"))

    def steered(like: drrho.Recipe, by: str = "reference") -> list[drrho.Recipe]:
        return [
            replace(
                like,
                objective=drrho.DRRhoCLIP(temperature=TEMPERATURE, reference_scale=strength),
                reference=by,
            )
            for strength in STRENGTHS
        ]

    def taught(like: drrho.Recipe, objective: drrho.FastCLIP | drrho.DRRhoCLIP):
        return [
            replace(
                like,
                objective=replace(
                    objective,
                    distillation=drrho.DistillationTerm(
                        teacher_temperatures=(TEMPERATURE,), weight=weight
                    ),
                ),
                teachers=("reference",),
            )
            for weight in WEIGHTS
        ]

    def selected(score: str) -> list[drrho.Recipe]:
        return [
            replace(
                plain,
                loading=drrho.Loading(batch_size=loaded),
                selection=drrho.Selection(
                    batch_size=BATCH_SIZE, score=score, reference_temperature=TEMPERATURE
                ),
                reference="reference",
            )
            for loaded in LOADED
        ]

    filtered = [
        replace(plain, filtering=drrho.Filtering(kept_fraction=kept, reference="reference"))
        for kept in KEPT
    ]
    drrho_clip = drrho.DRRhoCLIP(temperature=TEMPERATURE)
    both = replace(plain, reference="reference", objective=drrho_clip)
    return drrho.Comparison(
        output=OUTPUT,
        references={
            "reference": reference,
            "placebo": replace(reference, data=scenes(replicate, "placebo")),
        },
        methods={
            "plain": at_rates(plain),
            "drrho": at_strengths(steered(plain)),
            "union_equal_compute": at_rates(replace(union, training=training(1e-3, TOTAL_STEPS))),
            "union_drrho": at_strengths(steered(union)),
            "union_distillation": at_strengths(taught(union, plain.objective)),
            "distillation": at_strengths(taught(plain, plain.objective)),
            "start_from_reference": at_rates(
                replace(plain, model=drrho.Model(name="reference:reference"))
            ),
            "drrho_placebo": at_strengths(steered(plain, by="placebo")),
            "union": at_rates(union),
            "drrho_distillation": at_strengths(taught(both, drrho_clip)),
            "filter": at_strengths(filtered),
            "jest_published": at_strengths(selected("published")),
            "jest_ours": at_strengths(selected("contrastive")),
        },
        test=scenes(replicate, "test"),
        tuning=drrho.TuningConfig(seed=1000),
        threads=1,
    )


recipe = drrho.Replicates(
    output=OUTPUT,
    comparison=comparison,
    replicates=8,
    prepare=prepare,
    primaries=(
        ("drrho", "plain"),
        ("drrho", "reference"),
        ("union_drrho", "union_equal_compute"),
        ("union_drrho", "union_distillation"),
    ),
)
