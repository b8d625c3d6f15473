"""The Triton kernels beside the tiles on a GPU: time, share of its peak, memory.

    python benchmarks/kernels.py > benchmarks/kernels.md

Forward and backward of DRRho-CLIP's loss with a reference. The peak is what this GPU reaches in
bfloat16 products of large matrices. First both are compared on a small batch.
"""

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

from drrho.contrastive.exact import log_anchor_losses
from drrho.contrastive.pairs import PairEmbeddings
from drrho.contrastive.tiles.kernels import fused_log_gap_means
from drrho.contrastive.tiles.log_sums import tiled_log_gap_means

REPEATS, PEAK_SIZE = 10, 8192
TAU, EPSILON = 0.05, 1e-4
PLAIN_MATRICES = 6  # B x B, float32, of CLIP's loss without tiles


def embeddings(batch: int, dim: int, dtype: torch.dtype) -> list[PairEmbeddings]:
    generator = torch.Generator("cuda").manual_seed(0)
    models = []
    for _ in range(2):
        image = torch.randn(batch, dim, generator=generator, device="cuda")
        text = image + torch.randn(batch, dim, generator=generator, device="cuda")
        models.append(PairEmbeddings(*(normalize(e, dim=1).to(dtype) for e in (image, text))))
    return models


def gradients(function: Callable, models: list[PairEmbeddings]) -> list[Tensor]:
    leaves = [e.detach().requires_grad_() for e in models[0]]
    tau = torch.tensor(TAU, device="cuda")
    log_means = function(PairEmbeddings(*leaves), models[1], temperature=tau)
    loss = tau * log_anchor_losses(log_means, EPSILON).mean()
    return [loss.detach(), *torch.autograd.grad(loss, leaves)]


def plain_clip(models: list[PairEmbeddings]) -> None:
    leaves = [e.detach().requires_grad_() for e in models[0]]
    logits = (leaves[0] @ leaves[1].T).float() / TAU
    labels = torch.arange(len(logits), device="cuda")
    loss = (cross_entropy(logits, labels) + cross_entropy(logits.T, labels)) / 2
    torch.autograd.grad(loss, leaves)


def seconds_and_bytes(call: Callable[[], object]) -> tuple[float, int]:
    """Median seconds on the device, and peak memory above what was there before."""
    for _ in range(2):
        call()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    seconds = []
    for _ in range(REPEATS):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        call()
        end.record()
        end.synchronize()
        seconds.append(start.elapsed_time(end) / 1e3)
    return sorted(seconds)[REPEATS // 2], torch.cuda.max_memory_allocated() - before


def peak_flops(dtype: torch.dtype) -> float:
    matrix = torch.randn(PEAK_SIZE, PEAK_SIZE, device="cuda", dtype=dtype)
    seconds, _ = seconds_and_bytes(lambda: matrix @ matrix)
    return 2 * PEAK_SIZE**3 / seconds


def check(dim: int, dtype: torch.dtype) -> str:
    """Both against float64 on the same numbers."""
    models = embeddings(1000, dim, dtype)
    wide = [PairEmbeddings(*(e.double() for e in pairs)) for pairs in models]
    truth = gradients(tiled_log_gap_means, wide)
    errors = []
    for function in (tiled_log_gap_means, fused_log_gap_means):
        found = gradients(function, models)
        errors.append(
            max(
                float((ours.double() - exact).abs().max() / exact.abs().max())
                for ours, exact in zip(found, truth, strict=True)
            )
        )
    return f"Largest relative error: tiles {errors[0]:.1e}, kernels {errors[1]:.1e}."


def measured(batch: int, dim: int, dtype: torch.dtype) -> list[dict]:
    models = embeddings(batch, dim, dtype)
    calls = {
        "tiles": lambda: gradients(tiled_log_gap_means, models),
        "kernels": lambda: gradients(fused_log_gap_means, models),
    }
    if PLAIN_MATRICES * 4 * batch**2 < torch.cuda.mem_get_info()[0]:
        calls["plain CLIP, no reference"] = lambda: plain_clip(models)
    # Similarities of target and reference twice, and two products with the coefficients.
    flops = {"tiles": 12, "kernels": 12, "plain CLIP, no reference": 6}
    peak = peak_flops(dtype)
    rows = []
    for name, call in calls.items():
        seconds, num_bytes = seconds_and_bytes(call)
        share = flops[name] * dim * batch**2 / seconds / peak
        rows.append(
            {
                "batch": batch,
                "loss": name,
                "seconds": seconds,
                "share_of_peak": share,
                "bytes": num_bytes,
            }
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", nargs="+", type=int, default=[1024, 4096, 32768])
    parser.add_argument("--dim", type=int, default=512, help="of target and reference")
    parser.add_argument("--dtype", choices=["bfloat16", "float16", "float32"], default="bfloat16")
    parser.add_argument("--json", type=Path, help="write the rows there too")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("kernels.py measures a GPU, and torch finds none")
    dtype = getattr(torch, options.dtype)
    rows = [row for batch in options.batch for row in measured(batch, options.dim, dtype)]
    print(f"# Kernels on {torch.cuda.get_device_name()}\n")
    print(f"PyTorch {torch.__version__}, {options.dtype}, d = {options.dim}, with a reference.")
    print(check(options.dim, dtype), "\n")
    print("| B | loss | ms | share of the measured peak | memory, MB |\n|---:|---|---:|---:|---:|")
    for row in rows:
        milliseconds, megabytes = 1e3 * row["seconds"], row["bytes"] / 1e6
        print(
            f"| {row['batch']:,} | {row['loss']} | {milliseconds:.2f} | "
            f"{row['share_of_peak']:.2f} | {megabytes:,.0f} |"
        )
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
