"""Models that a Python file of the user's builds, and which such files may run.

A program runs where the user names it, "python:FILE.py". What a file names, such as the
`program.json` of a run's folder or the model in its `recipe.json`, may come from anyone, and runs
only if the user asks for it.
"""

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from safetensors.torch import save
from torch import Tensor

from drrho.models.two_tower import TwoTower, with_trained_weights
from drrho.runtime.files import write_atomically, write_json
from drrho.runtime.optional import built_by_program
from drrho.runtime.records import from_json, read_json_object, to_json

PROGRAM_FILE = "program.json"
WEIGHTS_FILE = "model.safetensors"
SCHEMA, RUN_SCHEMA = "python:", "run:"
Built = TypeVar("Built")
# Programs that files may name here, and folders of runs that may name data; None stands for all.
_trusted: ContextVar[frozenset[Path] | None] = ContextVar("_trusted", default=frozenset())


@contextmanager
def trusting(*names: str, everything: bool = False) -> Iterator[None]:
    """Let files name programs inside a `with` block.

    Args:
        names: names of models that the user gave. Of the form "python:FILE.py" they let files name
            that program, and "run:FOLDER" lets the files of that run name its data.
        everything: whether any program may run, and anything be fetched, that a file names.
    """
    before = _trusted.get()
    named = {
        _resolved(name.partition(":")[2]) for name in names if name.startswith((SCHEMA, RUN_SCHEMA))
    }
    token = _trusted.set(None if everything or before is None else before | named)
    try:
        yield
    finally:
        _trusted.reset(token)


def require_trusted(who: str, what: str, *, path: str | None = None) -> None:
    """Raise ValueError unless what a file asks for may be done.

    Args:
        who: the file, for the message.
        what: what it asks for, for the message.
        path: path of the program to run, or of the run that names data; None is trusted only with
            all else.
    """
    trusted = _trusted.get()
    if trusted is not None and (path is None or _resolved(path) not in trusted):
        raise ValueError(
            f"{who} asks for {what}; files may come from anyone, so that is done only on request: "
            "if you trust it, say --trust (trust=True in Python)"
        )


def _resolved(path: str) -> Path:
    return Path(path).expanduser().resolve()


@dataclass(frozen=True, kw_only=True)
class Program:
    """Contents of `program.json`: where the program lies, and the hash of what it was."""

    path: str
    sha256: str


def build_by_program(path: Path) -> TwoTower:
    """Build a model by `build()` of a Python file; raises as `run_program`."""
    return run_program(path, (TwoTower,))


def run_program(path: Path, kinds: tuple[type[Built], ...]) -> Built:
    """Build a model, or one tower of one, by `build()` of a Python file.

    It is built again by the same file, whose path and hash are its architecture.

    Args:
        kinds: types that `build()` may return.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it fails, or its `build()` returns something else.
    """
    content = path.read_bytes() if path.is_file() else b""  # before it runs: it may write
    model = built_by_program(path, what="model")
    if not isinstance(model, kinds):
        wanted = " or ".join(f"{kind.__module__}.{kind.__name__}" for kind in kinds)
        raise ValueError(
            f"model 'python:{path}': it must define build(), which returns a {wanted}; got "
            f"{type(model).__name__}"
        )
    program = Program(path=str(path.resolve()), sha256=hashlib.sha256(content).hexdigest())
    built: Any = model  # pyright cannot see that all kinds have an architecture
    return replace(built, architecture=built.architecture | {PROGRAM_FILE: to_json(program)})


def save_with_program(model: Any, folder: Path, weights: Mapping[str, Tensor]) -> None:
    """Write the weights, and which program they belong to."""
    # Tied weights are one tensor under two names, which safetensors does not write.
    content = save({name: tensor.contiguous().clone() for name, tensor in weights.items()})
    write_atomically(folder / WEIGHTS_FILE, content)
    write_json(folder / PROGRAM_FILE, model.architecture[PROGRAM_FILE])


def load_with_program(folder: Path) -> TwoTower:
    """Load the model that `save_with_program` wrote; raises as `rerun_program`."""
    return rerun_program(folder, (TwoTower,))


def rerun_program(folder: Path, kinds: tuple[type[Built], ...]) -> Built:
    """Load what `save_with_program` wrote. The program is run where it lies, never out of the
    folder, and only if it is still the one that the model was trained with.

    Raises:
        FileNotFoundError: the program is gone.
        ValueError: the program is not trusted (`trusting`), was changed, or fails.
    """
    program = from_json(
        Program, read_json_object(folder / PROGRAM_FILE), where=str(folder / PROGRAM_FILE)
    )
    require_trusted(
        str(folder / PROGRAM_FILE), f"running the program {program.path}", path=program.path
    )
    path = Path(program.path)
    if not path.is_file():
        raise FileNotFoundError(
            f"the model in {folder} is built by {path}, which is gone; put the file back there"
        )
    if hashlib.sha256(path.read_bytes()).hexdigest() != program.sha256:
        raise ValueError(
            f"the model in {folder} was built by another {path}; put the file back as it was, and "
            "give what you changed another name"
        )
    return with_trained_weights(
        run_program(path, kinds), folder / WEIGHTS_FILE, builder=f"what {path} builds"
    )
