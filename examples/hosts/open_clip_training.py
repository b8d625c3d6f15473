"""open_clip's own `train_one_epoch` with DRRho-CLIP: its loop, its model, our loss and sample ids.

    python examples/hosts/open_clip_training.py --output runs/open_clip_training

A reference learns from clean pairs; the target then learns from pairs of which 40 % have a wrong
caption, once with open_clip's loss and once steered. What is open_clip's own main.py in your copy
stays as it is but for three lines: the loss, the data, and the loss's state beside the checkpoint.
Run again with the same --output it goes on at the last epoch.

Needs `pip install 'drrho[clip]' pandas`.
"""

import argparse
from argparse import Namespace
from pathlib import Path

import torch
from concepts import END, LENGTH, SIZE, Pairs, accuracy, captions, draw
from open_clip import CLIP
from open_clip_train.train import train_one_epoch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from drrho.contrastive.config import ObjectiveConfig, named_objective
from drrho.contrastive.risk import PairEmbeddings
from drrho.integrations.open_clip import DataWithIds, SteeredClipLoss
from drrho.integrations.pairs import set_logit_scale

BATCH = 32
OPTIONS = Namespace(
    device="cpu",
    precision="fp32",
    distill=False,
    accum_freq=2,
    skip_scheduler=True,
    horovod=False,
    grad_clip_norm=None,
    rank=0,
    log_every_n_steps=100,
    world_size=1,
    batch_size=BATCH,
    wandb=False,
)


def new_model(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    vision = {"image_size": SIZE, "patch_size": 4, "width": 32, "layers": 1, "head_width": 16}
    text = {"context_length": LENGTH, "vocab_size": END + 1, "width": 32, "heads": 2, "layers": 1}
    return CLIP(embed_dim=16, vision_cfg=vision, text_cfg=text, output_dict=True)


def train(
    pairs: Pairs,
    objective: ObjectiveConfig,
    reference: PairEmbeddings | None,
    *,
    epochs: int,
    folder: Path,
) -> nn.Module:
    num_samples = len(pairs.images)
    num_batches = num_samples // BATCH
    model = new_model(1)
    set_logit_scale(model, 0.07)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    loss = SteeredClipLoss(
        objective,
        num_samples=num_samples,
        reference=reference,
        steps=epochs * (num_batches // OPTIONS.accum_freq),
        epochs=epochs,
    )
    samples = TensorDataset(pairs.images, pairs.texts, torch.arange(num_samples))

    def batches_of_epoch(epoch: int) -> DataLoader:
        order = torch.randperm(num_samples, generator=torch.Generator().manual_seed(epoch))
        return DataLoader(samples, BATCH, sampler=order.tolist(), drop_last=True)

    data = DataWithIds(batches_of_epoch, loss, num_samples=num_samples, num_batches=num_batches)
    folder.mkdir(parents=True, exist_ok=True)
    start = len(list(folder.glob("epoch_*.loss.pt")))
    if start > 0:
        saved = torch.load(folder / f"epoch_{start}.pt")
        model.load_state_dict(saved["state_dict"])
        optimizer.load_state_dict(saved["optimizer"])
        loss.load_state_dict(torch.load(folder / f"epoch_{start}.loss.pt"))
    for epoch in range(start, epochs):
        train_one_epoch(
            model, {"train": data}, loss, epoch, optimizer, None, None, None, args=OPTIONS
        )
        # As open_clip writes it, and what it leaves out beside it.
        saved = {"epoch": epoch + 1, "state_dict": model.state_dict()}
        saved |= {"optimizer": optimizer.state_dict()}
        torch.save(saved, folder / f"epoch_{epoch + 1}.pt")
        torch.save(loss.state_dict(), folder / f"epoch_{epoch + 1}.loss.pt")
    return model.eval()


def main(argv: list[str] | None = None) -> dict[str, float]:
    parser = argparse.ArgumentParser()
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--samples", type=int, default=1024)
    parser.add_argument("--output", type=Path, default=Path("runs/open_clip_training"))
    options = parser.parse_args(argv)

    test = draw(512, seed=2)
    clean = draw(options.samples, seed=0)
    noisy = draw(options.samples, seed=1, wrong=0.4)
    clip = named_objective("openclip")
    models = {
        "reference": train(
            clean, clip, None, epochs=options.epochs, folder=options.output / "reference"
        )
    }
    with torch.no_grad():
        embedded = models["reference"](noisy.images, noisy.texts)
    reference = PairEmbeddings(embedded["image_features"], embedded["text_features"])
    steered = named_objective("drrho_clip", temperature=0.07)
    for name, objective, stored in (("CLIP", clip, None), ("DRRho-CLIP", steered, reference)):
        models[name] = train(
            noisy, objective, stored, epochs=options.epochs, folder=options.output / name
        )
    found = {}
    for name, model in models.items():
        with torch.no_grad():
            images = model.encode_image(test.images, normalize=True)
            texts = model.encode_text(captions(), normalize=True)
        found[name] = accuracy(images, texts, test.concepts)
        print(f"{name}: {found[name]:.3f}")
    return found


if __name__ == "__main__":
    main()
