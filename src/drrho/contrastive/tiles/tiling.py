"""Choices of how the tiles of similarities are computed."""

from dataclasses import dataclass
from typing import Literal

import torch

from drrho.contrastive.pairs import PairEmbeddings
from drrho.runtime.checks import require_at_least, require_choice
from drrho.runtime.distributed import Partition
from drrho.runtime.memory import free_memory

Passes = Literal["separate", "joint"]

# Without a stated budget: the share of a CPU's free memory, divided among the processes, or of a
# GPU's memory for the tiles that are kept.
CPU_SHARE = 1 / 4
GPU_SHARE = 1 / 64


@dataclass(frozen=True, kw_only=True)
class Tiling:
    """How the tiles of similarities are computed; results differ by rounding at most.

    Attributes:
        kept_megabytes: memory of the tiles that the forward pass of a process keeps for the
            backward pass, which computes the others again by another product; 0 keeps none. None
            takes a quarter of the free CPU memory, divided by the number of processes, or a 64th
            of a GPU's. Results do not depend on it.
        passes: "separate" computes the distillation's cross-entropy as two terms, in separate
            passes, as all runs before December 2026 did; "joint" takes student and teachers
            together, in half of the time, and its gradient is exact where both are certain of the
            same pairs. Only for objectives that imitate teachers.
    """

    kept_megabytes: float | None = None
    passes: Passes = "separate"

    def __post_init__(self):
        require_at_least(0, **{"tiling.kept_megabytes": self.kept_megabytes})
        require_choice("tiling.passes", self.passes, Passes)


DEFAULT_TILING = Tiling()
JOINT = Tiling(passes="joint")


def kept_bytes(tiling: Tiling, target: PairEmbeddings, pairs: Partition) -> float:
    """Number of bytes of tiles that this process may keep for a backward pass; 0 without one."""
    if not (torch.is_grad_enabled() and any(embeddings.requires_grad for embeddings in target)):
        return 0
    if tiling.kept_megabytes is not None:
        return 1e6 * tiling.kept_megabytes
    device = target.image.device
    if device.type == "cuda":
        return GPU_SHARE * torch.cuda.get_device_properties(device).total_memory
    return CPU_SHARE * free_memory() / pairs.num_processes
