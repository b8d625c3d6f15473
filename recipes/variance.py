"""Variance of the loss, and of the excess loss over three references, on held-out pairs.

The scenes and the references are those of recipes/comparison.py with DRRHO_STUDY=scenes-30.

    FROM=runs/comparison/scenes-30/references
    for NAME in stronger equal weaker; do
        drrho reference precompute --data runs/comparison/scenes/validation \
            --model run:$FROM/$NAME/run --output runs/variance/validation-$NAME
    done
    drrho reference precompute --data runs/comparison/scenes/train-30 \
        --model run:$FROM/stronger/run --output runs/variance/train-stronger
    drrho train recipes/variance.py
    drrho train recipes/variance.py --output runs/variance/clip --reference None \
        --objective.method clip
    drrho variance runs/variance/clip runs/variance/drrho_clip \
        --output docs/results/variance/variance.png
"""

import drrho

SCENES, STORED = "runs/comparison/scenes", "runs/variance"
STEPS = 200  # of 128 pairs

recipe = drrho.Recipe(
    output=f"{STORED}/drrho_clip",
    data=f"{SCENES}/train-30",
    loading=drrho.Loading(batch_size=128),
    model=drrho.Model(
        name="small", small=drrho.SmallConfig(image_width=8, text_width=64, text_heads=2)
    ),
    objective=drrho.DRRhoCLIP(),
    reference=f"{STORED}/train-stronger",
    training=drrho.Training(
        steps=STEPS,
        optimizer=drrho.Optimizer(learning_rate=1e-3, warmup_steps=20, weight_decay=0.1),
        log_every=10,
        evaluate_every=10,
        checkpoint_every=STEPS,
    ),
    evaluation=drrho.Evaluation(
        data=f"{SCENES}/validation",
        references=tuple(f"{STORED}/validation-{it}" for it in ("stronger", "equal", "weaker")),
    ),
)
