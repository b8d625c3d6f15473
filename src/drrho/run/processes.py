"""The processes that torchrun or Slurm started, as one run."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from drrho.data.indexing import open_manifest
from drrho.data.manifest import Manifest
from drrho.distributed import Launch, Processes, joined
from drrho.run.recipe import Device, resolve_device
from drrho.training.checkpoint import CheckpointError
from drrho.training.finite import NotFiniteError


class ProcessFailed(RuntimeError):
    """One of several processes cannot go on."""


@contextmanager
def together(device: Device) -> Iterator[tuple[Processes, torch.device]]:
    """The processes of this run, this one alone where no launcher started it, and its device.

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


def open_manifest_together(source: str, processes: Processes) -> Manifest:
    """As `open_manifest`; shards that are indexed now are read by the first process alone."""
    if source.endswith(".json"):
        return open_manifest(source)
    return processes.on_first(lambda: open_manifest(source))


def require_one_process(command: str) -> None:
    """Raises ValueError if a launcher started several for what works in one."""
    if Launch.from_environment(os.environ) is not None:
        raise ValueError(
            f"`{command}` works in one process; start it without torchrun or srun, or train its "
            "runs one by one with `drrho train`"
        )


def is_follower() -> bool:
    """Whether another process of this run prints the results."""
    launch = Launch.from_environment(os.environ)
    return launch is not None and launch.rank > 0
