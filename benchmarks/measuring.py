"""Times of calls that are compared, and what they were measured on."""

import os
import platform
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch

import drrho

MOST_REPEATS, FEWEST_REPEATS = 51, 5


def seconds_of(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def in_turn(
    calls: Sequence[Callable[[], object]], *, budget: float, fewest: int = FEWEST_REPEATS
) -> np.ndarray:
    """Seconds of each call (column), repeated (row) for about `budget` seconds.

    The calls take turns, so that whatever else the machine does meets all of them. Before they are
    timed each is called once, unless there is time for one repeat only.
    """
    if fewest > 1:
        for call in calls:
            call()
    rows = []
    start = time.perf_counter()
    while len(rows) < fewest or (len(rows) < MOST_REPEATS and time.perf_counter() - start < budget):
        rows.append([seconds_of(call) for call in calls])
    return np.array(rows)


def machine() -> str:
    """Processor, threads, versions and load, in a sentence or two."""
    cpuinfo = Path("/proc/cpuinfo")  # Linux; elsewhere what Python knows
    text = cpuinfo.read_text() if cpuinfo.exists() else ""
    models = [line.split(": ")[1] for line in text.splitlines() if line.startswith("model name")]
    processor = f"{models[0]}, {len(models)} cores" if models else platform.processor()
    return (
        f"{processor}; {torch.get_num_threads()} threads of PyTorch {torch.__version__}, Python "
        f"{platform.python_version()}, drrho {drrho.__version__}. Load average at the start: "
        f"{os.getloadavg()[0]:.1f}; below 1 the times can be trusted."
    )
