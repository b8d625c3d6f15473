"""Processes of a run, as torchrun or Slurm launched them, and choice of the device."""

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Literal

import torch
import torch.distributed as dist
from torch.distributed import ProcessGroup

from drrho.runtime.distributed import Processes
from drrho.runtime.errors import CheckpointError, NotFiniteError, ProcessFailed

Device = Literal["auto", "cpu", "cuda"]


@dataclass(frozen=True, kw_only=True)
class Launch:
    """Place of this process among those that torchrun or Slurm started.

    Attributes:
        rank: number of this process, from 0.
        size: number of processes.
        local_rank: number of this process on its machine, from 0, and of its GPU.
        meeting: address of the meeting, as `init_process_group` takes it.
    """

    rank: int
    size: int
    local_rank: int
    meeting: str

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> "Launch | None":
        """Read torchrun's variables or those of a Slurm step; None for a single process.

        A batch script without `srun` is one process however many tasks it asked for.

        Raises:
            ValueError: some of the variables are missing or not numbers.
        """
        torchrun = {"RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"}
        if "RANK" in environment and "WORLD_SIZE" in environment:
            if missing := sorted(torchrun - environment.keys()):
                raise ValueError(
                    f"RANK and WORLD_SIZE are set, but not {', '.join(missing)}; start the "
                    "processes with torchrun or srun, or unset them for one process"
                )
            rank, size, local_rank = (
                _whole(environment, name) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK")
            )
            meeting = "env://"  # torchrun keeps the store itself, also over restarts
        elif "SLURM_STEP_NUM_TASKS" in environment and "SLURM_PROCID" in environment:
            rank, size, local_rank = (
                _whole(environment, name)
                for name in ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID")
            )
            meeting = f"tcp://{_slurm_address(environment)}"
        else:
            return None
        if size == 1:
            return None
        return cls(rank=rank, size=size, local_rank=local_rank, meeting=meeting)


@contextmanager
def joined(launch: Launch | None, *, device_type: str, minutes: float = 30) -> Iterator[Processes]:
    """Join the other processes until the block ends.

    Args:
        launch: None is one process, which meets nobody.
        device_type: where tensors are that processes exchange: "cpu" (gloo) or "cuda" (NCCL).
        minutes: a process that waits for another for longer fails. Where another died, gloo
            notices at once, and NCCL by torchrun or Slurm, which end the others.

    Raises:
        RuntimeError: the processes did not meet in time.
    """
    if launch is None:
        yield Processes()
        return
    timeout = timedelta(minutes=minutes)
    dist.init_process_group(
        "gloo" if device_type == "cpu" else f"cpu:gloo,{device_type}:nccl",
        init_method=launch.meeting,
        rank=launch.rank,
        world_size=launch.size,
        timeout=timeout,
    )
    host, background = (_gloo_group(timeout) for _ in range(2))
    yield Processes(launch.rank, launch.size, host, background)
    # Not where an error came: the others would be waited for, who wait for this process.
    dist.destroy_process_group()


def _gloo_group(timeout: timedelta) -> ProcessGroup:
    group = dist.new_group(backend="gloo", timeout=timeout)
    assert isinstance(group, ProcessGroup)  # which it is for members
    return group


def _whole(environment: Mapping[str, str], name: str) -> int:
    try:
        return int(environment[name])
    except (KeyError, ValueError):
        raise ValueError(
            f"the variable {name} must be a whole number, got {environment.get(name)!r}"
        ) from None


def _slurm_address(environment: Mapping[str, str]) -> str:
    """Find the first machine of the step, and a port that other jobs are unlikely to choose."""
    nodes = environment.get("SLURM_STEP_NODELIST") or environment.get("SLURM_JOB_NODELIST", "")
    # gpu[003-007,012],other or gpu003,gpu004
    match = re.match(r"([^\[,]+)(?:\[(\d+)[^\]]*\]([^,]*))?", nodes)
    if match is None:
        raise ValueError(f"cannot read the first machine from Slurm's list of nodes {nodes!r}")
    host = environment.get("MASTER_ADDR") or "".join(part or "" for part in match.groups())
    port = environment.get("MASTER_PORT") or 20_000 + _whole(environment, "SLURM_JOB_ID") % 20_000
    return f"{host}:{port}"


def resolve_device(device: Device, *, local_rank: int = 0) -> torch.device:
    """Resolve a device's name; of several processes on a machine each takes the GPU of its rank.

    Raises:
        ValueError: "cuda" without a GPU that torch can use.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("device = 'cuda', but torch finds no GPU; use 'cpu' or 'auto'")
    if device == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    if local_rank >= torch.cuda.device_count():
        raise ValueError(
            f"process {local_rank} of this machine has no GPU, there are "
            f"{torch.cuda.device_count()}; start one process for each GPU"
        )
    torch.cuda.set_device(local_rank)
    return torch.device("cuda", local_rank)


@contextmanager
def together(device: Device) -> Iterator[tuple[Processes, torch.device]]:
    """Join the processes of this run, or this one alone without a launcher; with its device.

    Raises:
        ProcessFailed: with several processes, this one failed in the block, or lost another.
        ValueError: there is no such device, or the launcher's variables make no sense.
    """
    launch = Launch.from_environment(os.environ)
    found = resolve_device(device, local_rank=0 if launch is None else launch.local_rank)
    with joined(launch, device_type=found.type) as processes:
        try:
            yield processes, found
        except RuntimeError as error:
            if processes.size == 1 or isinstance(error, CheckpointError | NotFiniteError):
                raise
            # What gloo and NCCL raise has no class of its own.
            raise ProcessFailed(
                f"process {processes.rank} of {processes.size} cannot go on: {error}. If another "
                "process reported an error or was killed, that came first"
            ) from error


def require_one_process(command: str) -> None:
    """Raise ValueError if a launcher started several for what works in one."""
    if Launch.from_environment(os.environ) is not None:
        raise ValueError(
            f"`{command}` works in one process; start it without torchrun or srun, or train its "
            "runs one by one with `drrho train`"
        )


def is_follower() -> bool:
    """Return whether another process of this run prints the results."""
    launch = Launch.from_environment(os.environ)
    return launch is not None and launch.rank > 0
