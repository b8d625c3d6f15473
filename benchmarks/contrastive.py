"""Time and memory of contrastive losses beside plain code, from 1,024 to 65,536 pairs.

    python benchmarks/contrastive.py > benchmarks/contrastive.md

Forward and backward of the loss alone, given the embeddings. What is compared runs in turn; peak
memory is measured in a fresh process each. Progress goes to standard error.
"""

import argparse
import ctypes
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from measuring import in_turn, machine
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

from drrho.contrastive.exact import log_anchor_losses
from drrho.contrastive.objectives.distillation import Teacher, tiled_distillation_anchor_losses
from drrho.contrastive.objectives.global_risk import GlobalContrastiveLoss
from drrho.contrastive.objectives.siglip import tiled_siglip_anchor_losses
from drrho.contrastive.pairs import PairEmbeddings
from drrho.contrastive.tiles.implementation import Implementation
from drrho.contrastive.tiles.log_sums import tiled_log_gap_means
from drrho.contrastive.tiles.tiling import JOINT, Tiling
from drrho.models.build import Model, build_model

BATCHES = [1024, 2048, 4096, 8192, 16384, 32768, 65536]
TAU, EPSILON = 0.05, 1e-4
# From here on one repeat, minutes long, says enough.
ONCE_FROM = 32768
# B x B float32 matrices that a method holds at its peak, to leave out what would not fit.
MATRICES = {"clip": 4, "published": 16}
SHARE_OF_MEMORY = 0.7
STEP_BATCH, STEP_MICRO_BATCH, STORED_ROWS = 1024, 32, 200_000


def embeddings(batch: int, dim: int) -> list[PairEmbeddings]:
    """Of a target and of a reference, with pairs that resemble each other."""
    generator = torch.Generator().manual_seed(0)
    models = []
    for _ in range(2):
        image = torch.randn(batch, dim, generator=generator)
        text = image + torch.randn(batch, dim, generator=generator)
        models.append(PairEmbeddings(normalize(image, dim=1), normalize(text, dim=1)))
    return models


def four_products(target: PairEmbeddings, _: PairEmbeddings) -> None:
    """The least of arithmetic: two matrices of similarities, two products of their gradients."""
    for _ in range(4):
        for rows in target.image.split(1024):
            rows @ target.text.T


def clip(target: PairEmbeddings, _: PairEmbeddings, tau: Tensor) -> Tensor:
    """CLIP's loss without a reference, as it is usually written."""
    logits = target.image @ target.text.T / tau
    labels = torch.arange(len(logits))
    return (cross_entropy(logits, labels) + cross_entropy(logits.T, labels)) / 2


def published(target: PairEmbeddings, reference: PairEmbeddings, tau: Tensor) -> Tensor:
    """DRRho-CLIP as the published code is built: each direction with matrices of its own.

    Two similarity matrices of the target and two of the reference, masks of the positives, u
    detached, and weighted sums in place of logarithms.
    """
    num_pairs = len(target.image)
    mask = 1 - torch.eye(num_pairs)
    total = torch.zeros(())
    for (anchors, others), (anchors_ref, others_ref) in (
        (target, reference),
        (target[::-1], reference[::-1]),
    ):
        similarity = anchors @ others.T
        similarity_ref = anchors_ref @ others_ref.T
        gaps = similarity - similarity.diagonal()[:, None]
        gaps_ref = similarity_ref - similarity_ref.diagonal()[:, None]
        differences = (gaps - gaps_ref) / tau
        with torch.no_grad():
            exponentials = differences.exp() * mask
            u = (exponentials.sum(dim=1, keepdim=True) / num_pairs + EPSILON).log()
            weights = (differences - u).exp() * mask
        of_anchors = (weights * differences).sum(dim=1) / (num_pairs - 1)
        total = total + of_anchors.mean() + u.mean() / 2
    return tau * total


def ours(
    target: PairEmbeddings,
    reference: PairEmbeddings | None,
    tau: Tensor,
    *,
    kept_megabytes: float | None = None,
) -> Tensor:
    tiling = Tiling(kept_megabytes=kept_megabytes)
    log_means = tiled_log_gap_means(target, reference, temperature=tau, tiling=tiling)
    return tau * log_anchor_losses(log_means, EPSILON).mean()


def siglip(target: PairEmbeddings, _: PairEmbeddings, tau: Tensor) -> Tensor:
    bias = torch.tensor(-10.0, requires_grad=True)
    return tiled_siglip_anchor_losses(target, temperature=tau, bias=bias).mean()


def distillation(
    target: PairEmbeddings,
    reference: PairEmbeddings,
    tau: Tensor,
    *,
    impl: Implementation = JOINT,
) -> Tensor:
    teachers = [Teacher(reference, 0.01)]
    return tiled_distillation_anchor_losses(target, teachers, temperature=tau, impl=impl).mean()


def stepped(loss: Callable, *, learned: bool = False, with_reference: bool = True) -> Callable:
    """Forward and backward, into fresh gradients of the target's embeddings."""

    def call(target: PairEmbeddings, reference: PairEmbeddings) -> None:
        leaves = PairEmbeddings(*(e.detach().requires_grad_() for e in target))
        tau = torch.tensor(TAU, requires_grad=learned)
        loss(leaves, reference if with_reference else None, tau).backward()

    return call


METHODS = {
    "four products": four_products,
    "clip": stepped(clip),
    "published": stepped(published),
    "ours": stepped(ours),
    "ours, learned temperature": stepped(ours, learned=True),
    "ours, no tiles kept": stepped(partial(ours, kept_megabytes=0)),
    "ours, 200 MB of tiles kept": stepped(partial(ours, kept_megabytes=200)),
    "ours, no reference": stepped(ours, with_reference=False),
    "SigLIP": stepped(siglip, learned=True),
    "distillation": stepped(distillation),
    "distillation, separate passes": stepped(partial(distillation, impl="tiles")),
}
LARGE = ("four products", "ours", "ours, no tiles kept")


def fits(method: str, batch: int) -> bool:
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return MATRICES.get(method, 0) * 4 * batch**2 < SHARE_OF_MEMORY * memory


def megabytes(name: str) -> float:
    """A line of /proc/self/status."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name)) * 1024 / 1e6


def print_peak(method: str, batch: int, dim: int) -> None:
    """Peak of this process above what it had before the call, the gradients taken off."""
    METHODS[method](*embeddings(64, dim))  # what libraries allocate once
    models = embeddings(batch, dim)
    ctypes.CDLL(None).malloc_trim(0)  # what drawing them freed is not to serve the call
    Path("/proc/self/clear_refs").write_text("5")
    before = megabytes("VmRSS")
    METHODS[method](*models)
    gradients = 0 if method == "four products" else 2 * batch * dim * 4 / 1e6
    print(max(0.0, megabytes("VmHWM") - before - gradients))


def peak_megabytes(method: str, batch: int, dim: int) -> float | None:
    if not Path("/proc/self/clear_refs").exists():
        return None
    options = ["--peak-of", method, "--batch", str(batch), "--dim", str(dim)]
    command = [sys.executable, __file__, *options]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


@dataclass(frozen=True, kw_only=True)
class Row:
    """Median seconds, the middle half of the ratios to four products, megabytes."""

    batch: int
    method: str
    seconds: float
    ratio: float
    ratio_range: tuple[float, float]
    peak: float | None


def measured(batch: int, dim: int, *, methods: Sequence[str], budget: float) -> list[Row]:
    names = [name for name in METHODS if name in methods and fits(name, batch)]
    if batch >= ONCE_FROM:
        names = [name for name in names if name in LARGE]
    models = embeddings(batch, dim)
    seconds = in_turn(
        [lambda name=name: METHODS[name](*models) for name in names],
        budget=budget,
        fewest=1 if batch >= ONCE_FROM else 5,
    )
    ratios = seconds / seconds[:, :1]
    rows = []
    for column, name in enumerate(names):
        low, middle, high = np.quantile(ratios[:, column], [0.25, 0.5, 0.75])
        peak = peak_megabytes(name, batch, dim)
        rows.append(
            Row(
                batch=batch,
                method=name,
                seconds=float(np.median(seconds[:, column])),
                ratio=float(middle),
                ratio_range=(float(low), float(high)),
                peak=peak,
            )
        )
        say(f"B = {batch:,}: {name}: {middle:.2f} of four products, {peak or 0:,.0f} MB")
    return rows


def table(rows: Sequence[Row]) -> list[str]:
    lines = [
        "| B | loss | seconds | of four products | middle half | memory, MB |",
        "|---:|---|---:|---:|---:|---:|",
    ]
    for row in rows:
        low, high = row.ratio_range
        peak = "" if row.peak is None else f"{row.peak:,.0f}"
        numbers = f"{row.seconds:.3g} | {row.ratio:.2f} | {low:.2f} to {high:.2f} | {peak}"
        lines.append(f"| {row.batch:,} | {row.method} | {numbers} |")
    return lines


def steering_seconds(folder: Path, dim: int) -> float:
    """Of all that steering adds to a step: stored rows, the loss and its per-sample averages."""
    path = folder / "reference.f16"
    shape = (STORED_ROWS, 2, dim)
    written = np.memmap(path, dtype=np.float16, mode="w+", shape=shape)
    written[:] = np.random.default_rng(0).standard_normal(shape, dtype=np.float32) / dim**0.5
    written.flush()
    stored = torch.from_numpy(np.memmap(path, dtype=np.float16, mode="c", shape=shape))
    loss = GlobalContrastiveLoss(STORED_ROWS, epsilon=EPSILON)
    target, _ = embeddings(STEP_BATCH, dim)
    generator = torch.Generator().manual_seed(0)

    def step() -> None:
        ids = torch.randperm(STORED_ROWS, generator=generator)[:STEP_BATCH]
        reference = stored[ids].float()
        leaves = PairEmbeddings(*(e.detach().requires_grad_() for e in target))
        value = loss(
            leaves,
            PairEmbeddings(reference[:, 0], reference[:, 1]),
            temperature=torch.tensor(TAU),
            sample_ids=ids,
            gamma=0.9,
        )
        value.backward()

    return float(np.median(in_turn([step], budget=5)))


def training_seconds() -> float:
    """Of forward and backward of open_clip's ViT-S-16 for STEP_BATCH pairs."""
    model = build_model(Model(name="ViT-S-16"), seed=0).module
    images = torch.randn(STEP_MICRO_BATCH, 3, 224, 224)
    tokens = torch.randint(1, 49_000, (STEP_MICRO_BATCH, 77))

    def micro_batch() -> None:
        embedded = model.encode_image(images).sum() + model.encode_text(tokens).sum()
        embedded.backward()

    seconds = float(np.median(in_turn([micro_batch], budget=20, fewest=3)))
    return seconds * STEP_BATCH / STEP_MICRO_BATCH


def step_section(dim: int) -> list[str]:
    with tempfile.TemporaryDirectory() as folder:
        steering = steering_seconds(Path(folder), dim)
    say("steering measured; now ViT-S/16")
    training = training_seconds()
    return [
        f"## Steering in a step of ViT-S/16, B = {STEP_BATCH:,}",
        "",
        f"Reading {STEP_BATCH:,} stored float16 rows, the whole loss forward and backward and the",
        f"update of the per-sample averages: {1e3 * steering:.0f} ms. Forward and backward of the",
        f"towers, measured for {STEP_MICRO_BATCH} pairs and multiplied: {training:.0f} s.",
        f"Share: {100 * steering / training:.2f} %.",
    ]


def say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", nargs="+", type=int, default=BATCHES)
    parser.add_argument("--dim", type=int, default=512, help="of target and reference")
    parser.add_argument("--seconds", type=float, default=30.0, help="for each batch size")
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), default=list(METHODS))
    parser.add_argument("--json", type=Path, help="write the rows there too")
    parser.add_argument("--no-step", action="store_true", help="leave ViT-S/16 out")
    parser.add_argument("--peak-of", choices=list(METHODS), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.peak_of:
        print_peak(options.peak_of, options.batch[0], options.dim)
        return

    lines = ["# Contrastive losses: time and memory", "", machine(), ""]
    rows: list[Row] = []
    methods = ["four products", *options.methods]
    for batch in options.batch:
        rows += measured(batch, options.dim, methods=methods, budget=options.seconds)
    lines += [*table(rows), ""]
    if not options.no_step:
        lines += step_section(options.dim)
    print("\n".join(lines).rstrip())
    if options.json:
        options.json.write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n")


if __name__ == "__main__":
    main()
