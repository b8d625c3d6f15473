"""What test_kernels.py runs in a process of its own, in which Triton interprets its kernels.

TRITON_INTERPRET=1 python -m tests.contrastive.kernel_cases OUTPUT
"""

import math
import sys

import torch

from drrho.contrastive.exact import log_gap_means
from drrho.contrastive.pairs import PairEmbeddings
from drrho.contrastive.tiles import kernels
from drrho.contrastive.tiles.triton import Blocks
from tests.contrastive.conftest import draw_pairs

NUM_PAIRS = 37  # neither this nor a dimension is a multiple of the blocks below
BLOCKS = Blocks(rows=16, columns=32, inner=16, warps=4, stages=1)
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def temperatures():
    generator = torch.Generator().manual_seed(0)
    return {
        "cold": torch.tensor(0.01),
        "scalar": torch.tensor(0.07),
        "per direction": torch.tensor([[0.05], [0.2]]),
        "per anchor": 0.05 + torch.rand(2, NUM_PAIRS, generator=generator),
    }


def cases():
    for dtype in DTYPES:
        for name, temperature in temperatures().items():
            for with_reference in (False, True):
                yield (str(dtype), name, with_reference), dtype, temperature, with_reference


def value_and_gradients(function, target, reference, temperature):
    grad_output = torch.randn(
        2, NUM_PAIRS, generator=torch.Generator().manual_seed(5), dtype=torch.float64
    )
    leaves = [e.clone().requires_grad_() for e in (*target, temperature)]
    value = function(PairEmbeddings(*leaves[:2]), reference, temperature=leaves[2])
    # Small, as the gradients of a mean over a large batch are: float16 must not lose them.
    loss = (value * (1e-6 * grad_output).to(value.dtype)).sum()
    return [value.detach(), *torch.autograd.grad(loss, leaves)]


def errors(function, dtype, temperature, with_reference):
    """Against float64 on the same numbers, each relative to the largest entry."""
    models = [draw_pairs(NUM_PAIRS, dim, seed=dim, dtype=dtype) for dim in (23, 40)]
    wide = [PairEmbeddings(*(e.double() for e in pairs)) for pairs in models]
    found, truth = (
        value_and_gradients(f, pairs[0], pairs[1] if with_reference else None, tau)
        for f, pairs, tau in (
            (function, models, temperature),
            (log_gap_means, wide, temperature.double()),
        )
    )
    return [
        ((ours.double() - exact).abs().max() / exact.abs().max()).item()
        for ours, exact in zip(found, truth, strict=True)
    ]


def in_embeddings_precision(target, reference, *, temperature):
    """`log g` as plain code has it under automatic mixed precision: products in half precision,
    forward and backward, and the rest in float32.
    """
    similarities = (target.image @ target.text.T).float()
    if reference is not None:
        similarities = similarities - (reference.image @ reference.text.T).float()
    log_means = []
    for x, tau in zip(
        (similarities, similarities.T), temperature.expand(2, NUM_PAIRS), strict=True
    ):
        z = (x - x.diagonal()[:, None]) / tau[:, None]
        positives = torch.eye(NUM_PAIRS, dtype=torch.bool)
        log_means.append(z.masked_fill(positives, -torch.inf).logsumexp(dim=1))
    return torch.stack(log_means) - math.log(NUM_PAIRS - 1)


def main(output):
    kernels.HALF_BLOCKS = kernels.SINGLE_BLOCKS = BLOCKS
    results = {}
    for name, *case in cases():
        # The coefficients in three parts, or at once.
        kernels.COEFFICIENT_BYTES = 1 if name[1] == "per anchor" else 2**20
        results[name] = errors(kernels.fused_log_gap_means, *case)
    torch.save(results, output)


if __name__ == "__main__":
    main(sys.argv[1])
