"""Hugging Face's Trainer, steered: a causal language model under the guidance of a reference.

trainer = SteeredTrainer(
    model, args, train_dataset=data, reference=reference, risk=CVaR(fraction=0.6)
)
"""

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Float64, Int64
from torch import Tensor, nn
from transformers import PreTrainedModel, TrainingArguments, default_data_collator

from drrho.integrations.live_reference import (
    WITHOUT,
    call_live,
    check_live_reference,
    evaluating,
    hold_still,
    takes,
)
from drrho.integrations.trainer import TrainerWithState
from drrho.risk import RiskMeasure
from drrho.runtime.checks import require_choice
from drrho.steering import DRRhoLoss, Estimator, Losses, LossTable, token_losses
from drrho.steering.loss import OfMissing, OfNonfinite, Weighed

Batch = Mapping[str, Any]
Unit = Literal["token", "sequence"]
Collator = Callable[[list[Any]], Any]
IGNORED = -100  # the label of a token that does not count, in all of transformers


class SteeredTrainer(TrainerWithState):
    """Trainer of a language model on the DRRho risk of the excess token losses.

    * Every token that is predicted, of all micro-batches of a step and of all processes, is a
      sample of one population. So accumulation and processes do not change the gradient, and
      `Mean()` is the Trainer's own training. With `gradient_accumulation_steps` above 1 a step
      computes its losses twice, first without gradients: a token's weight depends on all others.
    * Evaluation is the Trainer's: `eval_loss` is the plain loss, comparable between methods.
    * Logged beside `loss`, the objective, as means over the steps since the last log:
      `mean_loss` and `mean_excess` of all tokens before they are weighted, `kept_share`, the share
      of the tokens with a weight, and three numbers of `drrho.steering.SteeredLoss`.
    * The estimator's state is in every checkpoint that has the optimiser's, and comes back with it.

    For data parallelism: one process, DataParallel, DistributedDataParallel, FSDP. The live
    reference is held whole on every device.

    Args:
        model: causal: its output has `logits`, of a position about the next token.
        args: the Trainer's.
        risk: see `drrho.risk`. `CVaR` of token losses is Rho-1's selection.
        reference: a model with the model's tokenizer, which is frozen here, or any function that
            takes a batch's columns by name and gives logits (`AdaptersOff(model)` for the base of
            a model with adapters); or the name of a column of `train_dataset` with the losses that
            `reference_token_losses` computed once; or "none", which is ordinary distributionally
            robust optimisation.
        estimator: of the data set's risk from batches; None is `BatchEstimator()`.
        unit: what the adversary weighs: tokens, or whole sequences by their mean token loss, each
            with its number of tokens as base measure.
        nonfinite, missing: losses that are not finite, and stored ones that are NaN, see
            `drrho.steering.DRRhoLoss`.

    The other arguments are the Trainer's. Its `compute_loss_func` and `model_init` are not among
    them: the one would replace the loss, the other the model but not the estimator's state.

    Raises:
        TypeError: the reference is none of these.
        ValueError: there is no reference, or it shares trained parameters with the model; an
            option of the Trainer would have no effect, or the model is not causal. In training:
            the reference has another vocabulary, a batch lacks labels or the column, or a loss is
            not finite.

    Source: Lin et al., "Rho-1: not all tokens are what you need", 2024, for steering by tokens.
    """

    # The Trainer must not divide the loss of a micro-batch by their number.
    loss_is_scaled_for_ga = True
    state_file = "steering.safetensors"
    steering: DRRhoLoss

    def __init__(  # noqa: PLR0913 - the host's arguments
        self,
        model: nn.Module,
        args: TrainingArguments,
        *,
        risk: RiskMeasure,
        reference: Callable[..., Any] | str | None = None,
        estimator: Estimator | None = None,
        unit: Unit = "token",
        nonfinite: OfNonfinite = "raise",
        missing: OfMissing = "raise",
        data_collator: Collator | None = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        processing_class: Any = None,
        compute_metrics: Callable[..., dict] | None = None,
        callbacks: list | None = None,
        optimizers: tuple = (None, None),
        optimizer_cls_and_kwargs: tuple[type[torch.optim.Optimizer], dict[str, Any]] | None = None,
        preprocess_logits_for_metrics: Callable[[Tensor, Tensor], Tensor] | None = None,
    ) -> None:
        _refuse_options(model, args, reference, estimator, unit)
        _check_reference(reference, model, train_dataset)
        super().__init__(
            model,
            args,
            data_collator=data_collator,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            compute_metrics=compute_metrics,
            callbacks=callbacks,
            optimizers=optimizers,
            optimizer_cls_and_kwargs=optimizer_cls_and_kwargs,
            preprocess_logits_for_metrics=preprocess_logits_for_metrics,
        )
        # Not an attribute of every accelerate that this works with.
        parallelism = getattr(self.accelerator, "parallelism_config", None)
        if parallelism is not None and parallelism.non_data_parallel_size > 1:
            raise ValueError(
                "SteeredTrainer needs a whole batch on each process, got tensor, context or "
                f"sequence parallelism ({parallelism}); use data parallelism or FSDP"
            )
        self.steering = DRRhoLoss(risk, estimator, nonfinite=nonfinite, missing=missing)
        self.steering.to(args.device)
        self.state_name = f"state of the estimator {type(self.steering.estimator).__name__}"
        self.reference: Callable[..., Any] | None = None
        if isinstance(reference, str):
            if reference != WITHOUT:
                self.own_column = reference
                self.data_collator = _CollatorWithLosses(self.data_collator, column=reference)
        elif reference is not None:
            self.reference = reference
            hold_still(reference)
            if isinstance(reference, nn.Module):
                devices = {parameter.device for parameter in reference.parameters()}
                if devices - {args.device}:  # a quantised model cannot be moved
                    self._move_model_to_device(reference, args.device)
        self.unit = unit
        self._micro_batches: list[Batch] = []
        self._weighed: deque[Weighed] = deque()
        self._sums: dict[str, Tensor] = {}
        self._num_summed = 0

    def get_batch_samples(
        self, epoch_iterator: Iterator, num_batches: int, device: torch.device
    ) -> tuple[list, Any]:
        batches, num_items = super().get_batch_samples(epoch_iterator, num_batches, device)
        self._micro_batches = batches
        self._weighed.clear()
        return batches, num_items

    def training_step(
        self, model: nn.Module, inputs: Batch, num_items_in_batch: Any = None
    ) -> Tensor:
        # What older versions divide by, which know no `loss_is_scaled_for_ga`.
        self.current_gradient_accumulation_steps = 1
        return super().training_step(model, dict(inputs), num_items_in_batch)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: Batch,
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        if not model.training:
            return super().compute_loss(
                model,
                {name: value for name, value in inputs.items() if name != self.own_column},
                return_outputs=return_outputs,
                num_items_in_batch=num_items_in_batch,
            )
        accumulates = len(self._micro_batches) > 1
        if accumulates and not self._weighed:
            self._weighed.extend(self._weigh_ahead(model))
        losses, outputs = self._losses(model, inputs, with_reference=not accumulates)
        weighed = self._weighed.popleft() if accumulates else self._weigh([losses])[0]
        loss = weighed.steer(losses.losses).loss
        return (loss, outputs) if return_outputs else loss

    def _weigh_ahead(self, model: nn.Module) -> list[Weighed]:
        """Weigh all micro-batches of the step together, without gradients.

        The passes with gradients follow in the same order, and draw the same dropout.
        """
        # Of DataParallel all devices draw.
        devices = list(range(torch.cuda.device_count())) if self.args.device.type == "cuda" else []
        with torch.no_grad(), torch.random.fork_rng(devices):
            losses = [
                self._losses(model, self._prepare_inputs(dict(batch)), with_reference=True)[0]
                for batch in self._micro_batches
            ]
        # Older versions of PyTorch keep what autocast has cast, here without a graph.
        torch.clear_autocast_cache()
        return self._weigh(losses)

    def _weigh(self, micro_batches: list[Losses]) -> list[Weighed]:
        weighed = self.steering.weigh(micro_batches)
        summary = weighed[0].summary
        sums = [
            _sums(losses, part.summary.weights)
            for losses, part in zip(micro_batches, weighed, strict=True)
        ]
        total, kept, loss, excess = self.accelerator.reduce(torch.stack(sums).sum(dim=0), "sum")
        total = total.clamp_min(1)
        measured = {
            "mean_loss": loss / total,
            "mean_excess": excess / total,
            "kept_share": kept / total,
            "effective_sample_size": summary.effective_sample_size,
            "weight_sum": summary.weight_sum,
        }
        if summary.dual is not None:
            measured["dual"] = summary.dual
        if micro_batches[0].reference_losses is None:
            del measured["mean_excess"]  # nothing is exceeded
        for name, value in measured.items():
            # A step without tokens that count has no dual.
            self._sums[name] = self._sums.get(name, 0) + torch.nan_to_num(value, nan=0.0)
        self._num_summed += 1
        return weighed

    def _losses(
        self, model: nn.Module, inputs: Batch, *, with_reference: bool
    ) -> tuple[Losses, Any]:
        """Compute the losses of a micro-batch; returns the model's output besides."""
        inputs = dict(inputs)
        labels = inputs.pop("labels", None)
        column = self.own_column
        stored = None if column is None else inputs.pop(column, None)
        if labels is None:
            raise ValueError(
                f"a batch has no labels, only {', '.join(inputs)}; give the data set a column "
                "`labels`, or pass data_collator=DataCollatorForLanguageModeling(..., mlm=False)"
            )
        outputs = model(**inputs)
        logits = _logits(outputs, "the model")
        losses, mask = token_losses(logits, labels)
        reference = None
        if with_reference and self.reference is not None:
            reference = self._live_losses(inputs, labels, vocabulary=logits.shape[-1])
        elif with_reference and column is not None:
            if stored is None:
                raise ValueError(
                    f"a batch has no column {column!r}, the reference; add it to "
                    "the data set with reference_token_losses"
                )
            reference = stored
        if self.unit == "token":
            return Losses(losses, reference, mask), outputs
        count = mask.sum(dim=1)
        mean = _mean_of_sequences(losses, mask)
        reference = None if reference is None else _mean_of_sequences(reference, mask)
        return Losses(mean, reference, count > 0, sample_weight=count), outputs

    def _live_losses(
        self, inputs: Batch, labels: Int64[Tensor, "batch length"], *, vocabulary: int
    ) -> Float[Tensor, "batch predicted"]:
        assert self.reference is not None
        with torch.no_grad(), self.accelerator.autocast():
            logits = _logits(call_live(self.reference, inputs), "the reference")
        if logits.shape[-1] != vocabulary:
            raise ValueError(
                f"the reference has a vocabulary of {logits.shape[-1]} tokens, the model of "
                f"{vocabulary}: their losses are of different things. Take a reference with the "
                "model's tokenizer; where only the padding of the vocabulary differs, store its "
                "losses with reference_token_losses and pass the column's name as reference"
            )
        return token_losses(logits, labels).losses

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs and self._num_summed > 0:
            means = torch.stack([value.double() for value in self._sums.values()])
            # One message from the device, at the Trainer's logging steps only.
            means = (means / self._num_summed).tolist()
            logs.update(zip(self._sums, means, strict=True))
            self._sums, self._num_summed = {}, 0
        super().log(logs, start_time)


def reference_token_losses(
    reference: Callable[..., Any],
    examples: Sequence[Mapping[str, Any]],
    *,
    data_collator: Collator = default_data_collator,
    batch_size: int = 8,
) -> list[np.ndarray]:
    """Compute a reference's losses of a data set once, to be stored as a column of it.

        column = reference_token_losses(reference, dataset, data_collator=collator)
        dataset = dataset.add_column("reference_losses", column)             # of `datasets`
        trainer = SteeredTrainer(..., train_dataset=dataset, reference="reference_losses")

    Args:
        reference: a model, or a function that gives logits, as for `SteeredTrainer`.
        examples: tokenised, the data set as the Trainer gets it. Columns that are no argument
            of the reference are left aside.
        data_collator: the Trainer's. Its labels say which tokens count.

    Returns:
        For each example a float32 array, in nats, of the tokens that are predicted and count, in
        their order. Batches may be padded to other lengths, on the right side only: padding on
        the left makes a row's first token count.
    """
    column: list[np.ndarray] = []
    with torch.no_grad(), evaluating(reference) as device:
        for start in range(0, len(examples), batch_size):
            rows = [examples[row] for row in range(start, min(start + batch_size, len(examples)))]
            known = [
                {n: v for n, v in row.items() if n == "labels" or takes(reference, n)}
                for row in rows
            ]
            batch = {name: value.to(device) for name, value in data_collator(known).items()}
            labels = batch.pop("labels")
            logits = _logits(call_live(reference, batch), "the reference")
            losses, mask = token_losses(logits, labels)
            kept = zip(losses.cpu(), mask.cpu(), strict=True)
            column += [row[counts].numpy() for row, counts in kept]
    return column


class _CollatorWithLosses:
    """Collator that puts each row's k-th stored loss where its k-th token that counts is."""

    def __init__(self, collator: Collator, *, column: str) -> None:
        self.collator = collator
        self.column = column

    def __call__(self, features: list[Mapping[str, Any]]) -> Batch:
        rest = [{n: v for n, v in row.items() if n != self.column} for row in features]
        batch = self.collator(rest)
        rows = [row[self.column] for row in features if self.column in row]
        if not rows or "labels" not in batch:
            return batch  # what is missing is an error in training alone
        counts = batch["labels"][:, 1:] != IGNORED
        lengths, needed = [len(row) for row in rows], counts.sum(dim=1).tolist()
        if lengths != needed:
            raise ValueError(
                f"the rows of a batch have {lengths} stored losses in the column "
                f"{self.column!r}, but {needed} tokens that count; tokenise, truncate and collate "
                "as when they were computed, with padding on the right, or compute them anew with "
                "reference_token_losses"
            )
        losses = torch.full(counts.shape, torch.nan)
        losses[counts] = torch.from_numpy(np.concatenate(rows).astype(np.float32))
        return {**batch, self.column: losses}


def _check_reference(reference: object, model: nn.Module, train_dataset: Any) -> None:
    """Raise TypeError or ValueError unless this can be a reference of the model."""
    if reference is None:
        raise ValueError(
            "SteeredTrainer needs a reference: a model, a function that gives logits, or the name "
            f'of a column with stored losses. For a risk of the plain losses pass "{WITHOUT}"'
        )
    if not isinstance(reference, str):
        check_live_reference(reference, model)
        return
    columns = getattr(train_dataset, "column_names", None)
    if reference != WITHOUT and isinstance(columns, list) and reference not in columns:
        raise ValueError(
            f"train_dataset has no column {reference!r}, the reference, only {', '.join(columns)}; "
            "add it with reference_token_losses"
        )


def _logits(outputs: Any, whose: str) -> Float[Tensor, "batch length vocabulary"]:
    if isinstance(outputs, Tensor):
        return outputs
    logits = outputs.get("logits") if isinstance(outputs, Mapping) else None
    if logits is None:
        raise ValueError(
            f"the output of {whose} has no `logits`, it is a {type(outputs).__name__}; take a "
            "causal language model (AutoModelForCausalLM) that returns its logits in training"
        )
    if outputs.get("aux_loss") is not None:
        raise ValueError(
            f"{whose} returns an auxiliary loss, for the balance of its experts, which would be "
            "left out; set config.output_router_logits=False"
        )
    return logits


def _mean_of_sequences(
    losses: Float[Tensor, "batch predicted"], mask: Bool[Tensor, "batch predicted"]
) -> Float[Tensor, " batch"]:
    """Average over the tokens that count; zero where none does."""
    return torch.where(mask, losses, 0.0).sum(dim=1) / mask.sum(dim=1).clamp_min(1)


def _sums(losses: Losses, weights: Float[Tensor, "*shape"]) -> Float64[Tensor, " 4"]:
    """Sum over the tokens of a micro-batch that count: their number, the number with a weight,
    the losses and the excess losses.
    """
    reference = losses.reference_losses
    excess = losses.losses if reference is None else losses.losses - reference
    counts = torch.isfinite(excess) if losses.mask is None else losses.mask & excess.isfinite()
    number = torch.ones_like(weights) if losses.sample_weight is None else losses.sample_weight
    number = torch.where(counts, number.double(), 0.0)
    columns = (torch.ones_like(excess), weights != 0, losses.losses, excess)
    return torch.stack([(number * torch.where(counts, column, 0.0)).sum() for column in columns])


def _refuse_options(
    model: nn.Module,
    args: TrainingArguments,
    reference: object,
    estimator: Estimator | None,
    unit: str,
) -> None:
    """Raise ValueError for what would have no effect, or a wrong one."""
    require_choice("unit", unit, Unit)
    refused = {
        "reference is the model itself, whose excess over itself is zero; pass another model, or a "
        "copy (copy.deepcopy) of it as it is now": reference is model,
        f"{type(model).__name__} is an encoder-decoder model, whose labels are not shifted; "
        "SteeredTrainer trains causal language models": (
            isinstance(model, PreTrainedModel) and model.config.is_encoder_decoder
        ),
        "label_smoothing_factor must be 0, for the risk is of token losses without it; got "
        f"{args.label_smoothing_factor}": args.label_smoothing_factor != 0,
        "use_liger_kernel must be False: its fused loss returns no logits, and the risk needs the "
        "loss of every token": args.use_liger_kernel,
        "LossTable needs ids of tokens, which the Trainer does not hand out; use BatchEstimator, "
        "MovingAverage or LearnedDual": isinstance(estimator, LossTable),
    }
    for message, is_so in refused.items():
        if is_so:
            raise ValueError(message)
