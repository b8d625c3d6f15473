"""Processes of a run, as torchrun or Slurm launched them, and choice of the device."""

import os
import platform
import re
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch.distributed import ProcessGroup

from drrho.runtime.distributed import Processes
from drrho.runtime.errors import CheckpointError, NotFiniteError, ProcessFailed
from drrho.runtime.files import write_atomically
from drrho.runtime.meeting import Address, Meeting, end_at_once, first_line, meeting_time
from drrho.runtime.provenance import versions
from drrho.runtime.records import to_json

SECONDS_TO_APPEAR = 10.0
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
        """Read the variables of torchrun or of a Slurm step; None for a single process.

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
def joined(
    launch: Launch | None, *, device_type: str, minutes: float = 30
) -> Iterator[tuple[Processes, Meeting | None]]:
    """Join the other processes until the block ends.

    Args:
        launch: None is one process, which meets nobody.
        device_type: where tensors are that processes exchange: "cpu" (gloo) or "cuda" (NCCL).
        minutes: a process that waits in a collective for longer fails.

    Raises:
        ProcessFailed: the processes did not meet in time.
        ValueError: they have other devices or versions.
    """
    if launch is None:
        yield Processes(), None
        return
    meeting = Meeting(
        launch.rank, launch.size, _address(launch, os.environ), meeting_time(os.environ)
    )
    meeting.meet({"device": device_type} | _versions())
    meeting.watch()
    timeout = timedelta(minutes=minutes)
    try:
        dist.init_process_group(
            "gloo" if device_type == "cpu" else f"cpu:gloo,{device_type}:nccl",
            store=meeting.store,
            rank=launch.rank,
            world_size=launch.size,
            timeout=timeout,
        )
        host, background = (_gloo_group(timeout) for _ in range(2))
        processes = Processes(launch.rank, launch.size, host, background)
        yield processes, meeting
        processes.barrier()  # or the end of one would look like its death to another
        dist.destroy_process_group()
    except BaseException as error:
        meeting.tell(error)
        raise
    finally:
        meeting.leave()


def _versions() -> dict[str, str]:
    """List the versions in which processes that compute together must agree."""
    found = versions()
    python = ".".join(platform.python_version_tuple()[:2])
    return {"drrho": str(found["drrho"]), "torch": str(found["torch"]), "python": python}


def _address(launch: Launch, environment: Mapping[str, str]) -> Address:
    if launch.meeting != "env://":
        host, _, port = launch.meeting.removeprefix("tcp://").rpartition(":")
        return Address(host, int(port))
    by_launcher = environment.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    return Address(environment["MASTER_ADDR"], _whole(environment, "MASTER_PORT"), by_launcher)


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
def together(device: Device, config: Any) -> Iterator[tuple[Processes, torch.device]]:
    """Join the processes of this run, or this one alone without a launcher; with its device.

    Args:
        device: device to compute on.
        config: dataclass of the command, which must be the same on all processes.

    Raises:
        ProcessFailed: with several processes, this one failed in the block, or lost another.
        ValueError: there is no such device, the launcher's variables make no sense, or the
            processes have other configurations or versions.
    """
    launch = Launch.from_environment(os.environ)
    found = resolve_device(device, local_rank=0 if launch is None else launch.local_rank)
    with joined(launch, device_type=found.type) as (processes, meeting):
        try:
            processes.require_same(command=type(config).__name__, **to_json(config))
            yield processes, found
        except RuntimeError as error:
            if meeting is None or isinstance(error, CheckpointError | NotFiniteError):
                raise
            # What gloo and NCCL raise has no class of its own.
            raise ProcessFailed(
                f"process {processes.rank} of {processes.size} cannot continue: "
                f"{meeting.reason() or first_line(error)}. If another process reported an error or "
                "was killed, that came first"
            ) from error


def require_shared(folder: Path, processes: Processes) -> None:
    """Require that all processes see what the first writes into a folder; a collective.

    Raises:
        ValueError: another process does not see it; all processes raise it.
    """
    if processes.size == 1:
        return
    token = folder / f".shared-{processes.broadcast_object(uuid.uuid4().hex)}"
    processes.on_first(lambda: write_atomically(token, b"seen by all processes"))
    blind = processes.all_gather_object(None if _appears(token) else platform.node())
    if processes.is_first:
        token.unlink()
    for rank, machine in enumerate(blind):
        if machine is not None:
            raise ValueError(
                f"process {rank}, on {machine}, does not see what process 0 wrote to {folder}; "
                "give an output folder on a file system that all machines share"
            )


def _appears(path: Path) -> bool:
    """Look for a file, for as long as a network file system may take to show it."""
    deadline = time.monotonic() + SECONDS_TO_APPEAR
    while not (found := path.is_file()) and time.monotonic() < deadline:
        time.sleep(0.2)
    return found


def end_with_groups(status: int) -> int:
    """Return the exit status; with unfinished process groups, end this process with it at once.

    Their destructors may abort where another process has ended.
    """
    if dist.is_initialized():
        end_at_once(status)
    return status


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
