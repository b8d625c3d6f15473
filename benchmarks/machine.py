"""What a table was measured on."""

import os
import platform
from pathlib import Path

import torch

import drrho


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
