"""The methods of the literature beside each other, with references stronger, equal and weaker.

    DRRHO_STUDY=scenes-30 drrho compare recipes/comparison.py

DRRHO_STUDY is scenes-0, scenes-30 or scenes-60 (captioned scenes of which that share, in %, has
another scene's caption), emoji-pictograms or openstax-figures (real captions; DRRHO_DATA names the
folder that holds them, and two sets for zero-shot transfer). The scenes are drawn beforehand into
runs/comparison/scenes:

    cd runs/comparison/scenes
    drrho scenes reference --scenes.num-samples 4000 --scenes.seed 0
    for RATE in 0 30 60; do drrho scenes train-$RATE --scenes.num-samples 4000 --scenes.seed 1 \
        --scenes.mismatch-rate 0.$RATE; done
    drrho scenes validation --scenes.num-samples 500 --scenes.seed 2
    drrho scenes test --scenes.num-samples 1000 --scenes.seed 3

DRRHO_METHODS, names with commas between them, takes some of the methods and the references that
these name: `openclip,jest,jest_published`.

Every method has three settings, learning rates, of which the validation set chooses one. The
references learn from other pairs than the targets, the scenes' with right captions.
"""

import math
import os
from dataclasses import replace

import drrho

STUDY = os.environ.get("DRRHO_STUDY", "scenes-30")
DATA = os.environ.get("DRRHO_DATA", "../shared/data")
SCENES = "runs/comparison/scenes"
LEARNING_RATES = (5e-4, 1e-3, 2e-3)
STEPS, BATCH_SIZE = 100, 128
TEMPERATURE = 0.07  # of the references, and of the targets at the start
RHO = 4.0  # below log(BATCH_SIZE - 1) = 4.84, so that learned temperatures can reach it

kind, _, rate = STUDY.partition("-")
seeds, transfer = (0, 1, 2, 3, 4), {}  # transfer: zero-shot, after all training
match kind:
    case "scenes":
        reference_data, validation, test = (
            f"{SCENES}/{name}" for name in ("reference", "validation", "test")
        )
        train = f"{SCENES}/train-{rate}"
    case "emoji" | "openstax":
        folder = f"{DATA}/{STUDY}"
        halves = ("0000..0004", "0005..0009") if kind == "emoji" else ("0000..0001", "0002..0004")
        reference_data, train = (f"{folder}/train-{{{half}}}.tar" for half in halves)
        validation, test = f"{folder}/val-0000.tar", f"{folder}/test-0000.tar"
        if kind == "openstax":  # photographs, unlike emoji; and long captions, which take time
            seeds = (0, 1, 2)
            transfer = {it: f"{DATA}/classification/{it}" for it in ("eurosat", "grocerystore")}
    case _:
        raise ValueError(f"DRRHO_STUDY = {STUDY!r} is no study; see {__file__}")


def small(image_width: int, text_width: int) -> drrho.Model:
    widths = drrho.SmallConfig(image_width=image_width, text_width=text_width, text_heads=2)
    return drrho.Model(name="small", small=widths)


def steps(number: int, learning_rate: float = 1e-3) -> drrho.Training:
    optimizer = drrho.Optimizer(
        learning_rate=learning_rate, warmup_steps=number // 10, weight_decay=0.1
    )
    return drrho.Training(
        steps=number,
        optimizer=optimizer,
        log_every=10,
        evaluate_every=number,
        checkpoint_every=number,
    )


def settings(recipe: drrho.Recipe) -> tuple[drrho.Recipe, ...]:
    return tuple(
        replace(recipe, training=steps(recipe.training.steps, value)) for value in LEARNING_RATES
    )


openclip = drrho.Recipe(
    output=f"runs/comparison/{STUDY}/target",  # each run has its own
    data=train,
    loading=drrho.Loading(batch_size=BATCH_SIZE),
    model=small(8, 64),
    objective=drrho.CLIP(temperature=drrho.Learned(initial=TEMPERATURE)),
    training=steps(STEPS),
    evaluation=drrho.Evaluation(data=validation),
)
# A constant temperature, so that selection and distillation know what it was trained with.
equal = replace(openclip, objective=drrho.CLIP(), data=reference_data, seed=100)
stronger = replace(equal, model=small(16, 96), training=steps(3 * STEPS))
weaker = replace(equal, model=small(4, 32), training=steps(STEPS // 2))

teacher = drrho.DistillationTerm(teacher_temperatures=(TEMPERATURE,))
# SigLIP's bias starts where sigmoid(b) is the share of right pairs: -10 for batches of 32,768.
siglip = replace(
    drrho.SigLIP(temperature=drrho.Learned(initial=0.1)), initial_bias=-math.log(BATCH_SIZE - 1)
)
fastclip = drrho.FastCLIP(temperature=TEMPERATURE)
drrho_clip = drrho.DRRhoCLIP()
top_k = drrho.Selection(
    batch_size=BATCH_SIZE // 2, selection="top_k", reference_temperature=TEMPERATURE
)


def taught(recipe: drrho.Recipe, objective: drrho.Objective) -> drrho.Recipe:
    return replace(recipe, objective=objective, teachers=("stronger",))


steered = replace(openclip, objective=drrho_clip, reference="stronger")
selected = replace(openclip, selection=top_k, reference="stronger")

methods = {
    "openclip": openclip,
    "siglip": replace(openclip, objective=siglip),
    "fastclip_v1": replace(openclip, objective=fastclip),
    "fastclip_v3": replace(
        openclip,
        objective=drrho.FastCLIP(  # the committed runs had no upper limit
            temperature=drrho.Learned(initial=TEMPERATURE, maximum=None), rho=RHO
        ),
    ),
    "isogclr": replace(
        openclip,
        objective=drrho.FastCLIP(
            temperature=drrho.PerSample(initial=TEMPERATURE),
            rho=RHO,
            gamma_min=0.8,
            gamma_schedule="constant",
        ),
    ),
    "jest": replace(selected, selection=replace(top_k, selection="sample")),
    "jest_top_k": selected,
    "jest_published": replace(
        selected, selection=replace(top_k, selection="sample", score="published")
    ),
    "jest_top_k_published": replace(selected, selection=replace(top_k, score="published")),
    "rho_top_k": replace(selected, selection=replace(top_k, selection="rho_top_k")),
    "filter": replace(openclip, filtering=drrho.Filtering(kept_fraction=0.7, reference="stronger")),
    "distillation": taught(
        openclip, drrho.Distillation(teacher_temperatures=teacher.teacher_temperatures)
    ),
    "fastclip_distillation": taught(openclip, replace(fastclip, distillation=teacher)),
    "drrho_clip": steered,
    "drrho_clip_equal": replace(steered, reference="equal"),
    "drrho_clip_weaker": replace(steered, reference="weaker"),
    "drrho_clip_distillation": taught(steered, replace(drrho_clip, distillation=teacher)),
}
# What the target becomes with the captions that the weaker reference stands in for.
ceiling = "openclip"
if STUDY in ("scenes-30", "scenes-60"):
    ceiling = "openclip_right_captions"
    methods[ceiling] = replace(openclip, data=f"{SCENES}/train-0")

references = {"stronger": stronger, "equal": equal, "weaker": weaker}
gap = drrho.GapConfig(weak="weaker", ceiling=ceiling)
if chosen := os.environ.get("DRRHO_METHODS"):
    methods = {name: methods[name] for name in chosen.split(",")}
    used = {method.reference for method in methods.values()}
    references = {name: it for name, it in references.items() if name in used}
    gap = None

recipe = drrho.Comparison(
    output=f"runs/comparison/{STUDY}",
    references=references,
    methods={name: settings(method) for name, method in methods.items()},
    test={"test": test} | transfer,
    seeds=seeds,
    tuning=drrho.TuningConfig(),
    gap=gap,
)
