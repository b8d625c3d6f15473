"""What every process has, known to all: the only module that names a process group."""

from dataclasses import dataclass

import torch
import torch.distributed as dist
from jaxtyping import Shaped
from torch import Tensor
from torch.distributed import ProcessGroup, ReduceOp
from torch.nn.functional import pad

# The newer names where there are any: the older then warn.
_all_gather = getattr(dist, "all_gather_single", dist.all_gather_into_tensor)
_reduce_scatter = getattr(dist, "reduce_scatter_single", dist.reduce_scatter_tensor)

__all__ = ["Partition", "ProcessGroup", "partition"]


@dataclass(frozen=True)
class Partition:
    """Rows that belong together, in the order of the processes that hold them.

    Methods are collectives: every process of the group has to call them, in the same order. With
    one process they do nothing. None of them is differentiable.

    Attributes:
        sizes: rows of each process; they may differ, and be zero.
        rank: this process's place in the group.
        group: None is the default group.
    """

    sizes: list[int]
    rank: int
    group: ProcessGroup | None

    @property
    def num_processes(self) -> int:
        return len(self.sizes)

    @property
    def num_rows(self) -> int:
        """Of all processes."""
        return sum(self.sizes)

    @property
    def start(self) -> int:
        """The place of this process's first row among all."""
        return sum(self.sizes[: self.rank])

    def own(self, rows: Shaped[Tensor, "all ..."]) -> Shaped[Tensor, "own ..."]:
        """This process's, of the rows of all; no collective."""
        return rows[self.start : self.start + self.sizes[self.rank]]

    def gather(self, rows: Shaped[Tensor, "own ..."]) -> Shaped[Tensor, "all ..."]:
        """The rows of all processes, the same on each: one message, padded to the largest share."""
        if self.num_processes == 1:
            return rows
        padded = _padded(rows, max(self.sizes))
        gathered = padded.new_empty(self.num_processes * len(padded), *padded.shape[1:])
        _all_gather(gathered, padded, group=self.group)
        shares = gathered.split(len(padded))
        return torch.cat([share[:size] for share, size in zip(shares, self.sizes, strict=True)])

    def own_of_sum(self, rows: Shaped[Tensor, "all ..."]) -> Shaped[Tensor, "own ..."]:
        """This process's rows of the sum over processes of what each has for all rows."""
        if self.num_processes == 1:
            return rows
        if dist.get_backend(self.group) == "gloo":  # which has no reduce-scatter in torch 2.6
            return self.own(self.sum(rows.clone()))
        width = max(self.sizes)
        shares = torch.cat([_padded(share, width) for share in rows.split(self.sizes)])
        own = shares.new_empty(width, *shares.shape[1:])
        _reduce_scatter(own, shares, group=self.group)
        return own[: self.sizes[self.rank]]

    def sum(self, values: Shaped[Tensor, "*shape"]) -> Shaped[Tensor, "*shape"]:
        """The sum over processes, in place."""
        return self._reduced(values, ReduceOp.SUM)

    def maximum(self, values: Shaped[Tensor, "*shape"]) -> Shaped[Tensor, "*shape"]:
        """The largest over processes, in place."""
        return self._reduced(values, ReduceOp.MAX)

    def log_sum_exp(self, logarithms: Shaped[Tensor, "*shape"]) -> Shaped[Tensor, "*shape"]:
        """The logarithm of the sum over processes, of logarithms."""
        if self.num_processes == 1:
            return logarithms
        largest = self.maximum(logarithms.clone())
        return largest + self.sum((logarithms - largest).exp()).log()

    def _reduced(self, values: Tensor, operation: ReduceOp.RedOpType) -> Tensor:
        if self.num_processes > 1:
            dist.all_reduce(values, operation, group=self.group)
        return values


def partition(
    num_rows: int, *, group: ProcessGroup | None, device: torch.device | None = None
) -> Partition:
    """How many rows each process has.

    It waits for the device, because sizes shape what follows; with one process it does nothing.

    Args:
        num_rows: of this process.
        group: None is the default group, or this process alone without one.
        device: where the group communicates; that of the rows.
    """
    world = dist.get_world_size(group) if dist.is_initialized() else 1
    if world == 1:
        return Partition([num_rows], 0, group)
    sizes = torch.empty(world, dtype=torch.int64, device=device)
    _all_gather(sizes, torch.tensor([num_rows], device=device), group=group)
    return Partition(sizes.tolist(), dist.get_rank(group), group)


def _padded(rows: Shaped[Tensor, "some ..."], num_rows: int) -> Shaped[Tensor, "num_rows ..."]:
    """Rows followed by zeros."""
    missing = num_rows - len(rows)
    return pad(rows, [*(2 * (rows.ndim - 1) * [0]), 0, missing]) if missing else rows.contiguous()
