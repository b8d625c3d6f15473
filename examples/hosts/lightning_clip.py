"""Two towers in Lightning, steered: the objective is a callback, and its state in the checkpoints.

    python examples/hosts/lightning_clip.py --output runs/lightning_clip

A reference learns from clean pairs; the target then learns from pairs of which 40 % have a wrong
caption, once by CLIP's loss and once steered.

Needs `pip install 'drrho[lightning]'`.
"""

import argparse
import math
from pathlib import Path

import torch
from concepts import END, LENGTH, SIZE, Pairs, accuracy, captions, draw
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn
from torch.nn.functional import normalize
from torch.utils.data import DataLoader, TensorDataset

from drrho.contrastive.config import ObjectiveConfig, named_objective
from drrho.contrastive.risk import PairEmbeddings
from drrho.integrations.lightning import Steering


class Model(LightningModule):
    """Two towers, trained with the steered loss."""

    def __init__(self, steering: Steering) -> None:
        super().__init__()
        self.steering = steering
        self.image = nn.Sequential(
            nn.Flatten(), nn.Linear(3 * SIZE**2, 64), nn.GELU(), nn.Linear(64, 16)
        )
        self.text = nn.Sequential(
            nn.Embedding(END + 1, 16), nn.Flatten(), nn.Linear(16 * LENGTH, 16)
        )
        self.logit_scale = nn.Parameter(torch.tensor(-math.log(0.07)))

    def encode(self, images: Tensor, texts: Tensor) -> PairEmbeddings:
        return PairEmbeddings(
            normalize(self.image(images), dim=-1), normalize(self.text(texts), dim=-1)
        )

    def training_step(self, batch: list[Tensor], _index: int) -> Tensor:
        images, texts, ids = batch
        target = self.encode(images, texts)
        return self.steering.loss(self, target, sample_ids=ids, logit_scale=self.logit_scale.exp())

    def configure_callbacks(self) -> list[Steering]:
        return [self.steering]

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=3e-3)


def train(
    pairs: Pairs,
    objective: ObjectiveConfig,
    reference: PairEmbeddings | None,
    *,
    epochs: int,
    folder: Path,
) -> Model:
    torch.manual_seed(1)
    num_samples = len(pairs.images)
    model = Model(Steering(objective, num_samples=num_samples, reference=reference))
    samples = TensorDataset(pairs.images, pairs.texts, torch.arange(num_samples))
    trainer = Trainer(
        default_root_dir=folder,
        max_epochs=epochs,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    # With ckpt_path=... it goes on at a checkpoint.
    trainer.fit(model, DataLoader(samples, 64, shuffle=True, drop_last=True))
    return model.eval()


def main(argv: list[str] | None = None) -> dict[str, float]:
    parser = argparse.ArgumentParser()
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--samples", type=int, default=1024)
    parser.add_argument("--output", type=Path, default=Path("runs/lightning_clip"))
    options = parser.parse_args(argv)

    test = draw(512, seed=2)
    clean = draw(options.samples, seed=0)
    noisy = draw(options.samples, seed=1, wrong=0.4)
    clip = named_objective("openclip")
    teacher = train(clean, clip, None, epochs=options.epochs, folder=options.output / "reference")
    models = {"reference": teacher}
    with torch.no_grad():
        reference = teacher.encode(noisy.images, noisy.texts)
    steered = named_objective("drrho_clip", temperature=0.07)
    for name, objective, stored in (("CLIP", clip, None), ("DRRho-CLIP", steered, reference)):
        models[name] = train(
            noisy, objective, stored, epochs=options.epochs, folder=options.output / name
        )
    found = {}
    for name, model in models.items():
        with torch.no_grad():
            embedded = model.encode(test.images, captions())
        found[name] = accuracy(embedded.image, embedded.text, test.concepts)
        print(f"{name}: {found[name]:.3f}")
    return found


if __name__ == "__main__":
    main()
