"""Models that a Python file of the user's builds."""

import hashlib
import json
import runpy
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from safetensors.torch import save
from torch import Tensor

from drrho.models.two_tower import TwoTower, with_trained_weights
from drrho.runtime.files import write_atomically, write_json

PROGRAM_FILE = "program.json"
WEIGHTS_FILE = "model.safetensors"


def build_by_program(path: Path) -> TwoTower:
    """Build a model by `build()` of a Python file.

    It is built again by the same file, whose path and hash are its architecture.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it fails, or its `build()` returns no `TwoTower`.
    """
    if not path.is_file():
        raise FileNotFoundError(f"model 'python:{path}': there is no such file")
    content = path.read_bytes()
    try:
        build = runpy.run_path(str(path)).get("build")
        model = build() if callable(build) else None
    except Exception as error:  # it is a program of the user's
        raise ValueError(f"model 'python:{path}': {type(error).__name__}: {error}") from error
    if not isinstance(model, TwoTower):
        raise ValueError(
            f"model 'python:{path}': it must define build(), which returns a "
            f"drrho.models.two_tower.TwoTower; got {type(model).__name__}"
        )
    program = {"path": str(path.resolve()), "sha256": hashlib.sha256(content).hexdigest()}
    return replace(model, architecture=model.architecture | {PROGRAM_FILE: program})


def save_with_program(model: TwoTower, folder: Path, weights: Mapping[str, Tensor]) -> None:
    """Write the weights, and which program they belong to."""
    # Tied weights are one tensor under two names, which safetensors does not write.
    content = save({name: tensor.contiguous().clone() for name, tensor in weights.items()})
    write_atomically(folder / WEIGHTS_FILE, content)
    write_json(folder / PROGRAM_FILE, model.architecture[PROGRAM_FILE])


def load_with_program(folder: Path) -> TwoTower:
    """Load what `save_with_program` wrote. The program is run where it lies, never out of the
    folder, and only if it is still the one that the model was trained with.

    Raises:
        FileNotFoundError: the program is gone.
        ValueError: the program was changed, or it fails.
    """
    program = json.loads((folder / PROGRAM_FILE).read_text())
    path = Path(program["path"])
    if not path.is_file():
        raise FileNotFoundError(
            f"the model in {folder} is built by {path}, which is gone; put the file back there"
        )
    if hashlib.sha256(path.read_bytes()).hexdigest() != program["sha256"]:
        raise ValueError(
            f"the model in {folder} was built by another {path}; put the file back as it was, and "
            "give what you changed another name"
        )
    return with_trained_weights(
        build_by_program(path), folder / WEIGHTS_FILE, builder=f"what {path} builds"
    )
