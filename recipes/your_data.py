"""DRRho-CLIP on your own shards: copy, edit, or override any field on the command line.

    drrho index DATA --output train.json
    drrho reference precompute --data train.json --model ViT-B-32 \
        --pretrained laion2b_s34b_b79k --output reference
    drrho train recipes/your_data.py --data train.json --reference reference --output runs/mine

Objective and optimiser are as published for ViT-B/16 on 192 million pairs (arXiv 2505.06699):
temperature 0.01 constant, epsilon 1e-4, gamma 1, learning rate 3.125e-4 at batch 5,120 for 7
epochs (262,500 steps). The batch here is one that fits most GPUs and their hosts; with it a
smaller learning rate is in place.
"""

import drrho

recipe = drrho.Recipe(
    output="runs/mine",
    data="train.json",
    reference="reference",
    loading=drrho.Loading(batch_size=512, workers=4),
    model=drrho.Model(name="ViT-B-16"),
    objective=drrho.DRRhoCLIP(temperature=0.01, epsilon=1e-4, gamma_min=1.0),
    training=drrho.Training(
        steps=20_000,
        precision="bfloat16",
        optimizer=drrho.Optimizer(
            learning_rate=1e-4,
            warmup_steps=500,
            betas=(0.9, 0.98),
            epsilon=1e-6,
            weight_decay=0.2,
        ),
    ),
)
