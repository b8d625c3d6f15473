"""Tests with several processes: started in milliseconds, waited for with patience, never left over.

The processes are forked from a server that has imported PyTorch and drrho once, without the
suite's shape checks. Functions that they run are named by their module, so any test file may hold
them.
"""

import faulthandler
import multiprocessing
import multiprocessing.connection
import os
import runpy
import shutil
import signal
import socket
import sys
import tempfile
import time
import traceback
import warnings
import weakref
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any, NoReturn

import torch
import torch.distributed as dist

# Seconds after which a process counts as hanging. On a quiet machine none takes a minute; this is
# for machines that do much else.
PATIENCE = 900.0
# Seconds in which the others may end by themselves, after one has failed.
GRACE = 10.0

# Processes that compile start no pool of compilers, which would import PyTorch for a few kernels.
os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["tests.preloaded"])


class Process:
    """A function in a process of its own; its output is kept. To be used like `subprocess.Popen`.

    Args:
        function: of a module; its arguments are pickled.
        environment: variables beside those of this process.
    """

    def __init__(
        self, function: Callable, *arguments: Any, environment: Mapping[str, str] | None = None
    ) -> None:
        self.folder = tempfile.mkdtemp()
        weakref.finalize(self, shutil.rmtree, self.folder, ignore_errors=True)
        everything = dict(os.environ) | dict(environment or {})
        self.process = _context.Process(
            target=_with_output, args=(self.folder, everything, function, arguments)
        )
        self.process.start()

    @property
    def sentinel(self) -> int:
        return self.process.sentinel

    @property
    def returncode(self) -> int | None:
        return self.process.exitcode

    def poll(self) -> int | None:
        return self.process.exitcode

    def send_signal(self, number: int) -> None:
        assert self.process.pid is not None
        os.kill(self.process.pid, number)

    def kill(self) -> None:
        self.process.kill()
        self.process.join()

    def output(self, name: str) -> str:
        """Text that went to "stdout" or "stderr"."""
        path = Path(self.folder) / name
        return path.read_text() if path.exists() else ""

    def wait(self, *, patience: float = PATIENCE) -> int:
        """Wait for the end; a process that hangs is killed and says where it was."""
        self.process.join(patience)
        if self.process.exitcode is None:
            self.give_up(patience)
        return self.process.exitcode

    def give_up(self, patience: float) -> NoReturn:
        """Kill a process that hangs, and say where it was."""
        self.send_signal(signal.SIGABRT)  # faulthandler prints where it was
        self.process.join(GRACE)
        self.kill()
        raise AssertionError(f"a process hung for {patience} s:\n{self.output('stderr')}")


def run(
    function: Callable, *arguments: Any, world: int, group: bool = True, patience: float = PATIENCE
) -> list[Any]:
    """Results of `function(rank, *arguments)` in each of `world` processes.

    Args:
        function: of a module; its arguments are pickled, its results saved by `torch.save`.
        world: number of processes.
        group: whether they are one gloo group when the function is called.
        patience: seconds until they count as hanging.

    Raises:
        AssertionError: a process failed; with its traceback. None is running any more.
    """
    with tempfile.TemporaryDirectory() as folder:
        started = [
            Process(_member, rank, world, folder, group, function, arguments)
            for rank in range(world)
        ]
        try:
            _wait_for_all(started, patience=patience)
        finally:
            for process in started:
                process.kill()
        files = [Path(folder) / f"{rank}.pt" for rank in range(world)]
        return [torch.load(file, weights_only=False) for file in files]


def start_drrho(
    arguments: Sequence[str], environments: Sequence[Mapping[str, str]] = ({},)
) -> list[Process]:
    """`python -m drrho ARGUMENTS`, once in each environment."""
    return [Process(run_drrho, list(arguments), environment=it) for it in environments]


def finish(
    processes: Sequence[Process], *, patience: float = PATIENCE
) -> tuple[list[int], tuple[str, ...], tuple[str, ...]]:
    """Exit statuses, and what the processes printed and reported."""
    try:
        statuses = [process.wait(patience=patience) for process in processes]
    finally:
        for process in processes:
            process.kill()
    outputs, errors = (
        tuple(process.output(name) for process in processes) for name in ("stdout", "stderr")
    )
    return statuses, outputs, errors


def until(
    condition: Callable[[], object], processes: Sequence[Process], *, patience: float = PATIENCE
) -> None:
    """Wait until the condition is true, while all processes run."""
    deadline = time.monotonic() + patience
    while not condition():
        assert all(process.poll() is None for process in processes), finish(processes)
        if time.monotonic() > deadline:
            processes[0].give_up(patience)
        time.sleep(0.01)


def by_torchrun(size: int) -> list[dict[str, str]]:
    """What torchrun tells the processes of one machine."""
    common = {
        "WORLD_SIZE": str(size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port(29_500)),
    }
    return [common | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(size)]


def by_srun(size: int) -> list[dict[str, str]]:
    """What Slurm tells the tasks of a step; the job's number leads to a port that is free here."""
    common = {
        "SLURM_JOB_ID": str(free_port(31_000) - 20_000),
        "SLURM_STEP_NUM_TASKS": str(size),
        "SLURM_STEP_NODELIST": "localhost",
    }
    return [
        common | {"SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank)} for rank in range(size)
    ]


def free_port(start: int) -> int:
    """One that nothing listens at; tests that run beside this one begin elsewhere."""
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0")[2:])
    for port in range(start + 100 * (worker % 10), 65_536):
        with socket.socket() as tried, suppress(OSError):
            tried.bind(("127.0.0.1", port))
            return port
    raise AssertionError("no port is free")


def _with_output(
    folder: str, environment: Mapping[str, str], function: Callable, arguments: tuple
) -> None:
    os.environ.clear()
    os.environ.update(environment)
    for number, name in ((1, "stdout"), (2, "stderr")):
        file = os.open(os.path.join(folder, name), os.O_WRONLY | os.O_CREAT, 0o600)
        os.dup2(file, number)
        os.close(file)
    faulthandler.enable()
    torch.set_num_threads(1)
    function(*arguments)


def _member(
    rank: int, world: int, folder: str, group: bool, function: Callable, arguments: tuple
) -> None:
    warnings.simplefilter("error")  # as in the tests' own process
    try:
        if group:
            dist.init_process_group(
                "gloo",
                init_method=f"file://{folder}/rendezvous",
                rank=rank,
                world_size=world,
                timeout=timedelta(seconds=PATIENCE),
            )
        torch.save(function(rank, *arguments), Path(folder) / f"{rank}.pt")
        if group:
            dist.destroy_process_group()
    except BaseException:
        traceback.print_exc()
        sys.exit(1)  # without waiting for a group whose other processes may wait for this one


def run_drrho(arguments: list[str]) -> None:
    """`python -m drrho ARGUMENTS`, in this process."""
    sys.argv = ["drrho", *arguments]
    runpy.run_module("drrho", run_name="__main__", alter_sys=True)


def _wait_for_all(started: Sequence[Process], *, patience: float) -> None:
    """Return when all have ended well; the first that has not is reported."""
    deadline, failed = time.monotonic() + patience, None
    running = dict(enumerate(started))
    while running and (left := deadline - time.monotonic()) > 0:
        multiprocessing.connection.wait([it.sentinel for it in running.values()], left)
        for rank in [rank for rank, it in running.items() if it.poll() is not None]:
            if running.pop(rank).returncode != 0 and failed is None:
                failed = rank
                deadline = min(deadline, time.monotonic() + GRACE)
    if failed is not None:
        found = started[failed]
        raise AssertionError(
            f"process {failed} of {len(started)} ended with {found.returncode}:\n"
            f"{found.output('stderr')}"
        )
    for process in running.values():
        process.give_up(patience)
