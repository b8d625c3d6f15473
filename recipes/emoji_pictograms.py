"""CLIP, FastCLIP and DRRho-CLIP on real captions: emoji and pictograms in 14 drawing styles.

    drrho compare recipes/emoji_pictograms.py

The reference learns from one half of the training shards, the targets from the other half, as
it comes: no caption is exchanged. Choices are made on `val` (concepts that no training image
shows); `test` (an unseen style of a mostly seen concept) is read at the end alone. A caption
is not unique, so retrieval is scored on distinct captions.

The data: 18,275 images for training, 908 for validation and 883 for the test, with names and
keywords, under free licences. DRRHO_DATA names the folder that holds `emoji-pictograms/`.
"""

import os
from dataclasses import replace

from drrho.contrastive.objectives.config import ObjectiveConfig
from drrho.data.loading import Loading
from drrho.models.build import Model
from drrho.recipe.recipe import Evaluation, Recipe
from drrho.studies.compare.spec import Comparison
from drrho.training.config import Training
from drrho.training.optimizer import Optimizer

DATA = os.environ.get("DRRHO_DATA", "../shared/data") + "/emoji-pictograms"
OUTPUT = "runs/emoji-pictograms"
STEPS = 420  # 12 epochs of 9,135 pairs in batches of 256

target = Recipe(
    output=f"{OUTPUT}/target",
    data=f"{DATA}/train-{{0005..0009}}.tar",
    loading=Loading(batch_size=256),
    model=Model(name="small"),
    objective=ObjectiveConfig(method="clip"),
    training=Training(
        steps=STEPS,
        optimizer=Optimizer(learning_rate=1e-3, warmup_steps=40, weight_decay=0.1),
        log_every=10,
        evaluate_every=84,
        checkpoint_every=84,
    ),
    evaluation=Evaluation(data=f"{DATA}/val-0000.tar"),
)

recipe = Comparison(
    output=OUTPUT,
    references={"reference": replace(target, data=f"{DATA}/train-{{0000..0004}}.tar", seed=100)},
    methods={
        "clip": target,
        "fastclip": replace(target, objective=ObjectiveConfig(method="fastclip")),
        "drrho_clip": replace(
            target, objective=ObjectiveConfig(method="drrho_clip"), reference="reference"
        ),
    },
    test=f"{DATA}/test-0000.tar",
    seeds=(0, 1, 2),
)
