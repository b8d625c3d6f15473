"""CLIP, FastCLIP and DRRho-CLIP on real captions: emoji and pictograms in 14 drawing styles.

    drrho compare recipes/emoji_pictograms.py

The reference learns from one half of the training shards, the targets from the other half, as
it comes: no caption is exchanged. Choices are made on `val` (concepts that no training image
shows); `test` (an unseen style of a mostly seen concept) is read at the end alone. A caption
is not unique, so retrieval is scored on distinct captions.

The control. A steered target has seen its own half and, through the reference, the other one.
What would plain training on both halves have given? Two arms answer, FastCLIP with the same
settings on all pairs: `fastclip_both_halves` takes as many steps as the target, and
`fastclip_both_halves_840` as many as reference and target together (12 epochs of both halves).
The plan, written before the first of these runs:

* Hypothesis: plain training on both halves is better than steering, at equal steps already;
  a single earlier run reached an MRR of about 0.50.
* Primary metric: MRR on `test`, mean over three seeds, and its paired difference from
  `drrho_clip`. Nothing is chosen by it, and no arm is added or left out afterwards.
* What it decides: an interval of the difference above 0 means that steering is for references
  whose data cannot be trained on, and README says so beside the gain of steering. An interval
  below 0 means that the reference gives what its data alone do not, and README says that.

The data: 18,275 images for training, 908 for validation and 883 for the test, with names and
keywords, under free licences. DRRHO_DATA names the folder that holds `emoji-pictograms/`.
"""

import os
from dataclasses import replace

import drrho

DATA = os.environ.get("DRRHO_DATA", "../shared/data") + "/emoji-pictograms"
OUTPUT = "runs/emoji-pictograms"
HALF, OTHER_HALF, BOTH = (
    f"{DATA}/train-{{{shards}}}.tar" for shards in ("0005..0009", "0000..0004", "0000..0009")
)
STEPS = 420  # 12 epochs of 9,135 pairs in batches of 256

target = drrho.Recipe(
    output=f"{OUTPUT}/target",
    data=HALF,
    loading=drrho.Loading(batch_size=256),
    model=drrho.Model(name="small"),
    objective=drrho.CLIP(),
    training=drrho.Training(
        steps=STEPS,
        optimizer=drrho.Optimizer(learning_rate=1e-3, warmup_steps=40, weight_decay=0.1),
        log_every=10,
        evaluate_every=84,
        checkpoint_every=84,
    ),
    evaluation=drrho.Evaluation(data=f"{DATA}/val-0000.tar"),
)

fastclip = replace(target, objective=drrho.FastCLIP())

recipe = drrho.Comparison(
    output=OUTPUT,
    references={"reference": replace(target, data=OTHER_HALF, seed=100)},
    methods={
        "clip": target,
        "fastclip": fastclip,
        "drrho_clip": replace(target, objective=drrho.DRRhoCLIP(), reference="reference"),
        "fastclip_both_halves": replace(fastclip, data=BOTH),
        "fastclip_both_halves_840": replace(
            fastclip, data=BOTH, training=replace(target.training, steps=2 * STEPS)
        ),
    },
    test=f"{DATA}/test-0000.tar",
    seeds=(0, 1, 2),
)
