"""What test_implementations.py compares, and runs in a process in which Triton is interpreted.

TRITON_INTERPRET=1 python -m tests.contrastive.implementation_cases OUTPUT
"""

import sys

import torch

from drrho.contrastive.objectives.objective import ContrastiveObjective
from drrho.contrastive.pairs import PairEmbeddings
from drrho.contrastive.tiles import kernels
from tests.contrastive.collectives import CONFIGS
from tests.contrastive.conftest import draw_pairs
from tests.contrastive.kernel_cases import BLOCKS, NUM_PAIRS


def two_steps(config, impl, *, dtype=torch.float32, device="cpu"):
    """Losses, gradients and the state after two steps with embeddings of the same pairs."""
    objective = ContrastiveObjective(config, num_samples=NUM_PAIRS, impl=impl).to(device, dtype)
    reference = PairEmbeddings(
        *(e.to(device) for e in draw_pairs(NUM_PAIRS, 40, seed=1, dtype=dtype))
    )
    found = []
    for step in range(2):
        drawn = draw_pairs(NUM_PAIRS, 23, seed=2 + step, dtype=dtype)
        leaves = [e.to(device).requires_grad_() for e in drawn]
        loss = objective(
            PairEmbeddings(*leaves),
            reference if config.needs_reference else None,
            sample_ids=torch.arange(NUM_PAIRS, device=device),
            gamma=0.6,
            teachers=config.num_teachers * [reference],
        ).loss
        parameters = list(objective.parameters())
        loss.backward()
        found += [loss.detach(), *(tensor.grad for tensor in [*leaves, *parameters])]
        objective.zero_grad()
    return [*found, *objective.state_dict().values()]


def main(output):
    kernels.SINGLE_BLOCKS = BLOCKS
    names = [name for name in CONFIGS if not name.startswith("SigLIP")]
    found = {name: two_steps(CONFIGS[name], "triton") for name in names}
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found["under autocast"] = two_steps(CONFIGS["CLIP"], "triton")
    torch.save(found, output)


if __name__ == "__main__":
    main(sys.argv[1])
