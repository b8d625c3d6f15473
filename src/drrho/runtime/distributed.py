"""Collectives, under torch.distributed's names, that do nothing in a single process."""

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

from drrho.runtime.provenance import flat

# Newer versions of torch have these names and warn of the older.
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
    """The processes of a run, with their groups; without arguments, this process alone.

    Methods are collectives of Python objects in host memory; with one process they do nothing.

    Attributes:
        rank: number of this process, from 0.
        size: number of processes.
        host: process group for values in host memory.
        background: process group for the thread that writes checkpoints.
    """

    rank: int = 0
    size: int = 1
    host: ProcessGroup | None = None
    background: ProcessGroup | None = None

    @property
    def is_first(self) -> bool:
        """Whether this is process 0, which writes the files of the run."""
        return self.rank == 0

    def barrier(self) -> None:
        """Wait for all processes."""
        if self.size > 1:
            dist.barrier(self.host)

    def broadcast_object(self, value: Value) -> Value:
        """Send the first process's object to all."""
        if self.size == 1:
            return value
        values = [value]
        dist.broadcast_object_list(values, src=0, group=self.host)
        return values[0]

    def on_first(self, make: Callable[[], Value]) -> Value:
        """Call a function on the first process alone; its result, or its error, goes to all."""
        if self.size == 1:
            return make()
        made: tuple[Value | None, Exception | None] = (None, None)
        if self.is_first:
            try:
                made = (make(), None)
            except Exception as error:
                made = (None, error)
        value, error = self.broadcast_object(made)
        if error is not None:
            raise error
        return value  # pyright: ignore[reportReturnType]

    def on_each(self, make: Callable[[], Value]) -> Value:
        """Call a function on every process; where it fails on one, all raise an error.

        Raises:
            ValueError: the function failed on another process.
        """
        value, error = None, None
        try:
            value = make()
        except (ValueError, OSError) as found:
            error = found
        messages = self.all_gather_object(None if error is None else str(error))
        if error is not None:
            raise error
        for rank, message in enumerate(messages):
            if message is not None:
                raise ValueError(f"on process {rank}: {message}")
        return value  # pyright: ignore[reportReturnType]

    def all_gather_object(self, value: Value) -> list[Value]:
        """Collect every process's object, in the order of the processes."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value, group=self.host)
        return values

    def require_same(self, **values: Any) -> None:
        """Require plain values to be the same on all processes; a collective.

        Raises:
            ValueError: one differs; all processes name it, with both values.
        """
        everyone = [flat(values) for values in self.all_gather_object(values)]
        for name in dict.fromkeys(name for found in everyone for name in found):
            require_same_value(name, [found.get(name, "absent") for found in everyone])

    def all_reduce_max(self, number: int) -> int:
        """Find the largest of the processes' numbers."""
        if self.size == 1:
            return number
        numbers = torch.tensor([number])
        dist.all_reduce(numbers, ReduceOp.MAX, group=self.host)
        return int(numbers)

    def broadcast(self, tensors: Iterator[Tensor]) -> None:
        """Overwrite tensors with the first process's."""
        if self.size > 1:
            for tensor in tensors:
                dist.broadcast(tensor, src=0)


@dataclass(frozen=True)
class Partition:
    """The rows of a tensor that is split over processes, in the order of the processes.

    Methods are collectives unless they say otherwise: every process of the group has to call them,
    in the same order. With one process they do nothing. Only `mean` and `average_grad` are
    differentiable.

    Attributes:
        sizes: number of rows of each process; they may differ, and be zero.
        rank: this process's number in the group.
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
        """Number of rows of all processes together."""
        return sum(self.sizes)

    @property
    def start(self) -> int:
        """Position of this process's first row among all."""
        return sum(self.sizes[: self.rank])

    def own(self, rows: Shaped[Tensor, "all ..."]) -> Shaped[Tensor, "own ..."]:
        """Slice this process's rows out of the rows of all; no collective."""
        return rows[self.start : self.start + self.sizes[self.rank]]

    def all_gather(self, rows: Shaped[Tensor, "own ..."]) -> Shaped[Tensor, "all ..."]:
        """Concatenate the rows of all processes; sent padded to the largest share."""
        if self.num_processes == 1:
            return rows
        padded = _padded(rows, max(self.sizes))
        gathered = padded.new_empty(self.num_processes * len(padded), *padded.shape[1:])
        _all_gather(gathered, padded, group=self.group)
        shares = gathered.split(len(padded))
        return torch.cat([share[:size] for share, size in zip(shares, self.sizes, strict=True)])

    def reduce_scatter(self, rows: Shaped[Tensor, "all ..."]) -> Shaped[Tensor, "own ..."]:
        """Sum tensors of all rows over processes, and return this process's rows of the sum."""
        if self.num_processes == 1:
            return rows
        if dist.get_backend(self.group) == "gloo":  # which has no reduce-scatter in torch 2.6
            return self.own(self.all_reduce(rows.clone()))
        width = max(self.sizes)
        shares = torch.cat([_padded(share, width) for share in rows.split(self.sizes)])
        own = shares.new_empty(width, *shares.shape[1:])
        _reduce_scatter(own, shares, group=self.group)
        return own[: self.sizes[self.rank]]

    def all_reduce(self, values: Shaped[Tensor, "*shape"]) -> Shaped[Tensor, "*shape"]:
        """Sum over processes, in place."""
        if self.num_processes > 1:
            dist.all_reduce(values, group=self.group)
        return values

    def all_reduce_max(self, values: Shaped[Tensor, "*shape"]) -> Shaped[Tensor, "*shape"]:
        """Take the element-wise maximum over processes, in place."""
        if self.num_processes > 1:
            dist.all_reduce(values, ReduceOp.MAX, group=self.group)
        return values

    def log_sum_exp(self, logarithms: Shaped[Tensor, "*shape"]) -> Shaped[Tensor, "*shape"]:
        """Compute the logarithm of the sum of exponentials over processes; two collectives."""
        if self.num_processes == 1:
            return logarithms
        largest = self.all_reduce_max(logarithms.clone())
        return largest + self.all_reduce((logarithms - largest).exp()).log()

    def mean(self, values: Float[Tensor, "*anchors own"]) -> Float[Tensor, ""]:
        """Average over the rows (last dimension) of all processes; the same number on each.

        The gradient on one of K processes is K times the gradient of its part: averaged over
        processes, as DistributedDataParallel and FSDP do for parameters, it is the gradient of the
        mean.
        """
        num_values = self.num_rows * math.prod(values.shape[:-1])
        own = values.sum() * (self.num_processes / num_values)
        if self.num_processes == 1:
            return own
        everyone = self.all_reduce(own.detach().clone()) / self.num_processes
        return own + (everyone - own.detach())

    def average_grad(self, parameter: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """Return a replicated parameter unchanged, with a gradient averaged over processes."""
        if self.num_processes == 1:
            return parameter
        result = _AverageGrad.apply(parameter, self)
        assert isinstance(result, Tensor)
        return result

    def to_dtensor(self, own: Shaped[Tensor, "*rest own"]) -> Tensor:
        """Wrap this process's rows (last dimension) as a shard of a DTensor of all; no collective.

        torch.distributed.checkpoint then writes each shard once, and reads it into any other
        number of processes. The DTensor shares the memory of `own`, and needs the sizes of
        `equal_partition`. With one process it is `own`.
        """
        if self.num_processes == 1:
            return own
        # Its import takes a second.
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

    def to_local(self, whole: Tensor) -> Tensor:
        """Take this process's rows out of a DTensor of `to_dtensor`, or out of a tensor of all."""
        if type(whole) is Tensor or type(whole) is torch.nn.Parameter:
            return whole[..., self.start : self.start + self.sizes[self.rank]]
        from torch.distributed.tensor import DTensor  # noqa: PLC0415

        assert isinstance(whole, DTensor), type(whole)
        return whole.to_local()


def partition(
    num_rows: int, *, group: ProcessGroup | None, device: torch.device | None = None
) -> Partition:
    """Gather how many rows each process has; a collective.

    It waits for the device, since the shapes of what follows depend on the sizes.

    Args:
        num_rows: number of rows of this process.
        group: None is the default group, or this process alone without one.
        device: device of the rows, over which the group communicates.
    """
    world = dist.get_world_size(group) if dist.is_initialized() else 1
    if world == 1:
        return Partition([num_rows], 0, group)
    sizes = torch.empty(world, dtype=torch.int64, device=device)
    _all_gather(sizes, torch.tensor([num_rows], device=device), group=group)
    return Partition(sizes.tolist(), dist.get_rank(group), group)


def equal_partition(num_rows: int, *, group: ProcessGroup | None) -> Partition:
    """Split `num_rows` over K processes in blocks of `ceil(num_rows / K)`; no collective.

    The last blocks may be smaller or empty, as in `torch.chunk` and in a sharded DTensor.
    """
    world, rank = 1, 0
    if dist.is_initialized():
        world, rank = dist.get_world_size(group), dist.get_rank(group)
    block = -(-num_rows // world)
    starts = [min(place * block, num_rows) for place in range(world + 1)]
    return Partition([end - start for start, end in pairwise(starts)], rank, group)


def require_same_value(name: str, values: list) -> None:
    """Raise ValueError, which names field and values, unless all processes have the same."""
    for rank, value in enumerate(values):
        if value != values[0]:
            raise ValueError(
                f"the processes of this run differ in {name}: {values[0]} on process 0, {value} "
                f"on process {rank}; start all of them with the same"
            )


class _AverageGrad(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, parameter: Tensor, processes: Partition) -> Tensor:
        ctx.processes = processes
        return parameter.view_as(parameter)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor, None]:
        processes = ctx.processes
        return processes.all_reduce(grad_output.clone()) / processes.num_processes, None


def _padded(rows: Shaped[Tensor, "some ..."], num_rows: int) -> Shaped[Tensor, "num_rows ..."]:
    """Append rows of zeros, up to `num_rows`."""
    missing = num_rows - len(rows)
    return pad(rows, [*(2 * (rows.ndim - 1) * [0]), 0, missing]) if missing else rows.contiguous()
