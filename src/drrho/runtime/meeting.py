"""Meeting of the processes of a run, and watch over them until they have finished.

Each writes a card about itself into the store of the launch. Those who wait say for whom, and
processes whose cards differ (device, versions) do not begin. Afterwards a thread notices when
another process dies, and ends this one if it is not ended by its own error.
"""

import json
import os
import platform
import socket
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import timedelta
from functools import cache
from itertools import count
from pathlib import Path
from typing import NoReturn

from torch.distributed import (
    PrefixStore,  # pyright: ignore[reportPrivateImportUsage]
    Store,  # pyright: ignore[reportPrivateImportUsage]
    TCPStore,  # pyright: ignore[reportPrivateImportUsage]
)

from drrho.runtime.distributed import require_same_value
from drrho.runtime.errors import ProcessFailed

MINUTES = "DRRHO_MEETING_MINUTES"
DEFAULT_MINUTES = 5.0
SECONDS_BETWEEN_NOTICES = 20.0
SECONDS_BETWEEN_LOOKS = 2.0
# A process of another machine whose sign of life is older than this counts as dead.
SECONDS_OF_SILENCE = 40.0
# Seconds that this process has to end by an error of its own, after another has died.
SECONDS_TO_END = 10.0
STORE_SECONDS = 15.0  # until a request to the store fails

_meetings = count()  # a later meeting of the same processes has other names in the store


@dataclass(frozen=True)
class Address:
    """Where the processes meet: the first of them serves the store, or torchrun does."""

    host: str
    port: int
    served_by_launcher: bool = False

    def __str__(self) -> str:
        return f"{self.host}:{self.port}"


def meeting_time(environment: Mapping[str, str]) -> timedelta:
    """Read how long processes wait for each other at the start.

    Raises:
        ValueError: `DRRHO_MEETING_MINUTES` is set and not a positive number.
    """
    given = environment.get(MINUTES, str(DEFAULT_MINUTES))
    try:
        return timedelta(minutes=1) * _positive(float(given))
    except (ValueError, OverflowError):
        raise ValueError(
            f"the variable {MINUTES} must be a positive number, got {given!r}"
        ) from None


def _positive(number: float) -> float:
    if not number > 0:
        raise ValueError
    return number


@dataclass
class Meeting:
    """Store that all processes reach, and what is known of each.

    Attributes:
        rank, size: number of this process, and number of processes.
        address: address of the store.
        time: how long to wait for the others.
        store: store of this meeting.
        others: cards of the other processes, by rank.
    """

    rank: int
    size: int
    address: Address
    time: timedelta
    store: Store = field(init=False)
    others: dict[int, dict[str, str]] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        self._name = f"drrho-{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}-{next(_meetings)}"
        self._done = threading.Event()

    def meet(self, card: Mapping[str, str]) -> None:
        """Wait for all processes.

        Args:
            card: what must be the same on all processes, by name.

        Raises:
            ProcessFailed: some did not come in time, or the store cannot be reached.
            ValueError: a value of the card differs; all processes raise it.
        """
        try:
            self._reach_store()
            own = {**card, "place": _place(), "pid": str(os.getpid())}
            self.store.set(f"card/{self.rank}", json.dumps(own))
            self._wait(lambda: self._without("card"))
            cards = [json.loads(self.store.get(f"card/{rank}")) for rank in range(self.size)]
            self.store.set(f"read/{self.rank}", "")
            if self.rank == 0:  # whose end would be the end of the store
                self._wait(lambda: self._without("read"))
        except RuntimeError as error:  # what torch raises has no class of its own in all versions
            raise ProcessFailed(
                f"process {self.rank} of {self.size} lost the meeting at {self.address}: "
                f"{first_line(error)}"
            ) from error
        self.others = {rank: it for rank, it in enumerate(cards) if rank != self.rank}
        for name in card:
            require_same_value(name, [it.get(name) for it in cards])

    def _reach_store(self) -> None:
        serves = self.rank == 0 and not self.address.served_by_launcher
        if not serves:
            self._wait(self._unreachable)
        self.store = PrefixStore(self._name, _connected(self.address, serves))

    def _unreachable(self) -> list[int]:
        try:
            socket.create_connection((self.address.host, self.address.port), timeout=5).close()
        except OSError:
            return [0]
        return []

    def _without(self, name: str) -> list[int]:
        """List the processes that have not set a value."""
        return [rank for rank in range(self.size) if not self.store.check([f"{name}/{rank}"])]

    def _wait(self, missing: Callable[[], list[int]]) -> None:
        """Wait until nobody is missing, and say for whom."""
        started = time.monotonic()
        notice = started + SECONDS_BETWEEN_NOTICES
        while absent := missing():
            now = time.monotonic()
            waits = (
                f"process {self.rank} of {self.size} waits for {processes_named(absent)} at "
                f"{self.address}"
            )
            if now - started > self.time.total_seconds():
                raise ProcessFailed(
                    f"{waits}, without success for {self.time.total_seconds() / 60:g} minutes. "
                    f"See what they reported and whether they reach this address; {MINUTES} "
                    "sets the time"
                )
            if now > notice:
                notice = now + SECONDS_BETWEEN_NOTICES
                sys.stderr.write(f"drrho: {waits}\n")
                sys.stderr.flush()
            time.sleep(0.05 if now - started < 5 else 0.5)

    def watch(self) -> None:
        """Start the thread that ends this process soon after another has died."""
        threading.Thread(target=self._watch, name="watch", daemon=True).start()

    def leave(self) -> None:
        """End the watch."""
        self._done.set()

    def tell(self, error: BaseException) -> None:
        """Leave the reason of this process's end for the others."""
        with suppress(RuntimeError):
            self.store.set(f"reason/{self.rank}", first_line(error)[:2000])

    def reason(self) -> str | None:
        """Find why another process ended: the error that it left, or its death."""
        if self.address.served_by_launcher or self._may_live(0):
            with suppress(RuntimeError):
                for rank in self.others:
                    if self.store.check([f"reason/{rank}"]):
                        reason = self.store.get(f"reason/{rank}").decode()
                        return f"process {rank} failed: {reason}"
        dead = next((rank for rank in self.others if not self._may_live(rank)), None)
        return None if dead is None else f"process {dead} has died"

    def _may_live(self, rank: int) -> bool:
        """Whether a process runs, or is on another machine, where nobody can tell."""
        other = self.others.get(rank)
        return other is None or other["place"] != _place() or _is_alive(int(other["pid"]))

    def _watch(self) -> None:
        dead = self._wait_for_death()
        if dead is None or self._done.wait(SECONDS_TO_END):
            return
        reason = self.reason() or f"process {dead} has died"
        message = f"process {self.rank} of {self.size} cannot continue: {reason}"
        end_at_once(1, f"drrho: error: {message}")

    def _wait_for_death(self) -> int | None:
        """Return the first process that is found dead; None if this one is done before."""
        place = _place()
        signs: dict[int, tuple[bytes, float]] = dict.fromkeys(self.others, (b"", time.monotonic()))
        far = [rank for rank, other in self.others.items() if other["place"] != place]
        # The main thread may hold the other connection.
        store = self.store if not far else PrefixStore(self._name, _connection(self.address, False))
        for beat in count():
            if self._done.wait(SECONDS_BETWEEN_LOOKS):
                return None
            for rank in self.others:
                if not self._may_live(rank):
                    return rank
            try:
                if far:
                    store.set(f"sign/{self.rank}", str(beat))
                for rank in far:
                    sign = store.get(f"sign/{rank}") if store.check([f"sign/{rank}"]) else b""
                    if sign != signs[rank][0]:
                        signs[rank] = (sign, time.monotonic())
                    elif time.monotonic() - signs[rank][1] > SECONDS_OF_SILENCE:
                        return rank
            except RuntimeError:
                return 0  # which serves the store, or torchrun, which ends all
        return None


def processes_named(ranks: list[int]) -> str:
    """Write "process 3", or "processes 1, 2"."""
    return f"process{'es' * (len(ranks) > 1)} {', '.join(map(str, ranks))}"


def first_line(error: BaseException) -> str:
    """Return the first line of an error, without the place in the source of torch or gloo."""
    line = str(error).strip().partition("\n")[0]
    return line.rpartition("] ")[2] if line.startswith("[/") else line


def end_at_once(status: int, message: str | None = None) -> NoReturn:
    """End this process without the destructors of its process groups, which may abort."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError, AttributeError):
            stream.flush()
    if message is not None:
        with suppress(OSError):
            os.write(2, f"{message}\n".encode())
    os._exit(status)


@cache
def _connected(address: Address, serves: bool) -> Store:
    """Connect to the store; once, since the first process serves it as long as it lives."""
    return _connection(address, serves)


def _connection(address: Address, serves: bool) -> Store:
    return TCPStore(
        address.host,
        address.port,
        None,
        serves,
        timedelta(seconds=STORE_SECONDS),
        wait_for_workers=False,
        multi_tenant=True,
    )


def _place() -> str:
    """Identify the machine and its space of process ids, in which a process can be looked for."""
    space = Path("/proc/self/ns/pid")
    return f"{platform.node()} {os.readlink(space) if space.is_symlink() else ''}"


def _is_alive(pid: int) -> bool:
    """Whether a process of this machine runs; a zombie does not."""
    with suppress(OSError):  # where there is no /proc
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
