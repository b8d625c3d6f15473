"""sentence-transformers, steered: a loss of text pairs for its trainer, and the trainer that keeps
the loss's state.

reference = reference_embeddings(guide, data)
loss = DRRhoPairsLoss(model, reference=reference, num_samples=len(data))
PairsTrainer(model, args, train_dataset=with_sample_ids(data), loss=loss).train()
"""

import math
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer
from sentence_transformers.base.losses.gradcache import CachedLossMixin
from sentence_transformers.base.losses.merged_forward import embed_columns
from torch import Tensor, nn
from torch.nn.functional import normalize

from drrho.contrastive.losses import UnitLength, checked_ids
from drrho.contrastive.memory.temperature import Constant, Learned, Temperature, as_tau
from drrho.contrastive.objectives.global_risk import (
    Directions,
    FastCLIP,
    GammaSchedule,
    GlobalContrastiveLoss,
)
from drrho.contrastive.pairs import PairEmbeddings, check_pairs, check_unit_length, pair_partition
from drrho.integrations.pairs import EmbeddingStore, gamma_schedule
from drrho.integrations.trainer import TrainerWithState
from drrho.runtime.checks import require_at_least, require_positive
from drrho.training.schedules import Schedule

SENTENCE_TRANSFORMERS_TEMPERATURE = 0.05  # 1 / 20, the scale of MultipleNegativesRankingLoss
ID_COLUMN = "label"  # the one column that the library hands to a loss as it is
SIDES = ("anchor", "positive")
Features = dict[str, Any]


class DRRhoPairsLoss(CachedLossMixin, nn.Module):
    """DRRho-CLIP of text pairs, as a loss for `SentenceTransformerTrainer`.

        log(B - 1) + 1/2B sum_i [log U1_i + log U2_i]

    in nats, with the positive's own term in every sum: the risk of DRRho-CLIP without its factor
    tau. At gamma = 1, without a reference and with a constant
    temperature it is `MultipleNegativesRankingLoss(model, scale=1 / temperature, directions=(
    "query_to_doc", "doc_to_query"), partition_mode="per_direction")`, or with
    `directions="first"` its default, from anchors to positives alone. So learning rates carry over.

    The batch consists of the pairs of all processes, and the gradient is exact. In evaluation it
    is the plain loss.
    A batch of one pair has no negatives and a loss of zero.

    Args:
        model: the model in training, a `SentenceTransformer`.
        temperature: tau in units of cosine similarity, the inverse of `scale`; or
            `drrho.Learned`, which the trainer's optimiser moves.
        reference: embeddings of the training pairs by a reference: `PairEmbeddings` with a row for
            each sample (`reference_embeddings`, `embeddings_of_columns`), or what
            `drrho.open_reference` gives. A row of zeros keeps a pair's plain loss.
        num_samples: size of the training set, for the average of each sample's sum over the
            batches that it has been in; None averages nothing, and gamma is 1.
        gamma_min: final weight of the newest batch in the averages; None is FastCLIP's
            recommendation for the number of epochs. `PairsTrainer` follows the schedule; in a loop
            of your own set `loss.gamma`.
        gamma_schedule: "cosine" falls from 1 to gamma_min over half of the run; "constant".
        epsilon: floor of the sums; None is 1 / (B - 1), the positive's own term.
        reference_scale: factor of the reference's cosines.
        rho: radius of the ambiguity set in nats, for a learned temperature; None lets it follow the
            gradient of the logarithms, as CLIP's does.
        directions: "both", or "first": from anchors to positives alone.
        mini_batch_size: pairs embedded at once, with the gradient of the whole batch, as in
            `CachedMultipleNegativesRankingLoss`; None embeds all.

    Ids are the training set's column `label` (`with_sample_ids`), from 0; needed with `num_samples`
    or a reference. Not to be put into MatryoshkaLoss with `num_samples`: it calls a loss several
    times in a step.

    Raises:
        ValueError: an option would have no effect, the reference does not fit. In training: there
            are other than two columns of texts, no ids, or nobody sets gamma.

    Source: docs/mathematics.md, "Per-sample estimators"; arXiv 2505.06699.
    """

    def __init__(  # noqa: PLR0913 - the objective's and the host's
        self,
        model: nn.Module,
        *,
        temperature: float | Constant | Learned = SENTENCE_TRANSFORMERS_TEMPERATURE,
        reference: PairEmbeddings | EmbeddingStore | None = None,
        num_samples: int | None = None,
        gamma_min: float | None = None,
        gamma_schedule: GammaSchedule = "cosine",
        epsilon: float | None = None,
        reference_scale: float = 1.0,
        rho: float | None = None,
        directions: Directions = "both",
        mini_batch_size: int | None = None,
    ) -> None:
        super().__init__()
        # Its checks are those of every objective with averages.
        self.config = FastCLIP(
            temperature=temperature,
            rho=rho,
            gamma_min=gamma_min,
            gamma_schedule=gamma_schedule,
            times_temperature=rho is not None,
        )
        require_positive(reference_scale=reference_scale)
        require_at_least(1, mini_batch_size=mini_batch_size)
        if num_samples is None and (gamma_min is not None or gamma_schedule == "constant"):
            raise ValueError(
                "gamma_min and gamma_schedule have no effect without num_samples, the size of the "
                "training set: nothing is averaged"
            )
        if reference is None and reference_scale != 1:
            raise ValueError("reference_scale has no effect without a reference; leave it out")
        self.model = model
        self.reference = None if reference is None else checked_reference(reference, num_samples)
        self.reference_scale = reference_scale
        self.steering = _Steering(
            self.config, num_samples=num_samples, epsilon=epsilon, directions=directions
        )
        self.mini_batch_size = mini_batch_size or 0
        self.uses_gradient_cache = mini_batch_size is not None
        # Set by who keeps the state; where there is none, nobody need do so.
        self.gamma: float | None = None if self.steering.has_state else 1.0
        self._unit = UnitLength(SIDES)

    def forward(
        self, sentence_features: Iterable[Features], labels: Tensor | None = None
    ) -> Tensor:
        """Compute the loss of a batch of tokenised pairs; `labels` are their ids.

        Raises:
            ValueError, IndexError: see the class and `drrho.contrastive.losses`.
        """
        columns = list(sentence_features)
        if len(columns) != len(SIDES):
            raise ValueError(
                f"a batch must have two columns of texts, anchors and positives, got "
                f"{len(columns)}; remove the others (dataset.select_columns), such as negatives, "
                "which DRRhoPairsLoss does not take"
            )
        if not self.uses_gradient_cache:
            return self._loss(embed_columns(self.model, columns), labels)
        own = [parameter for parameter in self.steering.parameters() if parameter.requires_grad]
        before = [parameter.grad for parameter in own]
        for parameter in own:
            parameter.grad = None
        loss = self.forward_cached(columns, labels)
        for parameter, grad in zip(own, before, strict=True):
            loss = _with_gradient(loss, parameter)
            parameter.grad = grad
        return loss

    def calculate_loss(
        self,
        reps: list[list[Tensor]],
        labels: Tensor | None = None,
        *,
        with_backward: bool = False,
    ) -> Tensor:
        loss = self._loss([torch.cat(parts) for parts in reps], labels)
        if not with_backward:
            return loss
        loss.backward()
        return loss.detach()

    def get_config_dict(self) -> dict[str, Any]:
        """What a model card says about the loss."""
        return {
            "temperature": self.config.temperature.initial,
            "learned_temperature": self.config.temperature.learned,
            "reference": self.reference is not None,
            "reference_scale": self.reference_scale,
            "num_samples": self.steering.num_samples,
            "gamma_min": self.config.gamma_min,
            "directions": self.steering.estimator.directions,
            "mini_batch_size": self.mini_batch_size or None,
        }

    def _loss(self, embeddings: Sequence[Tensor], ids: Tensor | None) -> Tensor:
        target = self._unit.pairs("target", *embeddings)
        if not self.model.training:
            return self.steering(target, None, sample_ids=None, gamma=1.0)
        needs_ids = self.reference is not None or self.steering.num_samples is not None
        if needs_ids and ids is None:
            raise ValueError(
                f"a batch has no ids, which a reference and num_samples need: add them to the "
                f"training set as column {ID_COLUMN!r}, with_sample_ids(dataset)"
            )
        if self.gamma is None:
            raise ValueError(
                "gamma is not set: train with drrho.PairsTrainer, which follows its schedule and "
                "keeps averages and a learned temperature in checkpoints, in place of "
                "SentenceTransformerTrainer; or in a loop of your own set loss.gamma before each "
                "step (1.0 without num_samples) and save loss.state_dict()"
            )
        ids = checked_ids(ids, len(target.image)) if needs_ids else None
        reference = None if ids is None else self._reference_of(ids, target)
        of_memory = None if self.steering.num_samples is None else ids
        return self.steering(target, reference, sample_ids=of_memory, gamma=self.gamma)

    def _reference_of(self, ids: Tensor, target: PairEmbeddings) -> PairEmbeddings | None:
        if self.reference is None:
            return None
        if isinstance(self.reference, PairEmbeddings):
            rows, last = ids.cpu(), len(self.reference.image) - 1
            if len(rows) > 0 and not 0 <= int(rows.min()) <= int(rows.max()) <= last:
                raise IndexError(
                    f"ids are rows of the reference, from 0 to {last}, got {int(rows.min())} to "
                    f"{int(rows.max())}"
                )
            found = self.reference.take(rows)
        else:
            found = self.reference.gather(ids.cpu())
        anchor, positive = (
            e.to(device=target.image.device, dtype=torch.promote_types(e.dtype, torch.float32))
            for e in (found.image, found.text)
        )
        return PairEmbeddings(self.reference_scale * anchor, positive)


class _Steering(nn.Module):
    """All of the loss but the model: temperature, averages and the estimate in nats."""

    def __init__(
        self,
        config: FastCLIP,
        *,
        num_samples: int | None,
        epsilon: float | None,
        directions: Directions,
    ) -> None:
        super().__init__()
        self.num_samples = num_samples
        learned = isinstance(config.temperature, Learned)
        # A number, for a buffer would have the precision of float32.
        self._constant = None if learned else config.temperature.initial
        per_direction = isinstance(config.temperature, Learned) and config.temperature.per_direction
        if not isinstance(config.temperature, Constant | Learned) or per_direction:
            raise ValueError(
                "temperature must be a number, Constant or one Learned for both directions inside "
                f"another trainer, got {config.temperature}; `drrho train` has all of them"
            )
        self.temperature = Temperature(config.temperature) if learned else None
        self.estimator = GlobalContrastiveLoss(
            num_samples,
            epsilon=epsilon,
            rho=config.rho or 0.0,
            times_temperature=config.times_temperature,
            directions=directions,
        )

    @property
    def has_state(self) -> bool:
        """Whether there is something that a checkpoint must hold."""
        return self.num_samples is not None or self.temperature is not None

    def forward(
        self,
        target: PairEmbeddings,
        reference: PairEmbeddings | None,
        *,
        sample_ids: Tensor | None,
        gamma: float,
    ) -> Float[Tensor, ""]:
        pairs = pair_partition(target)
        if pairs.num_rows < 2:
            return 0.0 * (target.image.sum() + target.text.sum())
        if self.temperature is None:
            assert self._constant is not None
            tau = as_tau(self._constant, target.image)
        else:
            tau = pairs.average_grad(self.temperature())
        loss = self.estimator.estimate(
            target,
            reference,
            temperature=tau,
            sample_ids=sample_ids,
            gamma=gamma,
            pairs=pairs,
            of_each_anchor=False,
        )
        if self.estimator.times_temperature:
            loss = loss / tau.detach()
        return loss + math.log(pairs.num_rows - 1)


class PairsTrainer(TrainerWithState, SentenceTransformerTrainer):
    """`SentenceTransformerTrainer` for a `DRRhoPairsLoss` with state, with the same arguments.

    * The averages and a learned temperature are in every checkpoint that has the optimiser's state,
      whole, and come back with it on any number of processes.
    * gamma follows its schedule over the whole training.
    * Logged beside `loss`: `temperature` and, with averages, `gamma`.

    A dictionary of losses works as in the host, each with samples of its own.

    Raises:
        ValueError: with several processes, `dataloader_drop_last` is not set.
    """

    state_file = "pairs_loss.safetensors"
    state_name = "state of DRRhoPairsLoss"
    _gammas: dict[str, Schedule] | None = None

    @cached_property
    def steering(self) -> nn.Module:  # pyright: ignore[reportIncompatibleVariableOverride]
        return nn.ModuleDict({name: loss.steering for name, loss in self.pair_losses.items()})

    @property
    def pair_losses(self) -> dict[str, DRRhoPairsLoss]:
        """The losses of text pairs, by name of their data set, also within other losses."""
        named = self.loss if isinstance(self.loss, dict) else {"loss": self.loss}
        return {
            (name if place == "" else f"{name}_{place.replace('.', '_')}"): module
            for name, loss in named.items()
            for place, module in loss.named_modules()
            if isinstance(module, DRRhoPairsLoss)
        }

    def train(self, *args: Any, **options: Any) -> Any:
        if self.args.world_size > 1 and not self.args.dataloader_drop_last:
            raise ValueError(
                "dataloader_drop_last must be True on several processes: the last batch of an "
                "epoch is filled with pairs that are in it, and a pair is no negative of itself"
            )
        self._gammas = None  # the number of steps may have changed
        return super().train(*args, **options)

    def compute_loss(self, *args: Any, **options: Any) -> Any:
        for name, loss in self.pair_losses.items():
            if loss.steering.has_state and loss.model.training:
                averages = loss.steering.num_samples is not None
                step = self.state.global_step
                loss.gamma = self._schedule_of(name, loss)(step) if averages else 1.0
        return super().compute_loss(*args, **options)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs:
            several = isinstance(self.loss, dict)
            for name, loss in self.pair_losses.items():
                suffix = f"_{name}" if several else ""
                learned = loss.steering.temperature
                initial = loss.config.temperature.initial
                logs["temperature" + suffix] = (
                    initial if learned is None else float(learned().detach().mean())
                )
                if loss.steering.num_samples is not None:
                    step = max(0, self.state.global_step - 1)
                    logs["gamma" + suffix] = self._schedule_of(name, loss)(step)
        super().log(logs, start_time)

    def _schedule_of(self, name: str, loss: DRRhoPairsLoss) -> Schedule:
        if self._gammas is None:
            self._gammas = {}
        if name not in self._gammas:
            steps = self.state.max_steps
            batch = self.args.train_batch_size * self.args.world_size
            pairs = steps * batch * self.args.gradient_accumulation_steps
            assert loss.steering.num_samples is not None
            epochs = pairs / loss.steering.num_samples
            self._gammas[name] = gamma_schedule(loss.config, steps=steps, epochs=epochs)
        return self._gammas[name]


def with_sample_ids(dataset: Any) -> Any:
    """Add each row's place to a training set, as the column that becomes a loss's ids.

    Raises:
        ValueError: there is a column of that name already.
    """
    if ID_COLUMN in dataset.column_names:
        raise ValueError(
            f"the data set has a column {ID_COLUMN!r} already, which losses get as it is; remove "
            "or rename it"
        )
    return dataset.add_column(ID_COLUMN, list(range(len(dataset))))


def reference_embeddings(
    reference: SentenceTransformer,
    dataset: Any,
    *,
    columns: tuple[str, str] | None = None,
    batch_size: int = 64,
) -> PairEmbeddings:
    """Compute a reference's embeddings of a data set of text pairs once, for `DRRhoPairsLoss`.

    Args:
        reference: a model of sentence-transformers; prompts that it has for queries and documents
            are used.
        dataset: rows with two columns of texts.
        columns: of anchors and of positives; None takes the data set's two.

    Raises:
        ValueError: columns is not given, and there are not two.
    """
    names = _two_columns(dataset, columns)
    encoders: tuple[Callable[..., Any], ...] = (reference.encode_query, reference.encode_document)
    found = [
        encode(
            list(dataset[name]),
            batch_size=batch_size,
            convert_to_tensor=True,
            normalize_embeddings=True,
        )
        .float()
        .cpu()
        for encode, name in zip(encoders, names, strict=True)
    ]
    return PairEmbeddings(*found)


def embeddings_of_columns(dataset: Any, *, columns: tuple[str, str]) -> PairEmbeddings:
    """Take a reference's embeddings from two columns of vectors, and bring them to unit length.

    A row of zeros stays one, which is a pair without a reference.
    """
    found = [
        torch.from_numpy(np.stack(list(dataset.with_format("numpy")[name]))) for name in columns
    ]
    return PairEmbeddings(*(normalize(e.float(), dim=-1) for e in found))


def checked_reference(
    reference: PairEmbeddings | EmbeddingStore, num_samples: int | None
) -> PairEmbeddings | EmbeddingStore:
    """Check that a reference can be read by id, and fits the number of samples.

    Raises:
        ValueError: numbers of rows differ, or embeddings have not unit length.
        TypeError: it is neither a store nor embeddings.
    """
    if isinstance(reference, PairEmbeddings):
        check_pairs(reference, None)
        check_unit_length("reference", reference, or_absent=True)
        if num_samples is not None and len(reference.image) != num_samples:
            raise ValueError(
                f"reference must have a row for each of the {num_samples} samples, got "
                f"{len(reference.image)}"
            )
    elif isinstance(reference, Tensor) or not isinstance(reference, EmbeddingStore):
        raise TypeError(
            "reference must be PairEmbeddings, as reference_embeddings(model, dataset) gives them, "
            f"or what drrho.open_reference gives, got {type(reference).__name__}"
        )
    return reference


def _two_columns(dataset: Any, columns: tuple[str, str] | None) -> tuple[str, str]:
    if columns is not None:
        return columns
    names = [name for name in dataset.column_names if name != ID_COLUMN]
    if len(names) != len(SIDES):
        raise ValueError(
            f"columns must say which two columns are anchors and positives, of {names}"
        )
    return names[0], names[1]


def _with_gradient(loss: Tensor, parameter: nn.Parameter) -> Tensor:
    """Return the loss unchanged, which passes on the gradient that a parameter has, times its own.

    So a scale of the loss, by mixed precision or accumulation, reaches the parameter too.
    """
    if parameter.grad is None:
        return loss
    through = (parameter * parameter.grad).sum()
    return loss + (through - through.detach())
