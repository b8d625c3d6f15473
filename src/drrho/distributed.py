"""What every process knows, known to all: the only module that names a process group."""

from typing import NamedTuple

import torch
import torch.distributed as dist
from jaxtyping import Shaped
from torch import Tensor
from torch.distributed import ProcessGroup
from torch.nn.functional import pad

__all__ = ["Gathered", "ProcessGroup", "gather_columns", "num_processes"]


def num_processes(group: ProcessGroup | None) -> int:
    """Processes in the group; None is the default group, or this process alone without one."""
    return dist.get_world_size(group) if dist.is_initialized() else 1


class Gathered(NamedTuple):
    """The columns of all processes, in the order of their ranks.

    Attributes:
        columns: shape (rows, all columns), the same on every process.
        sizes: how many columns each process had.
        rank: this process's place in the group.
    """

    columns: Shaped[Tensor, "rows all"]
    sizes: list[int]
    rank: int

    def own(self, values: Shaped[Tensor, " all"]) -> Shaped[Tensor, " columns"]:
        """Of one value for each column, those of this process's."""
        return values.split(self.sizes)[self.rank]


def gather_columns(columns: Shaped[Tensor, "rows columns"], group: ProcessGroup | None) -> Gathered:
    """Put the columns of all processes beside each other; their numbers may differ.

    Two collectives: the sizes, and the columns padded to the largest size. It waits for the
    device, because the sizes shape what follows; in a single process it does neither.

    Args:
        columns: a matrix with as many rows on every process; detached.
        group: None is the default group, or this process alone without one.
    """
    world = num_processes(group)
    if world == 1:
        return Gathered(columns, [columns.shape[1]], 0)
    sizes = torch.empty(world, dtype=torch.int64, device=columns.device)
    dist.all_gather_into_tensor(
        sizes, torch.tensor([columns.shape[1]], device=columns.device), group=group
    )
    widths = sizes.tolist()
    padded = pad(columns, (0, max(widths) - columns.shape[1]))
    gathered = padded.new_empty(world * len(padded), padded.shape[1])
    dist.all_gather_into_tensor(gathered, padded.contiguous(), group=group)
    by_rank = gathered.view(world, *padded.shape)
    parts = [part[:, :width] for part, width in zip(by_rank, widths, strict=True)]
    return Gathered(torch.cat(parts, dim=1), widths, dist.get_rank(group))
