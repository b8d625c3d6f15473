"""What AdamW's epsilon makes of the factor 2B / (B - 1) of the published loss.

    python benchmarks/adamw.py > benchmarks/adamw.md          # four minutes on one core

The published loss of FastCLIP and DRRho-CLIP is 2B / (B - 1) times the exact one. AdamW divides
its first moment by the root of the second plus epsilon: a factor k of the loss is a factor 1 / k of
epsilon. How much longer an update gets is measured along a run, of the optimiser's own moments
at a step: the 2-norm of the update with epsilon / k over that with epsilon.
"""

import argparse
import tempfile
from pathlib import Path

import torch
from measuring import machine
from torch import Tensor
from torch.nn.functional import normalize

import drrho
from drrho.contrastive.objectives.objective import ContrastiveObjective
from drrho.contrastive.pairs import PairEmbeddings
from drrho.data.loading import Position, training_batches
from drrho.data.manifest import Manifest
from drrho.data.scenes import ScenesConfig, write_scenes
from drrho.models.build import build_model
from drrho.models.open_clip import import_open_clip
from drrho.training.optimizer import build_optimizer, learning_rate_schedule

EPSILON, BETAS = 1e-6, (0.9, 0.98)
BATCH, SAMPLES, STEPS = 128, 2_048, 200
LOGGED = (0, 10, 50, 100, 199)


def update_ratio(moments: list[tuple[Tensor, Tensor]], factor: float) -> float:
    """2-norm of AdamW's update with epsilon / factor over that with epsilon.

    Args:
        moments: first and second moments of each parameter, without their bias.
    """

    def norm(epsilon: float) -> float:
        parts = [(m / (v.sqrt() + epsilon)).square().sum() for m, v in moments]
        return float(torch.stack(parts).sum().sqrt())

    return norm(EPSILON / factor) / norm(EPSILON)


def moments_of(optimizer: torch.optim.Optimizer) -> list[tuple[Tensor, Tensor]]:
    states = optimizer.state.values()
    return [
        (
            state["exp_avg"] / (1 - BETAS[0] ** float(state["step"])),
            state["exp_avg_sq"] / (1 - BETAS[1] ** float(state["step"])),
        )
        for state in states
    ]


def scenes(folder: Path) -> tuple[Tensor, Tensor, drrho.EmbeddingModel]:
    """Images, tokens and a reference that was trained on other scenes."""
    for name, seed in (("own", 1), ("other", 2)):
        write_scenes(folder / name, ScenesConfig(num_samples=SAMPLES, seed=seed))
        drrho.index(folder / name)
    plain = drrho.Recipe(
        output=str(folder / "reference"),
        data=str(folder / "other" / "manifest.json"),
        loading=drrho.Loading(batch_size=BATCH),
        model=drrho.Model(name="small"),
        objective=drrho.CLIP(temperature=drrho.Learned()),
        training=drrho.Training(steps=STEPS, optimizer=drrho.Optimizer(learning_rate=1e-3)),
    )
    drrho.train(plain)
    model = build_model(plain.model, seed=0)
    batches = training_batches(
        Manifest.load(folder / "own" / "manifest.json"),
        model.eval_transform,
        tokenizer=model.tokenizer,
        config=plain.loading,
        position=Position(seed=0, step=0, share=(0, 1)),
    )
    found = [next(batches) for _ in range(SAMPLES // BATCH)]
    images, tokens = (torch.cat([getattr(b, name) for b in found]) for name in ("images", "tokens"))
    return images, tokens, drrho.load(folder / "reference")


def along_a_run(objective: drrho.Objective, reference: PairEmbeddings | None, data) -> list[float]:
    """Ratios at the logged steps of a run of the small model."""
    images, tokens = data
    model = build_model(drrho.Model(name="small"), seed=0)
    loss = ContrastiveObjective(objective, num_samples=SAMPLES)
    config = drrho.Optimizer(learning_rate=1e-3, betas=BETAS, epsilon=EPSILON, warmup_steps=40)
    optimizer = build_optimizer(model.module, config, loss=loss)
    rate = learning_rate_schedule(config, steps=STEPS)
    generator = torch.Generator().manual_seed(0)
    factor, ratios = 2 * BATCH / (BATCH - 1), []
    for step in range(STEPS):
        rows = torch.randperm(SAMPLES, generator=generator)[:BATCH]
        target = PairEmbeddings(
            normalize(model.module.encode_image(images[rows], normalize=False), dim=-1),
            normalize(model.module.encode_text(tokens[rows], normalize=False), dim=-1),
        )
        seen = None if reference is None else PairEmbeddings(*(e[rows] for e in reference))
        optimizer.zero_grad()
        loss(target, seen, sample_ids=rows, gamma=1.0).loss.backward()
        for group in optimizer.param_groups:
            group["lr"] = rate(step) * group["lr_scale"]
        optimizer.step()
        if step in LOGGED:
            ratios.append(update_ratio(moments_of(optimizer), factor))
    return ratios


def at_random_initialisation() -> float:
    """Of the first step of ViT-B/32, on images and captions of noise."""
    torch.manual_seed(0)
    module = import_open_clip().create_model("ViT-B-32")
    images, tokens = torch.randn(32, 3, 224, 224), torch.randint(1, 49_407, (32, 77))
    tokens[:, 20] = 49_407
    target = PairEmbeddings(
        module.encode_image(images, normalize=True), module.encode_text(tokens, normalize=True)
    )
    reference = PairEmbeddings(*(normalize(torch.randn(32, 512), dim=-1) for _ in range(2)))
    loss = ContrastiveObjective(drrho.DRRhoCLIP(temperature=0.01), num_samples=32)
    loss(target, reference, sample_ids=torch.arange(32), gamma=1.0).loss.backward()
    gradients = [p.grad for p in module.parameters() if p.grad is not None]
    return update_ratio([(g, g.square()) for g in gradients], 64 / 31)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.parse_args()
    print(f"# AdamW's epsilon and the factor 2B / (B - 1)\n\n{machine()}\n")
    with tempfile.TemporaryDirectory() as name:
        images, tokens, model = scenes(Path(name))
        with torch.no_grad():
            reference = PairEmbeddings(
                *(
                    normalize(encode(part), dim=-1)
                    for encode, part in (
                        (model.module.encode_image, images),
                        (model.module.encode_text, tokens),
                    )
                )
            )
    rows = {
        "DRRho-CLIP, temperature 0.01": (drrho.DRRhoCLIP(temperature=0.01), reference),
        "DRRho-CLIP, temperature 0.05": (drrho.DRRhoCLIP(temperature=0.05), reference),
        "FastCLIP, temperature 0.05": (drrho.FastCLIP(temperature=0.05), None),
    }
    print(
        "Norm of an update with epsilon / k over that with epsilon = 1e-6, k = 2B / (B - 1): what "
        f"the published factor adds. Small model on drawn scenes, B = {BATCH}, {STEPS} steps at "
        "1e-3 with a warm-up of 40.\n"
    )
    print("| | " + " | ".join(f"step {step}" for step in LOGGED) + " |")
    print("|---|" + "---:|" * len(LOGGED))
    for name, (objective, seen) in rows.items():
        ratios = along_a_run(objective, seen, (images, tokens))
        print(f"| {name} | " + " | ".join(f"{ratio:.3f}" for ratio in ratios) + " |")
    print(
        "\nFirst step of ViT-B/32 at random initialisation, DRRho-CLIP, temperature 0.01, 32 pairs "
        f"of noise: {at_random_initialisation():.3f}."
    )


if __name__ == "__main__":
    main()
