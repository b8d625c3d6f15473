"""The common part of both Trainers: a module's state in checkpoints, and a column of its own."""

from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import Trainer


class TrainerWithState(Trainer):
    """Hugging Face's Trainer with a module whose state is in every checkpoint of the optimiser's.

    Attributes:
        state_file: name of its file in a checkpoint's folder.
        own_column: column of the data set that the model does not take and the Trainer must keep.
    """

    steering: nn.Module
    state_file: str
    own_column: str | None = None

    def saved_state(self) -> Mapping[str, Tensor]:
        """Return the module's state as it is saved; every process calls this."""
        return self.steering.state_dict()

    def missing_state(self) -> str:
        """Explain a checkpoint without the module's state: what it lacks, and the remedy."""
        raise NotImplementedError

    def _set_signature_columns_if_needed(self) -> None:
        # The column is no argument of the model, and would be removed.
        super()._set_signature_columns_if_needed()
        column, columns = self.own_column, self._signature_columns
        if column is not None and columns is not None and column not in columns:
            columns.append(column)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        super()._save_optimizer_and_scheduler(output_dir)
        state = self.saved_state()
        if state and self.args.should_save:
            save_file(dict(state), Path(output_dir) / self.state_file)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is None or not self.steering.state_dict():
            return
        path = Path(checkpoint) / self.state_file
        if not path.exists():
            raise FileNotFoundError(f"{path} does not exist: {self.missing_state()}")
        self.steering.load_state_dict(load_file(path))
