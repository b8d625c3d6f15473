"""Import of torchvision into a process whose PyTorch has no CUDA."""

import importlib
import importlib.util
import sys
from pathlib import Path

import torch

_operators: list[torch.library.Library] = []  # unregistered when collected


def import_torchvision() -> None:
    """Import torchvision, where it is installed, before a library that uses it does.

    PyPI's torchvision for Linux is linked against CUDA, and its import fails beside a CPU-only
    torch: "operator torchvision::nms does not exist". Declaring the two operators without an
    implementation lets the import of open_clip and transformers pass.
    """
    spec = importlib.util.find_spec("torchvision")
    if "torchvision" in sys.modules or spec is None or spec.origin is None:
        return
    if not _operators and not _library_loads(Path(spec.origin).parent):
        library = torch.library.Library("torchvision", "DEF")
        for operator in ("nms", "qnms"):
            library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _operators.append(library)
    importlib.import_module("torchvision")


def _library_loads(package: Path) -> bool:
    libraries = [path for path in package.glob("_C*") if path.suffix in {".so", ".pyd"}]
    try:
        for library in libraries:
            torch.ops.load_library(str(library))
    except OSError:
        return False
    return bool(libraries)
