"""FastCLIP and DRRho-CLIP on 1/8 to all of the data, at equal samples seen, on real captions.

    drrho compare recipes/data_efficiency_emoji.py
    drrho scaling efficiency runs/data-efficiency-emoji/results.json

24 runs after the reference: two methods, four amounts of data, three seeds. `fastclip+2` is
trained on 2 of 8 shards of the emoji and pictograms (see emoji_pictograms.py), of about 1,830
pairs each; the reference on the two others. DRRHO_DATA names the folder that holds
`emoji-pictograms/`.
"""

import os
from dataclasses import replace

import drrho

DATA = os.environ.get("DRRHO_DATA", "../shared/data") + "/emoji-pictograms"
OUTPUT = "runs/data-efficiency-emoji"
STEPS = 120  # of 128 pairs


OBJECTIVES = {"clip": drrho.CLIP(), "fastclip": drrho.FastCLIP(), "drrho_clip": drrho.DRRhoCLIP()}


def run(method: str, shards: int) -> drrho.Recipe:
    return drrho.Recipe(
        output=OUTPUT,
        data=f"{DATA}/train-{{0002..{shards + 1:04d}}}.tar",
        loading=drrho.Loading(batch_size=128),
        model=drrho.Model(name="small"),
        objective=OBJECTIVES[method],
        reference="emoji" if method == "drrho_clip" else None,
        training=drrho.Training(
            steps=STEPS,
            optimizer=drrho.Optimizer(learning_rate=1e-3, warmup_steps=20, weight_decay=0.1),
            log_every=10,
            checkpoint_every=STEPS,
        ),
        evaluation=drrho.Evaluation(data=f"{DATA}/val-0000.tar"),
    )


recipe = drrho.Comparison(
    output=OUTPUT,
    references={
        "emoji": replace(run("clip", 8), data=f"{DATA}/train-{{0000..0001}}.tar", seed=1000)
    },
    methods={
        f"{method}+{shards}": run(method, shards)
        for method in ("fastclip", "drrho_clip")
        for shards in (1, 2, 4, 8)
    },
    test=f"{DATA}/test-0000.tar",
    seeds=(0, 1, 2),
)
