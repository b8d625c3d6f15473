r"""CLIP and DRRho-CLIP in three sizes at four numbers of samples, on captioned scenes.

    SCENES=runs/scaling-ladder/scenes
    drrho scenes $SCENES/reference --scenes.num-samples 8000 --scenes.seed 100
    drrho scenes $SCENES/train --scenes.num-samples 16000 --scenes.seed 101 \
        --scenes.mismatch-rate 0.3
    drrho scenes $SCENES/validation --scenes.num-samples 500 --scenes.seed 102
    drrho scenes $SCENES/test --scenes.num-samples 1000 --scenes.seed 103
    drrho compare recipes/scaling_ladder.py
    drrho scaling fit runs/scaling-ladder/results.json

24 runs a seed after the reference. 30 % of the captions of the targets' training data are given to
the wrong image. Every run has its own schedule of the learning rate, to the end of its own steps: a
run that was stopped early would be judged before its learning rate had fallen.
"""

from dataclasses import replace

import drrho

OUTPUT = "runs/scaling-ladder"
SIZES = {
    "narrow": drrho.SmallConfig(embed_dim=64, image_width=8, text_width=48, text_heads=3),
    "middle": drrho.SmallConfig(embed_dim=96, image_width=12, text_width=72, text_heads=3),
    "wide": drrho.SmallConfig(embed_dim=128, image_width=18, text_width=108, text_heads=3),
}
STEPS = (25, 50, 100, 200)  # of 128 pairs


OBJECTIVES = {"clip": drrho.CLIP(), "drrho_clip": drrho.DRRhoCLIP()}


def run(method: str, size: str, steps: int) -> drrho.Recipe:
    return drrho.Recipe(
        output=OUTPUT,
        data=f"{OUTPUT}/scenes/train",
        loading=drrho.Loading(batch_size=128),
        model=drrho.Model(name="small", small=SIZES[size]),
        objective=OBJECTIVES[method],
        reference="scenes" if method == "drrho_clip" else None,
        training=drrho.Training(
            steps=steps,
            optimizer=drrho.Optimizer(
                learning_rate=1e-3, warmup_steps=steps // 10, weight_decay=0.1
            ),
            log_every=max(1, steps // 20),
            checkpoint_every=steps,
        ),
        evaluation=drrho.Evaluation(data=f"{OUTPUT}/scenes/validation"),
    )


recipe = drrho.Comparison(
    output=OUTPUT,
    references={
        "scenes": replace(run("clip", "middle", 200), data=f"{OUTPUT}/scenes/reference", seed=1000)
    },
    methods={
        f"{method}+{size}-{steps}": run(method, size, steps)
        for method in OBJECTIVES
        for size in SIZES
        for steps in STEPS
    },
    test=f"{OUTPUT}/scenes/test",
    seeds=(0, 1, 2),
)
