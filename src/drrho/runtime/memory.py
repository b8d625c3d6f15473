"""The memory that a process may still take."""

from pathlib import Path

import psutil

# Of a container: limit, use, and the part of its use that the kernel gives back when asked.
CGROUP = Path("/sys/fs/cgroup")


def free_memory() -> int:
    """Number of bytes that this machine, or the container within it, can still give away."""
    return min([psutil.virtual_memory().available, *_left_by_container()])


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
            most, taken = int((CGROUP / limit).read_text()), int((CGROUP / used).read_text())
            lines = (CGROUP / counts).read_text().splitlines()
        except (OSError, ValueError):  # none; or "max"
            continue
        given_back = sum(int(line.split()[1]) for line in lines if line.startswith(unused))
        return [max(0, most - taken + given_back)]
    return []
