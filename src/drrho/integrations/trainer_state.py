"""A steering module's state beside the optimiser's in checkpoints of Hugging Face's Trainer."""

from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import TrainingArguments


def save_state(state: Mapping[str, Tensor], path: Path, args: TrainingArguments) -> None:
    """Writes it, if there is any and this process is the one that saves."""
    if state and args.should_save:
        save_file(dict(state), path)


def load_state(module: nn.Module, path: Path, *, missing: str) -> None:
    """Restores a module that has state.

    Args:
        module: if it has none, nothing is read.
        path: what `save_state` wrote.
        missing: the message if it did not, after the path.

    Raises:
        FileNotFoundError: there is no file.
    """
    if not module.state_dict():
        return
    if not path.exists():
        raise FileNotFoundError(f"{path} {missing}")
    module.load_state_dict(load_file(path))
