"""Hugging Face's Trainer for dual encoders: negatives of all processes, steered by a reference.

trainer = ContrastiveTrainer(
model, args, objective=DRRhoCLIP(temperature=0.01),
reference=store, train_dataset=data,
)
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize
from transformers import TrainingArguments

from drrho.contrastive.objectives.objective import Objective
from drrho.contrastive.pairs import PairEmbeddings
from drrho.integrations.pairs import (
    MAX_LOG_SCALE,
    EmbeddingStore,
    SteeredPairs,
    check_steering,
    logit_scale,
)
from drrho.integrations.trainer import TrainerWithState
from drrho.training.schedules import Schedule

Batch = Mapping[str, Any]


class ContrastiveTrainer(TrainerWithState):
    """Trainer of a dual encoder on a contrastive objective.

    * Every pair is a negative of every other pair of the step, on whichever process, and the
      gradient is exact: K processes are one large batch.
    * The per-sample averages are in every checkpoint that has the optimiser's state, whole, and
      come back with it on any number of processes.
    * Evaluation is the model's own: `eval_loss` is its loss on evaluation's batches.
    * Logged beside `loss`: `temperature` and, of objectives with averages, `gamma`.

    For one process, DataParallel and DistributedDataParallel.

    Args:
        model: its output has `image_embeds` and `text_embeds`, and it has a parameter
            `logit_scale`: CLIPModel, SiglipModel, VisionTextDualEncoderModel and others.
        args: the Trainer's. `dataloader_drop_last` must be set: the Trainer would fill the last
            batch with pairs that are already in it.
        objective: `CLIP`, `FastCLIP` or `DRRhoCLIP`. A learned temperature is the model's
            `logit_scale`, held at 1 / 0.01 at most.
        reference: for `DRRhoCLIP`: what `drrho.open_reference` gives, or the embeddings of all
            samples.
        num_samples: size of the data set; None is `len(train_dataset)`.
        id_column: the column of `train_dataset` with each sample's place, from 0.

    The other arguments are the Trainer's.

    Raises:
        ValueError: an option would have no effect or a wrong one, or the model is none of these.
            In training: a batch has no ids.
    """

    state_file = "contrastive.safetensors"
    state_name = "per-sample averages"
    steering: SteeredPairs

    def __init__(  # noqa: PLR0913 - the host's arguments
        self,
        model: nn.Module,
        args: TrainingArguments,
        *,
        objective: Objective,
        reference: EmbeddingStore | PairEmbeddings | None = None,
        num_samples: int | None = None,
        id_column: str = "sample_id",
        data_collator: Callable[[list[Any]], Any] | None = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        processing_class: Any = None,
        callbacks: list | None = None,
        optimizers: tuple = (None, None),
        optimizer_cls_and_kwargs: tuple[type[torch.optim.Optimizer], dict[str, Any]] | None = None,
    ) -> None:
        _refuse_options(args)
        scale = logit_scale(model)  # an error where there is none
        if objective.temperature.learned and not scale.requires_grad:
            raise ValueError(
                "a learned temperature is the model's `logit_scale`, which is frozen (PEFT "
                "freezes whatever is no adapter): call logit_scale(model).requires_grad_(True), of "
                "drrho.integrations.pairs, or take a constant temperature"
            )
        if num_samples is None:
            num_samples = _number_of(train_dataset)
        check_steering(objective, num_samples=num_samples, reference=reference)
        super().__init__(
            model,
            args,
            data_collator=data_collator,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            callbacks=callbacks,
            optimizers=optimizers,
            optimizer_cls_and_kwargs=optimizer_cls_and_kwargs,
        )
        self.num_samples = num_samples
        self.own_column = self.id_column = id_column
        self.steering = SteeredPairs(objective, num_samples=num_samples, reference=reference)
        self.steering.to(args.device)
        self._gamma: Schedule | None = None

    def compute_loss(
        self,
        model: nn.Module,
        inputs: Batch,
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        inputs = dict(inputs)
        ids = inputs.pop(self.id_column, None)
        if not model.training:
            return super().compute_loss(
                model, inputs, return_outputs=return_outputs, num_items_in_batch=num_items_in_batch
            )
        if ids is None:
            raise ValueError(
                f"a batch has no column {self.id_column!r}, the samples' places in the data set, "
                f"only {', '.join(inputs)}; add it to train_dataset"
            )
        scale = logit_scale(self.accelerator.unwrap_model(model))
        if self.steering.config.temperature.learned:
            scale.data.clamp_(max=MAX_LOG_SCALE)
        outputs = model(**inputs)
        loss = self.steering(
            _embeddings(outputs),
            sample_ids=ids,
            logit_scale=scale.exp(),
            gamma=self._gamma_of_run()(self.state.global_step),
        )
        return (loss, outputs) if return_outputs else loss

    def prediction_step(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> Any:
        # Models of this kind compute their loss where they are told to.
        inputs = {**inputs, "return_loss": True}
        return super().prediction_step(model, inputs, prediction_loss_only, ignore_keys)

    def train(self, *args: Any, **options: Any) -> Any:
        self._gamma = None  # the number of steps may have changed
        return super().train(*args, **options)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs:
            config = self.steering.config
            learned = config.temperature.learned
            scale = logit_scale(self.accelerator.unwrap_model(self.model)).detach()
            logs["temperature"] = float((-scale).exp()) if learned else config.temperature.initial
            if self.steering.objective.estimator is not None:
                logs["gamma"] = self._gamma_of_run()(max(0, self.state.global_step - 1))
        super().log(logs, start_time)

    def _gamma_of_run(self) -> Schedule:
        if self._gamma is None:
            steps = self.state.max_steps
            pairs = steps * self.args.train_batch_size * self.args.world_size
            self._gamma = self.steering.gamma_schedule(steps=steps, epochs=pairs / self.num_samples)
        return self._gamma


def _number_of(train_dataset: Any) -> int:
    try:
        return len(train_dataset)
    except TypeError:
        kind = "None" if train_dataset is None else type(train_dataset).__name__
        raise ValueError(
            f"num_samples is needed, the size of the data set: train_dataset is {kind}, which "
            "has no length"
        ) from None


def _embeddings(outputs: Any) -> PairEmbeddings:
    found: list[Tensor] = []
    for name in ("image_embeds", "text_embeds"):
        value = outputs.get(name) if isinstance(outputs, Mapping) else None
        if value is None:
            raise ValueError(
                f"the output of the model has no `{name}`, it is a {type(outputs).__name__}; take "
                "a dual encoder, like CLIPModel, that returns its embeddings"
            )
        found.append(normalize(value, dim=-1))
    return PairEmbeddings(*found)


def _refuse_options(args: TrainingArguments) -> None:
    if args.gradient_accumulation_steps != 1:
        raise ValueError(
            "gradient_accumulation_steps must be 1, for the parts of a batch would not be each "
            f"other's negatives; got {args.gradient_accumulation_steps}. Enlarge "
            "per_device_train_batch_size with gradient_checkpointing=True, or use `drrho train`, "
            "whose micro_batch_size keeps the batch whole"
        )
    if not args.dataloader_drop_last:
        raise ValueError(
            "dataloader_drop_last must be True: the Trainer fills the last batch of an epoch with "
            "pairs that are in it, and a pair is not to be its own negative"
        )
