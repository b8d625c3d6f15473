"""DRRho-CLIP in Lightning: the objective is a callback of the module.

    python examples/hosts/lightning_clip.py --output runs/lightning_clip

`Model` is the module to copy: the loss comes from `self.steering`, which is given to the Trainer by
`configure_callbacks`. The averages of the loss are in Lightning's checkpoints: run again with the
same --output it goes on at the last one.

Needs `pip install '.[clip,lightning]'` in a clone; the scenes are what needs `clip`.
"""

import math
from collections.abc import Sequence

import torch
from comparison import (
    BATCH,
    LEARNING_RATE,
    PADDING,
    SAVE_EVERY,
    SIZE,
    VOCABULARY,
    WARMUP,
    Pairs,
    Run,
    compare,
)
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn
from torch.nn.functional import normalize
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

from drrho.contrastive.pairs import PairEmbeddings
from drrho.integrations.lightning import Steering


class Model(LightningModule):
    """Convolutions for images, a bag of words for captions."""

    def __init__(self, steering: Steering, *, steps: int) -> None:
        super().__init__()
        self.steering = steering
        self.steps = steps
        self.image = nn.Sequential(
            *(nn.Conv2d(3, 32, 3, stride=2, padding=1), nn.BatchNorm2d(32), nn.GELU()),
            *(nn.Conv2d(32, 64, 3, stride=2, padding=1), nn.BatchNorm2d(64), nn.GELU()),
            *(nn.Conv2d(64, 128, 3, stride=2, padding=1), nn.BatchNorm2d(128), nn.GELU()),
            *(nn.Flatten(), nn.Linear(128 * (SIZE // 8) ** 2, 64)),
        )
        self.text = nn.Sequential(
            nn.EmbeddingBag(VOCABULARY, 128, padding_idx=PADDING), nn.GELU(), nn.Linear(128, 64)
        )
        self.logit_scale = nn.Parameter(torch.tensor(-math.log(0.07)))

    def forward(self, images: Tensor, texts: Tensor) -> PairEmbeddings:
        return PairEmbeddings(
            normalize(self.image(images), dim=-1), normalize(self.text(texts), dim=-1)
        )

    def training_step(self, batch: list[Tensor], _index: int) -> Tensor:
        images, texts, ids = batch
        target = self(images, texts)
        return self.steering.loss(self, target, sample_ids=ids, logit_scale=self.logit_scale.exp())

    def configure_callbacks(self) -> list[Steering]:
        return [self.steering]

    def configure_optimizers(self) -> dict:
        optimizer = torch.optim.AdamW(self.parameters(), lr=LEARNING_RATE, weight_decay=0.1)
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, LEARNING_RATE, total_steps=self.steps, pct_start=WARMUP
        )
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": schedule, "interval": "step"},
        }


def train(run: Run) -> Model:
    torch.manual_seed(run.seed)
    num_samples = len(run.pairs.images)
    samples = TensorDataset(run.pairs.images, run.pairs.texts, torch.arange(num_samples))
    # Lightning tells it the epoch, so that a resumed run has the batches of an uninterrupted one.
    # For several processes make it in `train_dataloader` of the module, without the two numbers.
    order = DistributedSampler(samples, num_replicas=1, rank=0, seed=run.seed)
    batches = DataLoader(samples, BATCH, sampler=order, drop_last=True)
    steering = Steering(run.objective, num_samples=num_samples, reference=run.reference)
    model = Model(steering, steps=run.epochs * len(batches))
    trainer = Trainer(
        max_epochs=run.epochs,
        accelerator="cpu",
        callbacks=[
            ModelCheckpoint(
                run.folder, filename="{epoch}", every_n_epochs=SAVE_EVERY, save_top_k=-1
            )
        ],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    last = max(run.folder.glob("*.ckpt"), key=lambda path: path.stat().st_mtime, default=None)
    trainer.fit(model, batches, ckpt_path=last)
    return model.eval()


@torch.no_grad()
def embed(model: Model, pairs: Pairs) -> PairEmbeddings:
    return model(pairs.images, pairs.texts)


def main(arguments: Sequence[str] | None = None) -> dict[str, float]:
    return compare(train, embed, arguments, output="runs/lightning_clip")


if __name__ == "__main__":
    torch.set_num_threads(1)  # models this small are not worth dividing
    main()
