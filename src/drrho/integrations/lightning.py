"""Lightning callback that holds a contrastive objective, its per-sample state and its schedule.

class Model(LightningModule):
def training_step(self, batch, _):
images, tokens, ids = batch
...
return self.steering.loss(self, target, sample_ids=ids, logit_scale=scale)

def configure_callbacks(self):
return [self.steering]
"""

import math
from functools import partial
from typing import Any

from jaxtyping import Float, Int
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from drrho.contrastive.objectives.objective import Objective
from drrho.contrastive.pairs import PairEmbeddings
from drrho.integrations.pairs import EmbeddingStore, SteeredPairs, check_steering, whole_state
from drrho.training.schedules import Schedule, constant


class Steering(Callback):
    """Callback with a contrastive objective for a LightningModule.

    As a submodule DDP would overwrite every process's share of the averages by the first one's. As
    a callback it is out of DDP's sight, and its state is in Lightning's checkpoints all the same,
    whole, to be read by any number of processes. The objective, whose arguments are as in
    `SteeredPairs`, is made by the Trainer's `setup`, when the processes have met.
    """

    def __init__(
        self,
        objective: Objective,
        *,
        num_samples: int,
        reference: EmbeddingStore | PairEmbeddings | None = None,
    ) -> None:
        check_steering(objective, num_samples=num_samples, reference=reference)
        self._make = partial(SteeredPairs, objective, num_samples=num_samples, reference=reference)
        self._pairs: SteeredPairs | None = None
        self._gamma: Schedule | None = None

    @property
    def pairs(self) -> SteeredPairs:
        """The objective with its state, from `setup` on.

        Raises:
            RuntimeError: the Trainer has not set this callback up.
        """
        if self._pairs is None:
            raise RuntimeError(
                "the objective is made when the Trainer sets up this callback; return it from "
                "LightningModule.configure_callbacks, or give it to the Trainer as a callback"
            )
        return self._pairs

    def loss(
        self,
        module: LightningModule,
        target: PairEmbeddings,
        *,
        sample_ids: Int[Tensor, " batch"],
        logit_scale: Float[Tensor, "..."],
    ) -> Float[Tensor, ""]:
        """Compute the loss of a training step, as `SteeredPairs`; logs gamma."""
        if self._gamma is None:
            self._gamma = self._gamma_of_run(module.trainer, len(target.image))
        gamma = self._gamma(module.trainer.global_step)
        if self.pairs.objective.estimator is not None:
            module.log("gamma", gamma)
        return self.pairs(target, sample_ids=sample_ids, logit_scale=logit_scale, gamma=gamma)

    def _gamma_of_run(self, trainer: Trainer, num_pairs: int) -> Schedule:
        if self.pairs.objective.estimator is None:
            return constant(1.0)
        steps, batches = trainer.estimated_stepping_batches, trainer.num_training_batches
        if math.isinf(steps):
            raise ValueError(
                "the schedule of gamma needs the length of the training: give the Trainer "
                "max_steps, or max_epochs with data that have a length"
            )
        # Data without a length: by the pairs of a step.
        per_epoch = self.pairs.num_samples / (num_pairs * trainer.world_size)
        epochs = steps / (per_epoch if math.isinf(batches) else max(1, int(batches)))
        return self.pairs.gamma_schedule(steps=int(steps), epochs=epochs)

    def setup(self, _trainer: Trainer, _module: LightningModule, stage: str) -> None:
        if self._pairs is None and stage == "fit":
            self._pairs = self._make()

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.accumulate_grad_batches != 1:
            raise ValueError(
                "accumulate_grad_batches must be 1, for the parts of a batch would not be each "
                f"other's negatives; got {trainer.accumulate_grad_batches}. Use "
                "drrho.contrastive.accumulation.encode_in_micro_batches in training_step"
            )
        self._gamma = None
        self.pairs.to(pl_module.device)

    def state_dict(self) -> dict[str, Any]:
        """Part of every checkpoint of the Trainer; a collective, as the Trainer calls it."""
        return {} if self._pairs is None else whole_state(self._pairs)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if state_dict and self._pairs is not None:  # validation has no use for it
            self._pairs.load_state_dict(state_dict)
