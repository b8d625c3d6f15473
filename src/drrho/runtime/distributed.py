"""Collectives over the rows and values of all processes."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from jaxtyping import Float, Shaped
from torch import Tensor
from torch.distributed import ProcessGroup, ReduceOp
from torch.nn.functional import pad

# The newer names where there are any: the older then warn.
_all_gather = getattr(dist, "all_gather_single", dist.all_gather_into_tensor)
_reduce_scatter = getattr(dist, "reduce_scatter_single", dist.reduce_scatter_tensor)

__all__ = [
    "Partition",
    "ProcessGroup",
    "Processes",
    "equal_partition",
    "partition",
]

Value = TypeVar("Value")


@dataclass(frozen=True)
class Processes:
    """The processes of a run, which take every step together; without arguments, this one alone.

    Methods are collectives of plain values, on the host; with one process they do nothing.

    Attributes:
        rank: of this process.
        size: number of processes.
        host: group for values in host memory.
        background: a group for what a thread does meanwhile.
    """

    rank: int = 0
    size: int = 1
    host: ProcessGroup | None = None
    background: ProcessGroup | None = None

    @property
    def is_first(self) -> bool:
        """Whether this process writes what is written once."""
        return self.rank == 0

    def wait_for_all(self) -> None:
        """Returns when every process is here."""
        if self.size > 1:
            dist.barrier(self.host)

    def from_first(self, value: Value) -> Value:
        """The first process's value."""
        if self.size == 1:
            return value
        values = [value]
        dist.broadcast_object_list(values, src=0, group=self.host)
        return values[0]

    def on_first(self, make: Callable[[], Value]) -> Value:
        """What the first process makes, or the error it gets, on all of them."""
        if self.size == 1:
            return make()
        made: tuple[Value | None, Exception | None] = (None, None)
        if self.is_first:
            try:
                made = (make(), None)
            except Exception as error:
                made = (None, error)
        value, error = self.from_first(made)
        if error is not None:
            raise error
        return value  # pyright: ignore[reportReturnType]

    def on_each(self, make: Callable[[], Value]) -> Value:
        """What this process makes; an error that any of them gets, all get.

        Raises:
            ValueError: `make` raised one, here or on another process.
        """
        try:
            value = make()
        except ValueError as error:
            self.gather(str(error))
            raise
        if messages := [message for message in self.gather(None) if message is not None]:
            raise ValueError(messages[0])
        return value

    def gather(self, value: Value) -> list[Value]:
        """Every process's value, in the order of the processes."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value, group=self.host)
        return values

    def largest(self, number: int) -> int:
        """Of every process's number."""
        if self.size == 1:
            return number
        numbers = torch.tensor([number])
        dist.all_reduce(numbers, ReduceOp.MAX, group=self.host)
        return int(numbers)

    def give_first(self, tensors: Iterator[Tensor]) -> None:
        """Overwrites tensors with the first process's."""
        if self.size > 1:
            for tensor in tensors:
                dist.broadcast(tensor, src=0)


@dataclass(frozen=True)
class Partition:
    """Rows that belong together, in the order of the processes that hold them.

    Methods are collectives: every process of the group has to call them, in the same order. With
    one process they do nothing. Only `mean` and `same_on_all` are differentiable.

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

    def mean(self, values: Float[Tensor, "*anchors own"]) -> Float[Tensor, ""]:
        """The mean over the rows (last dimension) of all processes, the same number on each.

        Its gradient on a process is K times that of the process's part, K being the number of
        processes: averaged over processes, as DistributedDataParallel and FSDP do with the
        gradients of parameters, it is the gradient of the mean.
        """
        num_values = self.num_rows * math.prod(values.shape[:-1])
        own = values.sum() * (self.num_processes / num_values)
        if self.num_processes == 1:
            return own
        everyone = self.sum(own.detach().clone()) / self.num_processes
        return own + (everyone - own.detach())

    def same_on_all(self, parameter: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """A parameter that every process has a copy of; its gradient is averaged over processes.

        So the copies stay equal whether or not their module is wrapped for distribution.
        """
        if self.num_processes == 1:
            return parameter
        result = _SameOnAll.apply(parameter, self)
        assert isinstance(result, Tensor)
        return result

    def sharded(self, own: Shaped[Tensor, "*rest own"]) -> Tensor:
        """This process's share of rows (last dimension) as a part of a tensor of all rows.

        A DTensor over the group, in the memory of `own`: what torch.distributed.checkpoint needs
        to write each share once and to cut them anew for another number of processes. Needs the
        sizes of `equal_partition`. With one process it is `own`.
        """
        if self.num_processes == 1:
            return own
        # A second of import, for those who need it.
        from torch.distributed.device_mesh import DeviceMesh  # noqa: PLC0415
        from torch.distributed.tensor import DTensor, Shard  # noqa: PLC0415

        group = dist.group.WORLD if self.group is None else self.group
        assert group is not None
        shape = torch.Size([*own.shape[:-1], self.num_rows])
        return DTensor.from_local(
            own,
            DeviceMesh.from_group(group, own.device.type),
            [Shard(own.ndim - 1)],
            run_check=False,
            shape=shape,
            stride=torch.empty(shape, device="meta").stride(),
        )

    def own_of_sharded(self, whole: Tensor) -> Tensor:
        """This process's share of a tensor as `sharded` made it, or of one of all rows."""
        if type(whole) is Tensor or type(whole) is torch.nn.Parameter:
            return whole[..., self.start : self.start + self.sizes[self.rank]]
        from torch.distributed.tensor import DTensor  # noqa: PLC0415

        assert isinstance(whole, DTensor), type(whole)
        return whole.to_local()

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


def equal_partition(num_rows: int, *, group: ProcessGroup | None) -> Partition:
    """`num_rows` of all processes together, in blocks of `ceil(num_rows / K)`; no collective.

    The last blocks may be smaller or empty. These are the blocks of `torch.chunk` and of a sharded
    DTensor.
    """
    world, rank = 1, 0
    if dist.is_initialized():
        world, rank = dist.get_world_size(group), dist.get_rank(group)
    block = -(-num_rows // world)
    starts = [min(place * block, num_rows) for place in range(world + 1)]
    return Partition([end - start for start, end in pairwise(starts)], rank, group)


class _SameOnAll(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, parameter: Tensor, processes: Partition) -> Tensor:
        ctx.processes = processes
        return parameter.view_as(parameter)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None]:
        processes = ctx.processes
        return processes.sum(upstream.clone()) / processes.num_processes, None


def _padded(rows: Shaped[Tensor, "some ..."], num_rows: int) -> Shaped[Tensor, "num_rows ..."]:
    """Rows followed by zeros."""
    missing = num_rows - len(rows)
    return pad(rows, [*(2 * (rows.ndim - 1) * [0]), 0, missing]) if missing else rows.contiguous()
