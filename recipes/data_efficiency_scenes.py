r"""FastCLIP and DRRho-CLIP on 1/8 to all of the data, at equal samples seen, on captioned scenes.

    SCENES=runs/data-efficiency-scenes/scenes
    drrho scenes $SCENES/reference --scenes.num-samples 8000 --scenes.seed 200
    drrho scenes $SCENES/train --scenes.num-samples 8000 --scenes.seed 201 \
        --scenes.mismatch-rate 0.3 --scenes.samples-per-shard 1000
    drrho scenes $SCENES/validation --scenes.num-samples 500 --scenes.seed 202
    drrho scenes $SCENES/test --scenes.num-samples 1000 --scenes.seed 203
    drrho compare recipes/data_efficiency_scenes.py
    drrho scaling efficiency runs/data-efficiency-scenes/results.json

24 runs after the reference: two methods, four amounts of data, three seeds. `fastclip+2` is
trained on 2 of 8 shards of 1,000 scenes each, of which 30 % have the caption of another.
"""

from dataclasses import replace

import drrho

OUTPUT = "runs/data-efficiency-scenes"
STEPS = 120  # of 128 pairs


OBJECTIVES = {"clip": drrho.CLIP(), "fastclip": drrho.FastCLIP(), "drrho_clip": drrho.DRRhoCLIP()}


def run(method: str, shards: int) -> drrho.Recipe:
    return drrho.Recipe(
        output=OUTPUT,
        data=f"{OUTPUT}/scenes/train/scenes-{{0000..{shards - 1:04d}}}.tar",
        loading=drrho.Loading(batch_size=128),
        model=drrho.Model(name="small", small=drrho.SmallConfig(text_width=96, text_heads=3)),
        objective=OBJECTIVES[method],
        reference="scenes" if method == "drrho_clip" else None,
        training=drrho.Training(
            steps=STEPS,
            optimizer=drrho.Optimizer(learning_rate=1e-3, warmup_steps=20, weight_decay=0.1),
            log_every=10,
            checkpoint_every=STEPS,
        ),
        evaluation=drrho.Evaluation(data=f"{OUTPUT}/scenes/validation"),
    )


recipe = drrho.Comparison(
    output=OUTPUT,
    references={"scenes": replace(run("clip", 8), data=f"{OUTPUT}/scenes/reference", seed=1000)},
    methods={
        f"{method}+{shards}": run(method, shards)
        for method in ("fastclip", "drrho_clip")
        for shards in (1, 2, 4, 8)
    },
    test=f"{OUTPUT}/scenes/test",
    seeds=(0, 1, 2),
)
