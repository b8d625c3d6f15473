"""The common part of both Trainers: a module's state in checkpoints, and a column of its own."""

from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import nn
from transformers import Trainer

from drrho.integrations.pairs import whole_state


class TrainerWithState(Trainer):
    """Hugging Face's Trainer with a module whose state is in every checkpoint of the optimiser's.

    Attributes:
        state_file: name of its file in a checkpoint's folder.
        state_name: name of the state in messages.
        own_column: column of the data set that the model does not take and the Trainer must keep.
    """

    steering: nn.Module
    state_file: str
    state_name: str
    own_column: str | None = None

    def _set_signature_columns_if_needed(self) -> None:
        # The column is no argument of the model, and would be removed.
        super()._set_signature_columns_if_needed()
        column, columns = self.own_column, self._signature_columns
        if column is not None and columns is not None and column not in columns:
            columns.append(column)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        super()._save_optimizer_and_scheduler(output_dir)
        state = whole_state(self.steering)
        if state and self.args.should_save:
            save_file(state, Path(output_dir) / self.state_file)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is None or not self.steering.state_dict():
            return
        path = Path(checkpoint) / self.state_file
        if not path.exists():
            raise FileNotFoundError(
                f"{path} does not exist: the checkpoint holds no {self.state_name}; resume with "
                "the trainer, and its arguments, that the checkpoint was made with"
            )
        self.steering.load_state_dict(load_file(path))
