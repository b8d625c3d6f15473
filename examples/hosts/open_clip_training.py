"""DRRho-CLIP in open_clip's own training code: its model, optimiser and `train_one_epoch`.

    python examples/hosts/open_clip_training.py --output runs/open_clip_training

Three things differ from what open_clip's main.py does: the loss, the data, which have sample ids,
and the loss's state in the checkpoint. Run again with the same --output it goes on at the last
checkpoint.

Needs `pip install '.[clip]'` in a clone, which brings open_clip.
"""

from argparse import Namespace
from collections.abc import Sequence

import torch
from comparison import (
    BATCH,
    LEARNING_RATE,
    LENGTH,
    SAVE_EVERY,
    SIZE,
    VOCABULARY,
    WARMUP,
    Pairs,
    Run,
    compare,
)
from open_clip import CLIP
from open_clip_train.scheduler import cosine_lr
from open_clip_train.train import train_one_epoch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from drrho.contrastive.pairs import PairEmbeddings
from drrho.integrations.open_clip import DataWithIds, SteeredClipLoss

# What main.py makes of its command line.
ARGS = Namespace(
    accum_freq=1,
    batch_size=BATCH,
    device="cpu",
    distill=False,
    grad_clip_norm=1.0,
    horovod=False,
    log_every_n_steps=100,
    precision="fp32",
    rank=0,
    skip_scheduler=False,
    wandb=False,
    world_size=1,
)


def new_model(seed: int) -> CLIP:
    torch.manual_seed(seed)
    vision = {"image_size": SIZE, "patch_size": 8, "width": 64, "layers": 2, "head_width": 16}
    text = {"context_length": LENGTH, "vocab_size": VOCABULARY}
    text |= {"width": 64, "heads": 4, "layers": 1}
    return CLIP(embed_dim=64, vision_cfg=vision, text_cfg=text, output_dict=True)


def train(run: Run) -> nn.Module:
    num_samples = len(run.pairs.images)
    num_batches = num_samples // BATCH
    steps = run.epochs * num_batches
    model = new_model(run.seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=0.1)
    scheduler = cosine_lr(optimizer, LEARNING_RATE, int(WARMUP * steps), steps)
    loss = SteeredClipLoss(
        run.objective,
        num_samples=num_samples,
        reference=run.reference,
        steps=steps,
        epochs=run.epochs,
    )
    samples = TensorDataset(run.pairs.images, run.pairs.texts, torch.arange(num_samples))

    def batches_of_epoch(epoch: int) -> DataLoader:
        order = torch.Generator().manual_seed(1000 * run.seed + epoch)
        return DataLoader(samples, BATCH, shuffle=True, drop_last=True, generator=order)

    data = DataWithIds(batches_of_epoch, loss, num_samples=num_samples, num_batches=num_batches)

    run.folder.mkdir(parents=True, exist_ok=True)
    start = max((int(path.stem.split("_")[1]) for path in run.folder.glob("epoch_*.pt")), default=0)
    if start > 0:
        checkpoint = torch.load(run.folder / f"epoch_{start}.pt")
        model.load_state_dict(checkpoint["state_dict"])
        optimizer.load_state_dict(checkpoint["optimizer"])
        loss.load_state_dict(checkpoint["loss"])
    for epoch in range(start, run.epochs):
        train_one_epoch(
            model, {"train": data}, loss, epoch, optimizer, None, scheduler, None, args=ARGS
        )
        if (epoch + 1) % SAVE_EVERY == 0 or epoch + 1 == run.epochs:
            checkpoint = {
                "epoch": epoch + 1,
                "state_dict": model.state_dict(),
                "optimizer": optimizer.state_dict(),
                "loss": loss.state_dict(),  # which main.py has no need of
            }
            torch.save(checkpoint, run.folder / f"epoch_{epoch + 1}.pt")
    return model.eval()


@torch.no_grad()
def embed(model: nn.Module, pairs: Pairs) -> PairEmbeddings:
    out = model(pairs.images, pairs.texts)
    return PairEmbeddings(out["image_features"], out["text_features"])


def main(arguments: Sequence[str] | None = None) -> dict[str, float]:
    return compare(train, embed, arguments, output="runs/open_clip_training")


if __name__ == "__main__":
    torch.set_num_threads(1)  # models this small are not worth dividing
    main()
