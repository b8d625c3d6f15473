"""The memory that a process may still take."""

import os
from pathlib import Path

MACHINE = Path("/proc/meminfo")
# Where a system does not say what is free.
ASSUMED = 2**30
# Of a container: limit, use, and the part of its use that the kernel gives back when asked.
CGROUP = Path("/sys/fs/cgroup")


def free_memory() -> int:
    """Number of bytes that this machine, or the container within it, can still give away."""
    return min([_left_by_machine(), *_left_by_container()])


def _left_by_machine() -> int:
    """Bytes that Linux says are available; elsewhere half of the memory, where that is known."""
    if MACHINE.exists():
        for line in MACHINE.read_text(encoding="utf-8").splitlines():
            if line.startswith("MemAvailable:"):
                return 1024 * int(line.split()[1])
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    except (AttributeError, ValueError, OSError):  # no such function, or no such name
        return ASSUMED


def _left_by_container() -> list[int]:
    """Bytes below the limit of a Linux control group; empty without one."""
    for limit, used, counts, unused in (
        ("memory.max", "memory.current", "memory.stat", "inactive_file "),
        (
            "memory/memory.limit_in_bytes",
            "memory/memory.usage_in_bytes",
            "memory/memory.stat",
            "total_inactive_file ",
        ),
    ):
        try:
            most, taken = (
                int((CGROUP / limit).read_text(encoding="utf-8")),
                int((CGROUP / used).read_text(encoding="utf-8")),
            )
            lines = (CGROUP / counts).read_text(encoding="utf-8").splitlines()
        except (OSError, ValueError):  # none; or "max"
            continue
        given_back = sum(int(line.split()[1]) for line in lines if line.startswith(unused))
        return [max(0, most - taken + given_back)]
    return []
